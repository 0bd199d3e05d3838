package fleetbus

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/internal/nodetls"
)

const (
	// The files of a site, beside those of any node: its hub, the credentials of its
	// link, and what an exchange that was cut off needs to be repeated.
	siteFileName    = "site.json"
	siteCredsName   = "link.creds"
	sitePendingName = "join.json"
	// hubMissed is how long a site may be without its hub before it is a finding.
	hubMissed = 5 * time.Second
)

// siteFile is what site.json holds.
type siteFile struct {
	// Fleet is the hub's name, Account the one that is a guest here.
	Fleet   string `json:"fleet"`
	Account string `json:"account"`
	// Operator is the JWT of the hub's operator, and CA the PEM authority of its
	// nodes.
	Operator string `json:"operator"`
	CA       string `json:"ca"`
	// Addrs are the hub's listeners for sites, as it last told.
	Addrs []string `json:"addrs"`
}

// site is what makes a node one.
type site struct {
	name   string
	engine string // of this run, so that two of one name are told apart

	mu      sync.Mutex
	file    siteFile
	session *Session // this node's in the guest account
	linked  bool
	since   time.Time
	link    broker.Leaf
}

// sitePending is what join.json holds.
type sitePending struct {
	Name      string           `json:"name"`
	Authority json.RawMessage  `json:"authority"`
	Offline   identity.Offline `json:"offline"`
	Link      []byte           `json:"link"`
}

// openSite reads what makes this node a site, if it is one.
func (s *Server) openSite() error {
	var file siteFile
	err := home.ReadJSON(s.home.Path(siteFileName), &file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.opts.Mode == Hub {
		return &OptionError{Field: "mode", Problem: fmt.Sprintf("%q holds a site, which is linked to one hub already", s.home.Dir), Hint: "remove mode and hub"}
	}
	for _, l := range s.opts.Listeners {
		if l.Protocol == Gateway() {
			return &OptionError{Field: "listeners." + l.Name, Problem: fmt.Sprintf("%q holds a site, which has no regions", s.home.Dir), Hint: "remove the listener"}
		}
		if l.Protocol == Leaf() {
			return &OptionError{Field: "listeners." + l.Name, Problem: fmt.Sprintf("%q holds a site, which has no sites", s.home.Dir), Hint: "remove the listener"}
		}
	}
	s.opts.Mode = siteMode
	run := make([]byte, 4)
	rand.Read(run) // never fails
	name := s.home.Node.Node.Name
	s.opts.Name = name
	s.site = &site{name: name, engine: name + "-" + hex.EncodeToString(run), file: file, since: time.Now()}
	return nil
}

// siteOptions make the engine one of its own, linked to the hub.
func (s *Server) siteOptions(o *broker.Options) error {
	guest, ok := s.fleet.directory.Account(s.site.file.Account)
	if !ok {
		return fmt.Errorf("starting the engine: there is no account %q", s.site.file.Account)
	}
	if _, err := caPool(s.site.file.CA); err != nil {
		return err
	}
	config := siteTLS(func() (*x509.CertPool, error) {
		s.site.mu.Lock()
		defer s.site.mu.Unlock()
		return caPool(s.site.file.CA)
	})
	o.Name, o.Domain = s.site.engine, s.site.name
	o.Remote = &broker.Remote{
		Account: guest.Public, Addrs: s.site.file.Addrs,
		Credentials: s.home.Path(siteCredsName), TLS: config,
	}
	return s.clientOptions(o)
}

// caPool are the authorities of the hub's nodes.
func caPool(ca string) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca)) {
		return nil, errors.New("reading the hub's authority: there is no certificate")
	}
	return roots, nil
}

