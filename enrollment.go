package fleetbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/home"
)

func (s *Server) addToken(ctx context.Context, r admin.TokenRequest) (any, error) {
	life := r.Life
	if life == 0 {
		life = tokenLife
	}
	if r.Account != "" {
		if _, err := s.wantAccount(r.Account); err != nil {
			return nil, err
		}
	}
	if err := s.mayJoin(r); err != nil {
		return nil, err
	}
	token, text, err := identity.NewToken(r.Kind, s.fleet.authority.Hash(), r.Account, r.Name, life, time.Now())
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "fleetbus token add --help", "%v", err)
	}
	token.Networks = r.Networks
	began := time.Now()
	seq, err := s.fleet.change(ctx, "token."+token.ID, func() (any, error) { return token, nil })
	if err != nil {
		return nil, err
	}
	// The token is good at every node when it is handed out.
	if _, err := s.fleet.spread(ctx, s.conn, seq, began); err != nil {
		return nil, err
	}
	join := ""
	if addrs := s.clientAddrs(); len(addrs) > 0 {
		join = addrs[0]
	}
	return admin.TokenReply{Token: hideSecret(token), Text: text, Join: join}, nil
}

func hideSecret(t identity.Token) identity.Token {
	t.SecretHash = ""
	return t
}

func (s *Server) listTokens(context.Context, struct{}) (any, error) {
	all := []identity.Token{}
	for _, t := range s.fleet.directory.Tokens() {
		all = append(all, hideSecret(t))
	}
	return all, nil
}

