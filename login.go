package fleetbus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// A Protocol speaks a foreign protocol to the clients that connect to ln. The
// server owns ln and its TLS, so that a Protocol never opens a socket; the
// connections it accepts are TLS connections whose handshake is done, unless the
// listener is in plain text. If ln is of TLS, it has a method Advertised, which is the
// host:port that clients are told, and may be empty; a Protocol with a method ALPN,
// which returns names of application protocols, has them offered there. Serve returns when ctx is done and its sessions are
// closed; an error before that stops the server.
type Protocol interface {
	Serve(ctx context.Context, ln net.Listener, login Login) error
}

// Login exchanges what a client presented for a session that can do only what
// the principal may do, once it is open. It is the one capability a Protocol is
// given. It is safe for concurrent use. An error that wraps identity.ErrUnauthorized may be shown
// to the client; what only the operator may know has been logged. One that wraps
// identity.ErrTooManyConnections says that the account has as many as it may.
type Login func(context.Context, identity.Credentials) (*Session, error)

// Account opens a second connection of the session's account, which may do what
// permissions say and not what the principal may: with it a Protocol keeps what is
// the protocol's own, such as the state of a client that is away. It is the
// caller's, and may serve all sessions of the account; opts are as those of Open. In
// Client mode there is none.
func (s *Session) Account(name string, permissions identity.Permissions, opts ...nats.Option) (*Session, error) {
	if s.server == nil {
		return nil, fmt.Errorf("opening a connection of account %q for %q: this server has no engine", s.Principal.Account, name)
	}
	return s.server.open(identity.Principal{Account: s.Principal.Account, Name: name, Kind: identity.KindService, Permissions: permissions}, opts...)
}

// natsProtocol is the engine's own.
type natsProtocol struct{}

// Serve is not called: the engine serves its own protocol.
func (natsProtocol) Serve(context.Context, net.Listener, Login) error {
	return errors.New("the engine serves NATS itself")
}

// NATS returns the protocol that the engine speaks. A server has at most one
// listener with it.
func NATS() Protocol { return natsProtocol{} }

// leafProtocol is what the engines of a hub and its sites speak.
type leafProtocol struct{}

// Serve is not called: the engine serves its own protocol.
func (leafProtocol) Serve(context.Context, net.Listener, Login) error {
	return errors.New("the engine serves the links of sites itself")
}

// Leaf returns the protocol by which sites are linked. A server has at most one
// listener with it, called "leaf"; it always has TLS.
func Leaf() Protocol { return leafProtocol{} }

// gatewayProtocol is what the engines of regions speak.
type gatewayProtocol struct{}

// Serve is not called: the engine serves its own protocol.
func (gatewayProtocol) Serve(context.Context, net.Listener, Login) error {
	return errors.New("the engine serves the links of regions itself")
}

// Gateway returns the protocol by which regions are linked. A server has at most one
// listener with it, called "gateway"; it always has TLS, on which both sides show
// certificates of the fleet's.
func Gateway() Protocol { return gatewayProtocol{} }

// Session opens a connection inside the process as p, which the caller, who owns
// the process, vouches for. Permissions of p that are all empty stand for those
// of the role "client". The account has to exist. In Client mode it is a
// connection to one of the endpoints, with their credentials, and p is ignored.
func (s *Server) Session(ctx context.Context, p identity.Principal) (*Session, error) {
	select {
	case <-s.ready:
	default:
		return nil, errors.New("opening a session: the server is not ready")
	}
	if s.options().Mode == Client {
		nc, err := s.dialFleet()
		if err != nil {
			return nil, err
		}
		return &Session{Principal: p, Conn: nc}, nil
	}
	if p.Kind == "" {
		p.Kind = identity.KindService
	}
	if p.Permissions.Empty() {
		role, _ := s.fleet.directory.Role("client")
		p.Permissions = role.Permissions
	}
	return s.open(p)
}

// loginOf is the Login of a listener.
func (s *Server) loginOf(l Listener) Login {
	if l.Account != "" {
		return s.strangers(l)
	}
	return s.login(l.Name)
}

// LoginBy is a Login for what the program itself listens to, such as a Protocol that is
// a part of its own web server. listener is what roles that are bound to listeners know
// it by. Before the server is ready everybody is refused.
func (s *Server) LoginBy(listener string) Login {
	return func(ctx context.Context, c identity.Credentials) (*Session, error) {
		select {
		case <-s.ready:
		default:
			return nil, errors.New("opening a session: the server is not ready")
		}
		if s.fleet == nil {
			return nil, errors.New("opening a session: this server has no engine")
		}
		return s.login(listener)(ctx, c)
	}
}

// login is the Login of one listener, by its name.
func (s *Server) login(listener string) Login {
	return func(ctx context.Context, c identity.Credentials) (*Session, error) {
		c.Listener, c.Vouched = listener, ""
		if c.Link != "" {
			c.Vouched = s.redeem(c.Link)
		}
		seq := s.fleet.directory.Seq()
		p, err := s.authenticate(ctx, c)
		if err != nil {
			s.tellRefusal(c, p, err)
			return nil, err
		}
		session := &Session{Principal: p, server: s, listener: listener, remote: c.Remote, started: time.Now()}
		if err := s.fleet.resting.add(session, s.mayRest(p.Account)); err != nil {
			s.tellRefusal(c, p, err)
			return nil, err
		}
		if err := s.reconsider(ctx, c, seq, p); err != nil {
			session.Close()
			s.tellRefusal(c, p, err)
			return nil, err
		}
		if err := s.crowded(ctx, session); err != nil {
			s.tellRefusal(c, p, err)
			return nil, err
		}
		session.tellConnect()
		return session, nil
	}
}

