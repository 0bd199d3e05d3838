package fleetbus

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/signed"
)

const (
	// leafListenerName is the listener that sites come in by, and leafKind the
	// engine's word for their connections.
	leafListenerName = "leaf"
	leafKind         = "Leafnode"
	// sitesCheck is how often a node looks at the links that it holds.
	sitesCheck = time.Second
	// siteTimeout is how long a site may take to answer its hub.
	siteTimeout = 5 * time.Second
	// siteTwiceWait is how long the hub waits for another link of the same site to
	// answer, and siteTwiceKept how long it remembers that one did.
	siteTwiceWait = time.Second
	siteTwiceKept = 10 * time.Minute
	// siteFresh is how often the hub looks whether the credentials of a link have to
	// be renewed.
	siteFresh = 10 * time.Minute
	// strangerLink is how long a link may be there whose arrival was not heard.
	strangerLink = 5 * time.Second
)

// siteWho asks every link of a site which engine is at its other end.
func siteWho(site string) string { return identity.LinkPrefix + site + "-who" }

// siteTermsSubject carries the newest terms to one engine of a site.
func siteTermsSubject(engine string) string { return identity.LinkPrefix + engine + "-terms" }

// siteRenew asks the hub for a renewal that was asked for at a site.
const siteRenew = identity.LinkPrefix + "renew"

// linkPrincipal is this node, as it talks with the other end of a link.
func (s *Server) linkPrincipal(account string) identity.Principal {
	p := s.nodePrincipal(account)
	p.Permissions = identity.LinkPermissions()
	return p
}

// siteTerms is what a hub tells a site.
type siteTerms struct {
	// Account has the terms.
	Account identity.Account `json:"account"`
	// Addrs are the hub's listeners for sites.
	Addrs []string `json:"addrs"`
	// Operator is the JWT of the hub's operator, who signed the terms, and CA the PEM
	// authorities of its nodes.
	Operator string `json:"operator,omitempty"`
	CA       string `json:"ca,omitempty"`
	// JWT is a new one for the link's key, if it is time.
	JWT string `json:"jwt,omitempty"`
}

// siteHere is what a site answers: which engine it is, and of when the terms are
// that it has now.
type siteHere struct {
	Engine string    `json:"engine"`
	Issued time.Time `json:"issued"`
}

// errNoSite is why what is no site's link is refused where sites are linked.
var errNoSite = errors.New("only the credentials of a site are good here")

// sites are the links that this node holds as a hub.
type sites struct {
	changed chan struct{}

	mu    sync.Mutex
	links map[uint64]*siteLink // by the engine's id
	// sessions are this node's in the accounts that sites are linked to, by name.
	sessions map[string]*Session
	// twice are the sites that were linked when another link of theirs came.
	twice map[string]twice
}

type siteLink struct {
	account identity.Account
	name    string
	since   time.Time
	broker.Leaf
	// known says that its arrival was heard, and alone that no other engine
	// answers for the site. busy is set while it is told something.
	known, alone, busy bool
	// gone is when its site was found removed.
	gone time.Time
	// told is what the site has, of what terms are made from, by the fleet's state
	// after event seq, at that time.
	told [sha256.Size]byte
	seq  uint64
	at   time.Time
	// signer is the generation of the key that signed the credentials which the site
	// was handed over this link.
	signer string
}

// due reports whether there may be something to tell.
func (l *siteLink) due(seq uint64, now time.Time) bool {
	return !l.busy && (!l.alone || l.seq != seq || now.Sub(l.at) > siteFresh)
}

// twice is the second link of a site that was refused.
type twice struct {
	at            time.Time
	first, second string // engine, and address
}

func newSites() sites {
	return sites{changed: make(chan struct{}, 1), links: map[uint64]*siteLink{}, sessions: map[string]*Session{}, twice: map[string]twice{}}
}

// kick has the links looked at now.
func (l *sites) kick() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// forget has every site told again.
func (l *sites) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, link := range l.links {
		link.seq = 0
	}
}