// siteTLS verifies the nodes of the hub by its authorities, which can change: any of
// them will do, by whatever name it was reached.
func siteTLS(authorities func() (*x509.CertPool, error)) *tls.Config {
	return &tls.Config{
		MinVersion: nodetls.MinVersion,
		// VerifyConnection does all of the work but for the name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("verifying the hub: it showed no certificate")
			}
			roots, err := authorities()
			if err != nil {
				return err
			}
			opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
			for _, cert := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
				return fmt.Errorf("verifying the hub: %w", err)
			}
			return nil
		},
		SessionTicketsDisabled: true,
	}
}

// keepUplink answers the hub, and watches the link, until ctx is done.
func (s *Server) keepUplink(ctx context.Context) {
	session, err := s.serveHub(ctx)
	if err != nil {
		s.fail(fmt.Errorf("serving the hub: %w", err))
		return
	}
	defer session.Close()
	tick := time.NewTicker(sitesCheck)
	defer tick.Stop()
	for {
		s.watchUplink()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// serveHub answers what the hub asks and tells.
func (s *Server) serveHub(ctx context.Context) (*Session, error) {
	t := s.site
	session, err := s.open(s.linkPrincipal(t.file.Account), func(o *nats.Options) error {
		o.AllowReconnect, o.MaxReconnect, o.ReconnectWait = true, -1, 50*time.Millisecond
		return nil
	})
	if err != nil {
		return nil, err
	}
	take := s.answer(on(s.takeTerms))
	_, err1 := session.Subscribe(siteTermsSubject(t.engine), func(msg *nats.Msg) {
		s.group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, siteTimeout)
			defer cancel()
			if err := take(ctx, msg); err != nil && ctx.Err() == nil {
				s.log.Warn("what the hub told could not be taken", "error", err)
			}
		})
	})
	_, err2 := session.Subscribe(siteWho(t.name), func(msg *nats.Msg) { _ = ask.Answer(msg, s.here()) })
	if err := errors.Join(err1, err2, session.Flush()); err != nil {
		session.Close()
		return nil, err
	}
	t.mu.Lock()
	t.session = session
	t.mu.Unlock()
	return session, nil
}

func (s *Server) here() siteHere {
	guest, _ := s.fleet.directory.Account(s.site.file.Account)
	return siteHere{Engine: s.site.engine, Issued: guest.TermsIssued()}
}

// takeTerms makes what the hub says hold here, if it is newer than what is known,
// and returns when it does.
func (s *Server) takeTerms(ctx context.Context, news siteTerms) (any, error) {
	t := s.site
	if news.Account.Name != t.file.Account {
		return nil, fmt.Errorf("taking the terms of account %q: another one is a guest here", news.Account.Name)
	}
	if err := s.takeOperator(&news); err != nil {
		return nil, err
	}
	if err := s.fleet.authority.CheckGuest(news.Account, news.Operator); err != nil {
		return nil, err
	}
	_, err := s.fleet.change(ctx, "account."+t.file.Account, func() (any, error) {
		known, ok := s.fleet.directory.Account(t.file.Account)
		if ok && known.Public != news.Account.Public {
			return nil, fmt.Errorf("taking the terms of account %q: it was made anew at the hub", known.Name)
		}
		if ok && !news.Account.TermsIssued().After(known.TermsIssued()) {
			return nil, errSame
		}
		return news.Account, nil
	})
	if err != nil {
		return nil, err
	}
	if news.JWT != "" {
		// It is used when the link is made the next time.
		if err := renewFile(s.home.Path(siteCredsName), news.JWT); err != nil {
			return nil, err
		}
	}
	return s.here(), s.learnHub(news)
}

// takeOperator returns nil if the operator in news is the hub's, or comes after it.
func (s *Server) takeOperator(news *siteTerms) error {
	t := s.site
	t.mu.Lock()
	known := t.file.Operator
	t.mu.Unlock()
	if news.Operator == "" {
		news.Operator = known
	}
	if err := identity.Succeeds(news.Operator, known); !errors.Is(err, identity.ErrSameOperator) {
		return err
	}
	return nil
}