// crowded says that the principal of a session that has just been let in has too
// many, if it may have a number only.
func (s *Server) crowded(ctx context.Context, session *Session) error {
	p := session.Principal
	account, ok := s.fleet.account(p.Account)
	if !ok || p.Limits.Connections == 0 {
		return nil
	}
	if err := s.thin(ctx, account, []string{p.Name}); err != nil {
		s.log.Warn("the connections of a user could not be counted", "principal", p, "error", err)
	}
	if session.IsClosed() {
		return fmt.Errorf("letting in %q: %w", p, identity.ErrTooManyConnections)
	}
	return nil
}

// mayRest is how many sessions of an account may rest on this node. The engine
// counts its own connections over all nodes; those that rest each node counts for
// itself.
func (s *Server) mayRest(account string) int {
	a, ok := s.fleet.directory.Account(account)
	if !ok || a.Limits.Connections == 0 {
		return math.MaxInt
	}
	return int(a.Limits.Connections) - s.broker.AccountConnections(a.Public)
}

// errChanged is why who was just let in has to come in again.
var errChanged = errors.New("what the principal may do has changed meanwhile")

// reconsider authenticates p again, who was let in by the state after event seq, if
// there is a newer one: a denial or a change of the role that came between was
// acted on before the connection was there to be closed. A later one finds it.
func (s *Server) reconsider(ctx context.Context, c identity.Credentials, seq uint64, p identity.Principal) error {
	if s.fleet.directory.Seq() == seq {
		return nil
	}
	again, err := s.authenticate(ctx, c)
	if err != nil {
		return err
	}
	again.Expires = p.Expires
	if !reflect.DeepEqual(again, p) {
		return errChanged
	}
	return nil
}

// authenticate asks the directory and logs a refusal.
func (s *Server) authenticate(ctx context.Context, c identity.Credentials) (identity.Principal, error) {
	if c.Username != "" && c.Prove == nil && c.Listener != natsListenerName { // the callout counts its own
		leave, err := s.passwords.Enter(ctx, c.Remote) // who guesses a thousand at once is not waited for
		if err != nil {
			return identity.Principal{}, strangers.ErrQueue
		}
		defer leave()
	}
	p, err := s.fleet.directory.Authenticate(c, s.fleet.authority.Fleet(), time.Now())
	if err != nil {
		s.log.Warn("client refused", "listener", c.Listener, "remote", c.Remote, "error", operatorText(err))
	}
	return p, err
}

// operatorText is what the operator may know of an error.
func operatorText(err error) string {
	var refusal *identity.Refusal
	if errors.As(err, &refusal) {
		return refusal.Operator()
	}
	return err.Error()
}

// open makes an open session of a principal.
func (s *Server) open(p identity.Principal, opts ...nats.Option) (*Session, error) {
	session := &Session{Principal: p, server: s, started: time.Now()}
	if err := session.Open(opts...); err != nil {
		return nil, err
	}
	return session, nil
}

// connect makes the in-process connection of a principal, with a key that exists
// for this connection only.
func (s *Server) connect(p identity.Principal, opts ...nats.Option) (*nats.Conn, error) {
	return s.dialAs(s.broker.Connect, p, opts...)
}

// dialAs is connect by one of the broker's ways.
func (s *Server) dialAs(dial func(...nats.Option) (*nats.Conn, error), p identity.Principal, opts ...nats.Option) (*nats.Conn, error) {
	account, ok := s.fleet.account(p.Account)
	if !ok {
		return nil, fmt.Errorf("opening a session of %q: there is no account %q", p, p.Account)
	}
	token, key, err := s.fleet.authority.ServiceCredentials(account, p, time.Now())
	if err != nil {
		return nil, fmt.Errorf("opening a session: %w", err)
	}
	last, done := s.meter.Inside(p.Account)
	options := append([]nats.Option{
		nats.Name(p.Name),
		nats.CustomInboxPrefix(p.Inbox()),
		nats.NoReconnect(),
		nats.ErrorHandler(s.sessionError(p)),
		nats.UserJWT(func() (string, error) { return token, nil }, key.Sign),
	}, append(opts, last)...)
	nc, err := dial(options...)
	// The ledger's event of an account, or of its keys, may be known here and not have been
	// handed to the engine yet.
	if errors.Is(err, nats.ErrAuthorization) && s.fleet.storeAccounts([]identity.Account{account}) == nil {
		nc, err = dial(options...)
	}
	if err != nil {
		done()
		return nil, fmt.Errorf("opening a session of %q: %w", p, err)
	}
	return nc, nil
}

// sessionError logs what a session is told by itself. Without it the library
// would write to the process's standard error.
func (s *Server) sessionError(p identity.Principal) nats.ErrHandler {
	return func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
			return // the engine says it, or the session's end does
		}
		s.log.Warn("session error", "principal", p, "error", err)
	}
}