// of are the links of one site, in the account with that public key.
func (l *sites) of(public, name string) (ids []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, link := range l.links {
		if link.account.Public == public && link.name == name {
			ids = append(ids, id)
		}
	}
	return ids
}

// siteArrived takes note of a link whose credentials the engine has found good.
func (s *Server) siteArrived(p passage, of string) {
	if s.site != nil {
		return
	}
	name := p.signed()
	account, ok := s.fleet.directory.Account(of)
	u, exists := s.fleet.directory.User(of, name)
	if !ok || !exists || u.Site == nil || u.Denied {
		s.log.Warn("site refused", "listener", leafListenerName, "principal", of+"/"+name, "error", errNoSite)
		s.broker.Close(p.Client.ID)
		return
	}
	l := &s.fleet.sites
	l.mu.Lock()
	l.links[p.Client.ID] = &siteLink{account: account, name: name, since: time.Now(), known: true}
	l.mu.Unlock()
	l.kick()
}

// keepSites tells sites what they must know, and finds links that may not be,
// until ctx is done.
func (s *Server) keepSites(ctx context.Context) {
	if err := s.recordAddrs(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("the other nodes do not know where sites and regions are linked here", "error", err)
	}
	defer s.closeSiteSessions(func(string) bool { return true })
	tick := time.NewTicker(sitesCheck)
	defer tick.Stop()
	for {
		s.tendSites(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.fleet.sites.changed:
		}
	}
}

// recordAddrs tells the fleet where sites and regions are linked to this node.
func (s *Server) recordAddrs(ctx context.Context) error {
	leaf, gateway := "", ""
	for _, l := range s.opts.Listeners {
		bound := s.Addr(l.Name)
		if bound == nil {
			continue
		}
		switch addr := reachable(l.Advertise, bound.String(), s.opts.Advertise); l.Protocol {
		case Leaf():
			leaf = addr
		case Gateway():
			gateway = addr
		}
	}
	n, ok := s.fleet.directory.Node(s.fleet.node)
	if !ok || n.LeafAddr == leaf && n.GatewayAddr == gateway || s.opts.Mode == Local {
		return nil
	}
	_, err := s.fleet.change(ctx, "node."+n.Name, func() (any, error) {
		n, ok := s.fleet.directory.Node(s.fleet.node)
		if !ok || n.Removed || n.LeafAddr == leaf && n.GatewayAddr == gateway {
			return nil, errSame
		}
		n.LeafAddr, n.GatewayAddr = leaf, gateway
		return n, nil
	})
	return err
}

// leafAddrs are where sites are linked to the nodes.
func (s *Server) leafAddrs() []string {
	return s.nodeAddrs(func(n identity.Node) string { return n.LeafAddr })
}