func (s *Server) revokeToken(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	seq, err := s.fleet.change(ctx, "token."+r.Name, func() (any, error) {
		t, ok := s.fleet.directory.Token(r.Name)
		switch {
		case !ok:
			return nil, admin.Errorf(admin.NotFound, "fleetbus token ls", "there is no token %q", r.Name)
		case t.Revoked:
			return nil, errSame
		}
		t.Revoked = true
		return t, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// clientAddrs are host:port of the nodes' NATS listeners, this node's first.
func (s *Server) clientAddrs() []string {
	addrs := []string{}
	own, ok := s.fleet.directory.Node(s.fleet.node)
	if addr := s.ownClientAddr(own); ok && addr != "" {
		addrs = append(addrs, addr)
	}
	for _, n := range s.fleet.directory.Nodes() {
		if n.Name != s.fleet.node && n.ClientAddr != "" {
			addrs = append(addrs, n.ClientAddr)
		}
	}
	return addrs
}

// ownClientAddr is where clients reach this node, with the port that it got.
func (s *Server) ownClientAddr(n identity.Node) string {
	if n.ClientAddr != "" {
		return n.ClientAddr
	}
	for _, l := range s.opts.Listeners {
		if _, ok := l.Protocol.(natsProtocol); ok {
			if addr := s.Addr(l.Name); addr != nil {
				return reachable(l.Advertise, addr.String(), s.opts.Advertise)
			}
		}
	}
	return ""
}

// spend marks a token as used by who, under the ledger's locking: of two who
// show it at once one wins. The one who has it may show it again, so that an
// exchange that was cut off can be repeated.
func (s *Server) spend(ctx context.Context, id string, kinds []identity.Kind, who string) (identity.Token, error) {
	var token identity.Token
	_, err := s.fleet.change(ctx, "token."+id, func() (any, error) {
		var ok bool
		token, ok = s.fleet.directory.Token(id)
		if !ok {
			return nil, admin.Errorf(admin.Denied, "fleetbus token add", "the token is not known")
		}
		if token.Used && token.UsedBy == who {
			return nil, errSame
		}
		if err := refuseToken(checkToken(token, kinds, time.Now()), kinds[0]); err != nil {
			return nil, err
		}
		token.Used, token.UsedBy, token.UsedAt = true, who, time.Now()
		return token, nil
	})
	return token, err
}

// checkToken is Token.Check without the secret, which was checked at the door.
func checkToken(t identity.Token, kinds []identity.Kind, now time.Time) error {
	switch {
	case t.Revoked:
		return identity.ErrTokenRevoked
	case t.Used:
		return identity.ErrTokenUsed
	case now.After(t.Expires):
		return identity.ErrTokenExpired
	}
	for _, k := range kinds {
		if t.Kind == k {
			return nil
		}
	}
	return identity.ErrTokenKind
}

// enrollNode makes the holder of a token a node.
func (s *Server) enrollNode(ctx context.Context, tokenID string, r enroll.NodeRequest) (any, error) {
	if err := identity.CheckName(r.Name); err != nil {
		return nil, admin.Errorf(admin.Invalid, "choose another name: --name", "%v", err)
	}
	if why := refuseVersion(r.Version); why != "" {
		return nil, admin.Errorf(admin.Invalid, "upgrade the fleet's nodes first", "%s", why)
	}
	if err := s.unfit(tokenID, r.Name); err != nil {
		return nil, err
	}
	// Asked twice: here so that a token is not spent in vain, and once more under
	// the ledger's locking.
	rival, err := s.rival(r)
	if err != nil {
		return nil, err
	}
	if _, err := s.spend(ctx, tokenID, []identity.Kind{identity.KindNode}, r.Name+" "+r.Seal); err != nil {
		return nil, err
	}
	if rival != nil {
		if err := s.dropMember(ctx, *rival); err != nil {
			return nil, err
		}
	}
	node, err := s.putNode(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.welcome(r, node)
}

// unfit says why a token does not make a node of that name, or nil. A token that
// was used for the name may be the joiner's own, which spend finds out.
func (s *Server) unfit(id, name string) *admin.Error {
	t, ok := s.fleet.directory.Token(id)
	if !ok {
		return admin.Errorf(admin.Denied, "fleetbus token add", "the token is not known")
	}
	if t.Kind == identity.KindNode && t.Name != "" && t.Name != name {
		return admin.Errorf(admin.Denied, "join with --name "+t.Name, "the token is for node %q", t.Name)
	}
	if t.Used && strings.HasPrefix(t.UsedBy, name+" ") {
		return nil
	}
	return refuseToken(checkToken(t, []identity.Kind{identity.KindNode}, time.Now()), identity.KindNode)
}

// refuseToken tells the holder of a token what checkToken says; nil if nothing.
func refuseToken(err error, kind identity.Kind) *admin.Error {
	if err == nil {
		return nil
	}
	return admin.Errorf(admin.Denied, "ask for a new one: fleetbus token add "+string(kind), "%v", err)
}

// rival is the node whose name the joiner wants, if there is another. It is an
// error if the joiner may not have the name.
func (s *Server) rival(r enroll.NodeRequest) (*identity.Node, error) {
	known, ok := s.fleet.directory.Node(r.Name)
	if !ok || known.Removed || known.Key == r.Seal {
		return nil, nil
	}
	if !r.Replace {
		return nil, admin.Errorf(admin.Conflict, "choose another name with --name, or take its place with --replace",
			"node %q exists: it joined at %s from %s", r.Name, known.Joined.UTC().Format(time.RFC3339), known.Advertise)
	}
	if s.fleet.up()[r.Name] {
		return nil, admin.Errorf(admin.Conflict, "stop it first, or choose another name with --name", "node %q is up", r.Name)
	}
	return &known, nil
}

// putNode writes the joiner's record. A name that was a node's before gets the
// next incarnation, because the engine remembers who was removed.
func (s *Server) putNode(ctx context.Context, r enroll.NodeRequest) (identity.Node, error) {
	var node identity.Node
	_, err := s.fleet.change(ctx, "node."+r.Name, func() (any, error) {
		if _, err := s.rival(r); err != nil {
			return nil, err
		}
		known, exists := s.fleet.directory.Node(r.Name)
		node = identity.Node{
			Name: r.Name, Incarnation: 1, Advertise: r.Advertise, ClientAddr: r.Clients, ClusterAddr: r.Cluster,
			Version: r.Version, Key: r.Seal, Joined: time.Now(),
		}
		if exists {
			if known.Key == r.Seal && !known.Removed {
				node = known
				return nil, errSame
			}
			node.Incarnation = max(known.Incarnation, 1) + 1
			node.Audit, node.AuditBefore = known.Audit, known.AuditBefore
		}
		return node, nil
	})
	return node, err
}

// welcome is what makes the joiner a node.
func (s *Server) welcome(r enroll.NodeRequest, node identity.Node) (any, error) {
	authority := s.fleet.authority
	reply := enroll.NodeReply{Fleet: authority.Fleet(), Cluster: s.home.Node.Cluster, Node: node}
	var err error
	if reply.Authority, err = authority.SealTo(r.Seal); err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "the joiner's key cannot be sealed to")
	}
	if reply.Sender, err = authority.SealPublic(); err != nil {
		return nil, err
	}
	reply.Sequence = s.fleet.directory.Seq()
	if reply.Snapshot, err = s.fleet.directory.Marshal(); err != nil {
		return nil, err
	}
	reply.Nodes = s.fleet.directory.Nodes()
	for i, n := range reply.Nodes {
		if n.Name == s.fleet.node && n.ClusterAddr == "" {
			if addr := s.Addr("cluster"); addr != nil {
				reply.Nodes[i].ClusterAddr = reachable(s.opts.Cluster.Advertise, addr.String(), s.opts.Advertise)
			}
		}
	}
	if len(reply.Nodes) == 2 {
		reply.Warning = "two voters survive no failure: add a third node"
	}
	return reply, nil
}

// enrollUser gives the holder of a token credentials.
func (s *Server) enrollUser(ctx context.Context, tokenID string, r enroll.UserRequest) (any, error) {
	token, ok := s.fleet.directory.Token(tokenID)
	if !ok {
		return nil, admin.Errorf(admin.Denied, "fleetbus token add", "the token is not known")
	}
	name := r.Name
	if token.Account != "" && token.Name != "" {
		bound := token.Account + "/" + token.Name
		if name != "" && name != bound {
			return nil, admin.Errorf(admin.Denied, "", "the token is for %q", bound)
		}
		name = bound
	}
	account, user, err := identity.SplitName(name)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "write it as account/name", "%v", err)
	}
	if token.Account != "" && token.Account != account {
		return nil, admin.Errorf(admin.Denied, "", "the token is for account %q", token.Account)
	}
	if account == identity.FleetName {
		return nil, admin.Errorf(admin.Denied, "", "nobody enrolls into account %q", account)
	}
	if r.Key == "" && r.CSR == "" {
		return nil, admin.Errorf(admin.Invalid, "", "neither a key nor a certificate request was sent")
	}
	request := admin.UserRequest{Name: name, Key: r.Key, CSR: r.CSR}
	if token.Kind == identity.KindTarget {
		request.Role = identity.RoleTarget
	}
	g, err := s.newGrant(account, user, request)
	if err != nil {
		return nil, err
	}
	g.Kind = token.Kind
	// The one who may repeat the exchange is known by both keys.
	who := name + " " + r.Key
	if g.CSR != nil {
		sum := sha256.Sum256(g.CSR.RawSubjectPublicKeyInfo)
		who += " " + hex.EncodeToString(sum[:])
	}
	if _, err := s.spend(ctx, tokenID, []identity.Kind{identity.KindUser, identity.KindTarget}, who); err != nil {
		return nil, err
	}
	_, err = s.fleet.change(ctx, userSubject(account, user), func() (any, error) {
		return g.User(s.fleet.directory)
	})
	if err != nil {
		return nil, err
	}
	var granted admin.UserReply
	if err := g.Issue(&granted); err != nil {
		return nil, err
	}
	reply := enroll.UserReply{
		Name: name, JWT: granted.JWT, Chain: granted.Chain, Expires: granted.Expires,
		CA: string(s.certs.CAPEM()), Servers: s.clientAddrs(),
	}
	if token.Kind == identity.KindTarget {
		key, err := s.managerKey(account)
		if err != nil {
			return nil, err
		}
		if err := s.haveCertificates(ctx, account); err != nil {
			return nil, err
		}
		reply.Signer = string(key.Signer())
	}
	return reply, nil
}