// learnHub keeps where the hub's nodes are, for the next start, and who they are.
func (s *Server) learnHub(news siteTerms) error {
	t := s.site
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.file
	next.Operator = news.Operator
	if len(news.Addrs) > 0 {
		next.Addrs = news.Addrs
	}
	if _, err := caPool(news.CA); err == nil {
		next.CA = news.CA
	}
	if next.Operator == t.file.Operator && next.CA == t.file.CA && slices.Equal(next.Addrs, t.file.Addrs) {
		return nil
	}
	t.file = next
	return home.WriteJSON(s.home.Path(siteFileName), next)
}

// watchUplink looks whether the hub is there.
func (s *Server) watchUplink() {
	links := s.broker.Leafs()
	t := s.site
	t.mu.Lock()
	defer t.mu.Unlock()
	linked := len(links) > 0
	if linked {
		t.link = links[0]
	}
	if linked == t.linked {
		return
	}
	t.linked, t.since = linked, time.Now()
	if linked {
		s.log.Info("hub is linked", "remote", t.link.Remote)
	} else {
		s.log.Warn("hub is away", "remote", t.link.Remote)
	}
}

// uplink is how the link to the hub stands; nil if this node is no site.
func (s *Server) uplink() *admin.Uplink {
	t := s.site
	if t == nil {
		return nil
	}
	guest, _ := s.fleet.directory.Account(t.file.Account)
	t.mu.Lock()
	defer t.mu.Unlock()
	up := &admin.Uplink{Fleet: t.file.Fleet, Account: t.file.Account, State: admin.SiteAway, Since: t.since, Terms: guest.TermsIssued()}
	if t.linked {
		up.State, up.Remote, up.RoundTrip = admin.SiteLinked, t.link.Remote, t.link.RoundTrip
	}
	return up
}

func (s *Server) uplinkFinding() *doctor.Finding {
	up := s.uplink()
	if up == nil || up.State == admin.SiteLinked || time.Since(up.Since) < hubMissed {
		return nil
	}
	return &doctor.Finding{
		Code: "HUB-AWAY", Severity: doctor.Warning, Subject: s.site.name,
		Text: fmt.Sprintf("the hub %s is away since %s: the newest denials are not known here", up.Fleet, up.Since.UTC().Format(time.RFC3339)),
		Fix:  fmt.Sprintf("look at the network, and at fleetbus leaf ls at the hub; it is tried again by itself at %v", s.site.file.Addrs),
	}
}

// renewAtHub asks the hub for a new JWT of the key of a creds file.
func (s *Server) renewAtHub(ctx context.Context, key string) (any, error) {
	t := s.site
	t.mu.Lock()
	session := t.session
	t.mu.Unlock()
	away := admin.Errorf(admin.Unavailable, "try again when the hub is linked: fleetbus status", "the hub %s does not answer, and renews no creds file", t.file.Fleet)
	if session == nil {
		return nil, away
	}
	body, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	msg, err := session.RequestWithContext(ctx, siteRenew, body)
	if err != nil {
		return nil, away
	}
	var reply admin.Reply
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return nil, fmt.Errorf("reading the hub's answer: %w", err)
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	var renewed admin.UserReply
	if err := json.Unmarshal(reply.Data, &renewed); err != nil {
		return nil, fmt.Errorf("reading the hub's answer: %w", err)
	}
	// Who asked is connected here.
	renewed.CA, renewed.Servers = string(s.certs.CAPEM()), s.clientAddrs()
	return renewed, nil
}