// nodeAddrs are the addresses of one kind that the nodes have.
func (s *Server) nodeAddrs(of func(identity.Node) string) []string {
	addrs := []string{}
	for _, n := range s.fleet.directory.Nodes() {
		if addr := of(n); addr != "" {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// tendSites looks at every link once.
func (s *Server) tendSites(ctx context.Context) {
	l := &s.fleet.sites
	wanted := map[string]bool{}
	var due []siteLink
	now, seq := time.Now(), s.fleet.directory.Seq()
	present := s.broker.Leafs()
	l.mu.Lock()
	for id, link := range l.links {
		gone := !slices.ContainsFunc(present, func(leaf broker.Leaf) bool { return leaf.ID == id })
		// One that has just come is not listed yet.
		if gone && now.Sub(link.since) > sitesCheck {
			s.log.Info("site is away", "principal", link.account.Name+"/"+link.name, "remote", link.Remote)
			delete(l.links, id)
		}
	}
	for _, leaf := range present {
		link := l.links[leaf.ID]
		if link == nil {
			link = &siteLink{since: now}
			l.links[leaf.ID] = link
		}
		link.Leaf = leaf
		switch {
		case !link.known:
			if now.Sub(link.since) > strangerLink {
				defer s.broker.Close(leaf.ID)
			}
		case leaf.Server != "":
			wanted[link.account.Name] = true
			if link.due(seq, now) {
				link.busy = true
				due = append(due, *link)
			}
		}
	}
	l.mu.Unlock()
	s.closeSiteSessions(func(account string) bool { return !wanted[account] })
	for _, link := range due {
		s.group.Go(func() {
			err := s.tendSite(ctx, &link)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("a site was not told what is new", "principal", link.account.Name+"/"+link.name, "error", err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if kept := l.links[link.ID]; kept != nil {
				kept.busy, kept.told, kept.alone, kept.gone, kept.signer = false, link.told, link.alone, link.gone, link.signer
				if err == nil {
					kept.seq, kept.at = seq, now
				}
			}
		})
	}
}

// closeSiteSessions closes those in accounts that are not needed.
func (s *Server) closeSiteSessions(unneeded func(account string) bool) {
	l := &s.fleet.sites
	l.mu.Lock()
	defer l.mu.Unlock()
	for account, session := range l.sessions {
		if unneeded(account) || session.IsClosed() {
			delete(l.sessions, account)
			session.Close()
		}
	}
}

// siteSession is this node's in an account that sites are linked to.
func (s *Server) siteSession(ctx context.Context, account string) (*Session, error) {
	l := &s.fleet.sites
	l.mu.Lock()
	defer l.mu.Unlock()
	if session := l.sessions[account]; session != nil && !session.IsClosed() {
		return session, nil
	}
	session, err := s.open(s.linkPrincipal(account))
	if err != nil {
		return nil, err
	}
	_, err = session.QueueSubscribe(siteRenew, "renew", func(msg *nats.Msg) {
		s.group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			renew := s.answer(on(func(ctx context.Context, key string) (any, error) { return s.renewKey(ctx, account, key) }))
			if err := renew(ctx, msg); err != nil && ctx.Err() == nil {
				s.log.Warn("a request failed", "subject", msg.Subject, "error", err)
			}
		})
	})
	if err != nil {
		session.Close()
		return nil, fmt.Errorf("subscribing for sites: %w", err)
	}
	l.sessions[account] = session
	return session, nil
}

// tendSite tells one site what is new, and sees to it that it is the only one of
// its name. link is a copy, in which it notes what it did.
func (s *Server) tendSite(ctx context.Context, link *siteLink) error {
	account, ok := s.fleet.directory.Account(link.account.Name)
	u, exists := s.fleet.directory.User(account.Name, link.name)
	if !ok || !exists || u.Site == nil || u.Denied {
		// Who removed it closes it, and counts what is closed.
		if link.gone.IsZero() {
			link.gone = time.Now()
		}
		if link.alone = false; time.Since(link.gone) > sitesCheck {
			s.broker.Close(link.ID)
		}
		return nil
	}
	signer := s.fleet.authority.KeyNewest(identity.RoleKeys(account), identity.RoleLeaf).ID
	news, sum, err := s.siteNews(ctx, account, u, signer, link.signer != signer)
	if err != nil || sum == link.told && news.JWT == "" && link.alone {
		return err
	}
	session, err := s.siteSession(ctx, account.Name)
	if err != nil {
		return err
	}
	if sum != link.told || news.JWT != "" {
		if err := tellSite(ctx, session.Conn, link, news); err != nil {
			return err
		}
		link.told, link.signer = sum, signer
	}
	if link.alone {
		return nil
	}
	return s.findTwice(ctx, session.Conn, link)
}

// siteNews are what a site must know now, and a sum by which two of them are told
// apart whatever the time. signer is the generation of the key that signs for links,
// and unsigned says that the site may not have what it signed.
func (s *Server) siteNews(ctx context.Context, account identity.Account, u identity.User, signer string, unsigned bool) (siteTerms, [sha256.Size]byte, error) {
	f := s.fleet
	news := siteTerms{Account: account, Addrs: s.leafAddrs(), Operator: f.authority.Operator(), CA: string(f.authority.ClientsPEM())}
	roles, revoked := f.directory.Roles(), f.directory.Revocations(account.Name)
	sign := func(issued time.Time) (err error) {
		news.Account.Terms, err = f.authority.SiteTerms(account, *u.Site, roles, revoked, issued)
		return err
	}
	issued := f.directory.Issued(account)
	if err := sign(time.Unix(0, 0)); err != nil {
		return news, [sha256.Size]byte{}, err
	}
	data, err := json.Marshal(news)
	if err != nil {
		return news, [sha256.Size]byte{}, err
	}
	if err := sign(issued); err != nil {
		return news, [sha256.Size]byte{}, err
	}
	news.JWT, err = s.freshLink(ctx, account, u, signer, unsigned)
	return news, sha256.Sum256(data), err
}

// freshLink is a new JWT for a link, if the old one has lost a third of its life, or was
// signed by an old key, or the site may not have one of the newest.
func (s *Server) freshLink(ctx context.Context, account identity.Account, u identity.User, signer string, unsigned bool) (string, error) {
	role, ok := s.fleet.directory.Role(u.Role)
	now, life := time.Now(), u.Life(role)
	switch {
	case !ok || len(u.Keys) == 0 || life == 0:
		return "", nil
	case u.Keys[0].Expires.Sub(now) > life*2/3 && u.Keys[0].Signer == signer:
		if !unsigned {
			return "", nil
		}
		return s.fleet.authority.LeafJWT(account, role, u.Name, u.Keys[0].Public, *u.Site, u.Keys[0].Expires)
	}
	_, err := s.fleet.change(ctx, userSubject(account.Name, u.Name), func() (any, error) {
		now, ok := s.fleet.directory.User(account.Name, u.Name)
		if !ok || now.Denied || len(now.Keys) == 0 || now.Keys[0].Public != u.Keys[0].Public {
			return nil, errSame
		}
		now.Keys[0].Issued, now.Keys[0].Expires, now.Keys[0].Signer = time.Now(), time.Now().Add(life), signer
		return now, nil
	})
	if err != nil {
		return "", fmt.Errorf("renewing the link of site %q: %w", u.String(), err)
	}
	return s.fleet.authority.LeafJWT(account, role, u.Name, u.Keys[0].Public, *u.Site, now.Add(life))
}

// tellSite hands news to the engine at the other end of a link, and returns when
// they hold there.
func tellSite(ctx context.Context, nc *nats.Conn, link *siteLink, news siteTerms) error {
	data, err := json.Marshal(news)
	if err != nil {
		return fmt.Errorf("encoding the terms of a site: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	for {
		msg, err := nc.RequestWithContext(ctx, siteTermsSubject(link.Server), data)
		// Its subscriptions come after the link.
		if errors.Is(err, nats.ErrNoResponders) {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("telling the site at %s: %w", link.Remote, err)
		}
		var reply admin.Reply
		if err := json.Unmarshal(msg.Data, &reply); err != nil {
			return fmt.Errorf("reading the answer of the site at %s: %w", link.Remote, err)
		}
		if reply.Error != nil {
			return fmt.Errorf("telling the site at %s: %w", link.Remote, reply.Error)
		}
		return nil
	}
}

// findTwice closes a link if another engine answers for the same site: the one that
// was there before.
func (s *Server) findTwice(ctx context.Context, nc *nats.Conn, link *siteLink) error {
	other := ""
	_, err := ask.All(ctx, nc, siteWho(link.name), struct{}{}, siteTwiceWait, func(here siteHere) bool {
		if here.Engine != link.Server {
			other = here.Engine
		}
		return other != ""
	})
	if err != nil {
		return err
	}
	l := &s.fleet.sites
	l.mu.Lock()
	defer l.mu.Unlock()
	full := link.account.Name + "/" + link.name
	if other == "" {
		link.alone = true
		s.log.Info("site is linked", "principal", full, "remote", link.Remote)
		return nil
	}
	before := l.twice[full]
	l.twice[full] = twice{time.Now(), other, link.Remote}
	if time.Since(before.at) > time.Minute {
		s.log.Warn("site refused", "listener", leafListenerName, "principal", full, "remote", link.Remote, "error", "another one of its name is linked")
	}
	s.broker.Close(link.ID)
	return nil
}

// siteLinks are the links that this node holds.
func (s *Server) siteLinks() (all []admin.Site) {
	l, seq := &s.fleet.sites, s.fleet.directory.Seq()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, link := range l.links {
		if link.known && link.alone {
			all = append(all, admin.Site{
				Account: link.account.Name, Name: link.name, State: admin.SiteLinked, Node: s.fleet.node,
				Remote: link.Remote, Since: link.since, RoundTrip: link.RoundTrip, Current: link.seq == seq,
			})
		}
	}
	return all
}

// siteList are the sites of the fleet, each with its link, as the nodes told.
func (s *Server) siteList(nodes []admin.NodeInfo) []admin.Site {
	all := []admin.Site{}
	for _, u := range s.fleet.directory.SiteUsers() {
		// Those of other regions are told of there.
		if u.Site.Region != s.fleet.authority.Region() {
			continue
		}
		one := admin.Site{Account: u.Account, Name: u.Name, State: admin.SiteAway}
		for _, n := range nodes {
			if i := slices.IndexFunc(n.Sites, func(l admin.Site) bool { return l.Account == u.Account && l.Name == u.Name }); i >= 0 {
				one = n.Sites[i]
			}
		}
		if u.Denied {
			one.State = admin.SiteDenied
		}
		one.Machine, one.Joined, one.Networks = u.Site.Machine, u.Created, u.Site.Networks
		all = append(all, one)
	}
	return all
}

func (s *Server) listSites(ctx context.Context, _ struct{}) (any, error) {
	status, err := s.getStatus(ctx, struct{}{})
	if err != nil {
		return nil, err
	}
	return status.(admin.Status).Sites, nil
}

// findings are the sites that another one poses as.
func (l *sites) findings() (all []doctor.Finding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for full, t := range l.twice {
		if time.Since(t.at) > siteTwiceKept {
			delete(l.twice, full)
			continue
		}
		account, name, _ := strings.Cut(full, "/")
		all = append(all, doctor.Finding{
			Code: "SITE-TWICE", Severity: doctor.Problem, Subject: full,
			Text: fmt.Sprintf("site %s is linked, and its credentials were used from %s as well, at %s, and refused", full, t.second, t.at.UTC().Format(time.RFC3339)),
			Fix:  fmt.Sprintf("if they were stolen: fleetbus leaf rm %s %s, and join the site anew", account, name),
		})
	}
	return all
}

// mayJoin says why a token for a site would be of no use, or for a node at a site.
func (s *Server) mayJoin(r admin.TokenRequest) error {
	switch {
	case r.Kind == identity.KindNode && s.site != nil:
		return admin.Errorf(admin.Invalid, "fleetbus token add node, at the hub", "this is a site, which has one node")
	case r.Kind == identity.KindRegion:
		return s.mayJoinRegion(r.Name)
	case r.Kind != identity.KindLeaf:
		return nil
	case s.site != nil:
		return admin.Errorf(admin.Invalid, "ask the hub", "this is a site, which has no sites")
	case len(s.leafAddrs()) == 0:
		return admin.Errorf(admin.Unavailable, "serve with --listeners-leaf-addr :7422 on a node, or in its file: listeners: {leaf: {}}", "no node has a listener for sites")
	case r.Name == "":
		return admin.Errorf(admin.Invalid, "fleetbus leaf token ACCOUNT --site NAME", "a token for a site needs the site's name")
	}
	if err := identity.CheckNetworks(r.Networks); err != nil {
		return admin.Errorf(admin.Invalid, "write networks like 10.1.0.0/16", "%v", err)
	}
	return s.siteTaken(r.Account, r.Name, "")
}

// siteTaken says that there is a site, or another user, of that name with another
// key.
func (s *Server) siteTaken(account, name, key string) error {
	u, ok := s.fleet.directory.User(account, name)
	switch {
	case !ok:
		return nil
	case u.Site == nil:
		return admin.Errorf(admin.Conflict, "choose another name for the site", "there is a user %q, and no site", u.String())
	case key != "" && slices.ContainsFunc(u.Keys, func(k identity.UserKey) bool { return k.Public == key }):
		return nil
	}
	return admin.Errorf(admin.Conflict, fmt.Sprintf("choose another name, or if it is gone for good: fleetbus leaf rm %s %s", account, name),
		"site %q exists: it joined at %s on %s", u.String(), u.Created.UTC().Format(time.RFC3339), u.Site.Machine)
}

// enrollLeaf makes the holder of a token a site.
func (s *Server) enrollLeaf(ctx context.Context, tokenID string, r enroll.LeafRequest) (any, error) {
	kinds := []identity.Kind{identity.KindLeaf}
	token, ok := s.fleet.directory.Token(tokenID)
	if !ok {
		return nil, admin.Errorf(admin.Denied, "fleetbus leaf token", "the token is not known")
	}
	if token.Kind != identity.KindLeaf {
		return nil, refuseToken(identity.ErrTokenKind, identity.KindLeaf)
	}
	if why := refuseVersion(r.Version); why != "" {
		return nil, admin.Errorf(admin.Invalid, "upgrade the hub's nodes first", "%s", why)
	}
	account, err := s.wantAccount(token.Account)
	if err != nil {
		return nil, err
	}
	who := token.Name + " " + r.Key
	again := token.Used && (token.UsedBy == who || r.Key == "" && strings.HasPrefix(token.UsedBy, who))
	if !again {
		if err := refuseToken(checkToken(token, kinds, time.Now()), kinds[0]); err != nil {
			return nil, err
		}
		if err := s.siteTaken(account.Name, token.Name, r.Key); err != nil {
			return nil, err
		}
	}
	reply := enroll.LeafReply{Fleet: s.fleet.authority.Fleet(), Name: token.Name, Account: account, Addrs: s.leafAddrs()}
	if r.Key == "" {
		return reply, nil
	}
	site := &identity.Site{Signer: r.Signer, Fleet: r.Fleet, Machine: r.Machine, Networks: token.Networks, Region: s.fleet.authority.Region()}
	if err := site.Validate(); err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "%v", err)
	}
	if account.Signing == identity.SigningRequired {
		return nil, signed.ErrSites()
	}
	g, err := s.newGrant(account.Name, token.Name, admin.UserRequest{Name: account.Name + "/" + token.Name, Role: identity.RoleLeaf, Key: r.Key})
	if err != nil {
		return nil, err
	}
	g.Kind = identity.KindLeaf
	if _, err := s.spend(ctx, tokenID, kinds, who); err != nil {
		return nil, err
	}
	_, err = s.fleet.change(ctx, userSubject(account.Name, token.Name), func() (any, error) {
		if err := s.siteTaken(account.Name, token.Name, r.Key); err != nil {
			return nil, err
		}
		u, err := g.User(s.fleet.directory)
		u.Site = site
		return u, err
	})
	if err != nil {
		return nil, err
	}
	reply.Operator, reply.CA, reply.Expires = s.fleet.authority.Operator(), string(s.fleet.authority.ClientsPEM()), g.Expires
	f := s.fleet
	reply.Account.Terms, err = f.authority.SiteTerms(account, *site, f.directory.Roles(), f.directory.Revocations(account.Name), f.directory.Issued(account))
	if err != nil {
		return nil, err
	}
	reply.JWT, err = f.authority.LeafJWT(account, g.Role, token.Name, r.Key, *site, g.Expires)
	return reply, err
}