// Enroll makes a home in o.Dir of what a fleet answered to a joining node. It is
// refused with ErrInitialized in a directory that holds a node.
func Enroll(o Options, reply enroll.NodeReply, authority *identity.Authority) error {
	o = o.withDefaults()
	h, err := home.Lock(o.Dir)
	if err != nil {
		return err
	}
	defer h.Close()
	if there, err := home.Initialized(o.Dir); err != nil || there {
		if err == nil {
			err = fmt.Errorf("%w: %q", ErrInitialized, o.Dir)
		}
		return err
	}
	if reply.Fleet != authority.Fleet() {
		return errors.New("enrolling: the authority is another fleet's")
	}
	if reply.Founder && reply.Cluster != authority.Region() {
		return errors.New("enrolling: the authority is another region's")
	}
	n := home.NodeFile{Fleet: reply.Fleet, Cluster: reply.Cluster, Node: reply.Node, Founder: reply.Founder}
	for _, peer := range reply.Nodes {
		if peer.Name != reply.Node.Name && peer.ClusterAddr != "" {
			n.Peers = append(n.Peers, peer.ClusterAddr)
		}
	}
	if err := home.WriteFile(h.Path("admin", "ca.pem"), authority.ClientsPEM(), 0o600); err != nil {
		return err
	}
	return h.Write(n, authority, reply.Snapshot, reply.Sequence)
}
