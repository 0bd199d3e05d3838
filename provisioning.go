package fleetbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/grant"
)

// provisionerLife is how long a provisioner is one before it has to ask again.
const provisionerLife = time.Hour

// errNotIsolated is why no stranger comes in.
var errNotIsolated = errors.New("what is exchanged with other accounts would be open to strangers")

// strangers is the Login of a listener that has an account: all who come are
// strangers there, whatever they show.
func (s *Server) strangers(l Listener) Login {
	return func(_ context.Context, c identity.Credentials) (*Session, error) {
		c.Listener = l.Name
		p, err := s.stranger(l, c)
		if err == nil {
			err = s.isolated(l.Account)
		}
		session := &Session{Principal: p, server: s, listener: l.Name, remote: c.Remote, started: time.Now()}
		if err == nil {
			err = s.fleet.resting.add(session, s.mayRest(l.Account))
		}
		if err != nil {
			s.log.Warn("client refused", "listener", c.Listener, "remote", c.Remote, "error", operatorText(err))
			s.tellRefusal(c, p, err)
			return nil, err
		}
		session.tellConnect()
		return session, nil
	}
}

// stranger is who comes in by a listener that has an account.
func (s *Server) stranger(l Listener, c identity.Credentials) (identity.Principal, error) {
	if l.Role == "" {
		return identity.Stranger(l.Account, c.Username, c.Remote, time.Now())
	}
	return s.fleet.directory.Anyone(l.Account, l.Role, c, time.Now())
}

// isolated says why strangers may not come into an account; nil if they may.
func (s *Server) isolated(account string) error {
	if _, ok := s.fleet.directory.Account(account); !ok {
		return fmt.Errorf("there is no account %q for strangers: fleetbus account add %s", account, account)
	}
	if f := s.fleet.directory.Flows(account); len(f.Exports)+len(f.Imports) > 0 {
		return fmt.Errorf("account %q is not isolated: %w", account, errNotIsolated)
	}
	return nil
}

// Raw is Open for a Protocol whose clients speak the engine's own. It returns the
// connection to the engine before a word was said there, which is the caller's and ends
// with the session; the JWT of the principal; and what signs the engine's nonce.
func (s *Session) Raw() (conn net.Conn, token string, sign func(nonce []byte) ([]byte, error), err error) {
	account, ok := s.server.fleet.account(s.Principal.Account)
	if !ok {
		return nil, "", nil, fmt.Errorf("opening a session of %q: there is no account %q", s.Principal, s.Principal.Account)
	}
	token, key, err := s.server.fleet.authority.ServiceCredentials(account, s.Principal, time.Now())
	if err == nil {
		conn, err = s.server.broker.Dial()
	}
	if err != nil {
		return nil, "", nil, fmt.Errorf("opening a session of %q: %w", s.Principal, err)
	}
	s.mu.Lock()
	s.raw = conn
	s.server.meter.Opened(s.Principal.Account)
	over := s.over
	s.mu.Unlock()
	s.server.fleet.resting.wake(s)
	if over {
		conn.Close()
		s.server.meter.Closed(s.Principal.Account)
		return nil, "", nil, net.ErrClosed
	}
	return conn, token, key.Sign, nil
}

// openProvisioner lets an administrator or a user of role provisioner answer
// strangers in an account.
func (s *Server) openProvisioner(_ context.Context, r admin.ProvisionerRequest) (any, error) {
	account, ok := s.fleet.directory.Account(r.Account)
	if !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account add "+r.Account, "there is no account %q for machines that nobody knows", r.Account)
	}
	if account.Guest() {
		return nil, admin.Errorf(admin.Invalid, "run it at the hub", "account %q is a guest here: its provisioners are the hub's", r.Account)
	}
	csr, err := grant.ParseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	if !nkeys.IsValidPublicUserKey(r.Key) {
		return nil, admin.Errorf(admin.Invalid, "", "the key is not a public user nkey")
	}
	now := time.Now()
	// Of the key, so that it keeps its name when it asks again.
	p := identity.Provisioner(r.Account, "provisioner-"+strings.ToLower(r.Key[1:17]), now.Add(provisionerLife))
	reply := admin.ProvisionerReply{
		Fleet: s.fleet.authority.Fleet(), Name: p.Name, Expires: p.Expires, Replicas: min(3, len(s.fleet.directory.Nodes())), Servers: s.clientAddrs(),
	}
	chain, err := s.fleet.authority.SignProvisioner(csr, p.Account, p.Name, provisionerLife, now)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "%v", err)
	}
	reply.Chain = string(chain)
	reply.JWT, err = s.fleet.authority.ProvisionerJWT(account, p, r.Key, now)
	return reply, err
}

// provisionMachine gives a machine its identity: a new user, or the one that has that
// very key.
func (s *Server) provisionMachine(ctx context.Context, r admin.ProvisionRequest) (any, error) {
	began := time.Now()
	account, name, err := identity.SplitName(r.Name)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "write it as account/name", "%v", err)
	}
	if refusal := admin.Provisionable(account, r.Role); refusal != nil {
		return nil, refusal
	}
	if r.Key == "" || r.CSR == "" || r.Role == "" {
		return nil, admin.Errorf(admin.Invalid, "", "a machine has a key, a certificate request and a role")
	}
	mine := func() error {
		known, ok := s.fleet.directory.User(account, name)
		if ok && !slices.ContainsFunc(known.Keys, func(k identity.UserKey) bool { return k.Public == r.Key }) {
			return admin.Errorf(admin.Conflict, "fleetbus user rm "+r.Name+", if it is gone for good", "%s is another's name", r.Name)
		}
		return nil
	}
	if err := mine(); err != nil {
		return nil, err
	}
	g, err := s.newGrant(account, name, admin.UserRequest{Name: r.Name, Role: r.Role, Key: r.Key, CSR: r.CSR})
	if err != nil {
		return nil, err
	}
	var user identity.User
	seq, err := s.fleet.change(ctx, userSubject(account, name), func() (any, error) {
		if err := mine(); err != nil {
			return nil, err
		}
		user, err = g.User(s.fleet.directory)
		return user, err
	})
	if err != nil {
		return nil, err
	}
	reply := admin.UserReply{User: user.Told(), CA: string(s.certs.CAPEM()), Servers: s.clientAddrs()}
	if err := g.Issue(&reply); err != nil {
		return nil, err
	}
	// A node that does not know the machine yet would turn it away.
	reply.Spread, err = s.fleet.spread(ctx, s.conn, seq, began)
	return reply, err
}

// tellProvision tells of a machine that asked for an identity.
func (s *Server) tellProvision(_ context.Context, ev admin.Event) (any, error) {
	if _, ok := s.fleet.directory.Account(ev.Account); !ok {
		ev.Account = "" // a rule may name one that there is not
	}
	s.events.Tell(admin.Event{
		Kind: admin.EventProvision, Account: ev.Account, Principal: ev.Principal, Address: ev.Address, State: ev.State, Reason: ev.Reason,
	})
	return struct{}{}, nil
}