// EnrollSite makes a home in o.Dir of a site of that name. exchange hands the
// request to the hub; what it needs to be repeated is kept in o.Dir until the site
// is made. It is refused with ErrInitialized in a directory that holds a node.
func EnrollSite(o Options, name string, exchange func(enroll.LeafRequest) (enroll.LeafReply, error)) (enroll.LeafReply, error) {
	var none enroll.LeafReply
	o = o.withDefaults()
	h, err := home.Lock(o.Dir)
	if err != nil {
		return none, err
	}
	defer h.Close()
	if there, err := home.Initialized(o.Dir); err != nil || there {
		if err == nil {
			err = fmt.Errorf("%w: %q", ErrInitialized, o.Dir)
		}
		return none, err
	}
	p, authority, err := pendingSite(h, name)
	if err != nil {
		return none, err
	}
	request := enroll.LeafRequest{Version: Version()}
	if request.Machine, err = os.Hostname(); err != nil {
		request.Machine = o.Advertise
	}
	if request.Signer, request.Fleet, err = authority.SiteKeys(); err != nil {
		return none, err
	}
	link, err := nkeys.FromSeed(p.Link)
	if err != nil {
		return none, fmt.Errorf("reading the link's key: %w", err)
	}
	if request.Key, err = link.PublicKey(); err != nil {
		return none, fmt.Errorf("reading the link's key: %w", err)
	}
	reply, err := exchange(request)
	if err != nil {
		// Without an answer it may have been granted what was asked.
		var no *admin.Error
		if errors.As(err, &no) && no.Code != admin.Unavailable && no.Code != admin.Failed {
			err = errors.Join(err, os.Remove(h.Path(sitePendingName)))
		}
		return none, err
	}
	if err := writeSite(h, o, p, authority, reply); err != nil {
		return none, err
	}
	return reply, os.Remove(h.Path(sitePendingName))
}

// pendingSite reads the secrets of a site that is being made, or makes them.
func pendingSite(h *home.Home, name string) (sitePending, *identity.Authority, error) {
	var p sitePending
	authority := new(identity.Authority)
	err := home.ReadJSON(h.Path(sitePendingName), &p)
	if err == nil && p.Name == name {
		return p, authority, authority.Unmarshal(p.Authority)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, nil, err
	}
	p = sitePending{Name: name}
	if authority, p.Offline, err = identity.NewAuthority(name, time.Now()); err != nil {
		return p, nil, fmt.Errorf("making the authority: %w", err)
	}
	if p.Authority, err = authority.Marshal(); err != nil {
		return p, nil, err
	}
	if _, p.Link, err = identity.NewUserKey(); err != nil {
		return p, nil, err
	}
	return p, authority, home.WriteJSON(h.Path(sitePendingName), p)
}

// writeSite makes the directory the home of a site.
func writeSite(h *home.Home, o Options, p sitePending, authority *identity.Authority, reply enroll.LeafReply) error {
	if reply.Name != p.Name {
		return fmt.Errorf("joining: the token is for site %q", reply.Name)
	}
	if err := authority.CheckGuest(reply.Account, reply.Operator); err != nil {
		return err
	}
	link, err := identity.RenewCreds(reply.JWT, p.Link)
	if err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	o.Fleet, o.Name, o.Mode = p.Name, p.Name, siteMode
	g := &genesis{authority: authority, directory: identity.NewDirectory(), now: time.Now()}
	creds, err := g.admin()
	if err != nil {
		return err
	}
	err = errors.Join(
		g.put("node."+o.Name, o.nodeRecord(g.now)),
		g.put("account."+reply.Account.Name, reply.Account),
		home.WriteFile(h.Path("admin", "ca.pem"), authority.ClientsPEM(), 0o600),
		home.WriteFile(h.Path("admin", "admin.creds"), creds, 0o600),
		home.WriteFile(h.Path("offline", "operator.nk"), p.Offline.OperatorSeed, 0o600),
		home.WriteFile(h.Path("offline", "signing.nk"), p.Offline.SigningSeed, 0o600),
		home.WriteFile(h.Path(siteCredsName), link, 0o600),
		home.WriteJSON(h.Path(siteFileName), siteFile{
			Fleet: reply.Fleet, Account: reply.Account.Name, Operator: reply.Operator, CA: reply.CA, Addrs: reply.Addrs,
		}),
	)
	if err != nil {
		return err
	}
	return g.write(h, o, false)
}
