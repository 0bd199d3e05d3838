package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// Why a joiner gets no further. They are found with errors.Is in the errors of
// Dial, Join.Preflight, Client.Node and Client.User.
var (
	// ErrAuthority is a server that the token does not belong to: it is somebody
	// else's, or its fleet was made anew.
	ErrAuthority = errors.New("the server has another authority (a reinstalled first node?)")
	// ErrClock is a server's certificate that does not hold at this time.
	ErrClock = errors.New("the server's certificate does not hold at this time")
	// ErrRefused is a token that the fleet does not accept.
	ErrRefused = errors.New("the fleet refuses the token: it is used, expired, revoked or unknown")
)

// A HostError is a server of the right fleet whose certificate does not carry
// the name that was dialed.
type HostError struct {
	// Host that was dialed, and the names and addresses that the certificate has.
	Host  string
	Names []string
}

// Error names both.
func (e *HostError) Error() string {
	return fmt.Sprintf("the server's certificate is not for %q but for %s", e.Host, strings.Join(e.Names, ", "))
}

// An Error is what stands in the way of joining and what a person can do about
// it. Dial and Join.Preflight return it; get it with errors.As.
type Error struct {
	// Err is what is wrong.
	Err error
	// Fix is one command or setting; empty if there is none.
	Fix string
}

// Error is the text of Err.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// A Join is who wants to join, and where. Host and Token suffice for a user; a
// node needs the fields from Name to Version too. It is a plain value.
type Join struct {
	// Host is a name or address of any node, with or without the port of its
	// NATS listener. Default port: 4222.
	Host string
	// Token is the text of an enrollment token.
	Token string

	// Name of the new node.
	Name string
	// Advertise is the name or address under which the nodes reach it. Without,
	// Preflight does not find out whether they do.
	Advertise string
	// Clients and Cluster are host:port where it is going to listen. Empty: it is
	// not.
	Clients, Cluster string
	// Replace lets it take the place of a node of that name.
	Replace bool
	// Version of its program.
	Version string

	// Timeout of each step: connecting, asking the nodes, one attempt at the
	// exchange. Default: 5s.
	Timeout time.Duration
	// Progress, if it is set, is called by Preflight with each check when it is
	// done.
	Progress func(Check)
}

const (
	defaultPort = "4222"
	// attempts at an exchange, and the first pause between them; it doubles.
	attempts = 5
	pause    = 250 * time.Millisecond
)

func (j Join) timeout() time.Duration {
	if j.Timeout > 0 {
		return j.Timeout
	}
	return 5 * time.Second
}

// address splits Host and puts the default port where there is none.
func (j Join) address() (host, port string, err error) {
	host, port, err = net.SplitHostPort(j.Host)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(j.Host, "["), "]"), defaultPort
		if _, notIP := netip.ParseAddr(host); notIP != nil && strings.Contains(host, ":") {
			return "", "", fmt.Errorf("reading host %q: %w", j.Host, err)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("reading host %q: port %q is not a number from 1 to 65535", j.Host, port)
	}
	if host == "" {
		return "", "", fmt.Errorf("reading host %q: it has no name or address", j.Host)
	}
	return host, port, nil
}

// subject is where the holder of the token asks.
func (j Join) subject(of string) (string, error) {
	token, err := identity.ParseToken(j.Token)
	return of + "." + token.ID, err
}

// earlyPing is in what the library says of a server that, on a slow link, wants to
// know whether the client is there before the client is through with its greeting.
const earlyPing = "expected 'PONG', got 'PING'"

// connect opens a connection that may only enroll. Its error is an *Error.
func (j Join) connect(ctx context.Context) (nc *nats.Conn, err error) {
	for range attempts {
		if nc, err = j.connectOnce(ctx); err == nil || !strings.Contains(err.Error(), earlyPing) {
			break
		}
	}
	return nc, err
}

// connectOnce is connect without a second try.
func (j Join) connectOnce(ctx context.Context) (*nats.Conn, error) {
	token, err := identity.ParseToken(j.Token)
	if err != nil {
		return nil, explain(err)
	}
	host, port, err := j.address()
	if err != nil {
		return nil, explain(err)
	}
	addr := net.JoinHostPort(host, port)
	ctx, cancel := context.WithTimeout(ctx, j.timeout())
	defer cancel()
	d := &dialer{ctx: ctx}
	nc, err := nats.Connect("tls://"+addr,
		nats.Name("fleetbus join"),
		nats.Token(j.Token),
		nats.Secure(tlsConfig(token, host)),
		nats.CustomInboxPrefix(token.InboxPrefix()),
		nats.SetCustomDialer(d), nats.SkipHostLookup(),
		nats.Timeout(2*j.timeout()), // the context is faster
		nats.NoReconnect(),
		// What it would be told is in LastError too; the default prints it.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	)
	switch {
	case d.err != nil:
		err = d.err // the library gives a refused connection another name
	case !d.done():
		if nc != nil {
			nc.Close()
		}
		err = fmt.Errorf("no answer within %s: %w", j.timeout(), context.Cause(ctx))
	}
	if err != nil {
		return nil, explain(fmt.Errorf("connecting to %q: %w", addr, err))
	}
	return nc, nil
}

// A dialer ties a connection that is being made to a context, which the library
// knows nothing of.
type dialer struct {
	ctx  context.Context
	stop func() bool
	err  error
}

// Dial opens the connection, and sees to it that it is closed when the context
// is done.
func (d *dialer) Dial(network, addr string) (net.Conn, error) {
	var nd net.Dialer
	conn, err := nd.DialContext(d.ctx, network, addr)
	if err != nil {
		d.err = err
		return nil, err
	}
	d.stop = context.AfterFunc(d.ctx, func() { conn.Close() })
	return conn, nil
}

// done unties the connection. It returns false if the context was faster.
func (d *dialer) done() bool { return d.stop == nil || d.stop() }

// tlsConfig trusts whom the token trusts: the certificates of the authority
// come with the handshake, and the token has their hash.
func tlsConfig(token identity.TokenText, host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: token.AuthorityHash + "." + ServerName,
		// The joiner has no roots yet; VerifyConnection does all of the work.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verify(token, state.PeerCertificates, host, time.Now())
		},
	}
}

// verify returns nil if chain is that of a server of the token's fleet, holds at
// this time and, if host is a name rather than an address, is for it. An address
// is not compared: it may be one that the node does not know of.
func verify(token identity.TokenText, chain []*x509.Certificate, host string, now time.Time) error {
	if err := token.VerifyServer(chain, now); err != nil {
		var invalid x509.CertificateInvalidError
		if !errors.As(err, &invalid) {
			return fmt.Errorf("%w: %w", ErrAuthority, err)
		}
		if invalid.Reason == x509.Expired {
			return fmt.Errorf("%w: it is %s here and the certificate is for %s to %s", ErrClock,
				now.UTC().Format(time.RFC3339), chain[0].NotBefore.Format(time.RFC3339), chain[0].NotAfter.Format(time.RFC3339))
		}
		return err
	}
	leaf := chain[0]
	if _, err := netip.ParseAddr(host); err == nil || leaf.VerifyHostname(host) == nil {
		return nil
	}
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return &HostError{Host: host, Names: names}
}

// explain adds to err what a person can do about it.
func explain(err error) *Error {
	var name *HostError
	var timeout net.Error
	switch {
	case errors.As(err, &name) && len(name.Names) > 0:
		return &Error{Err: err, Fix: "join by " + name.Names[0]}
	case errors.Is(err, ErrAuthority):
		return &Error{Err: err, Fix: "make a token on a node of the fleet that is there now: fleetbus token add"}
	case errors.Is(err, ErrClock):
		return &Error{Err: err, Fix: "set the clock of this machine, or on a node: fleetbus node renew"}
	case errors.Is(err, nats.ErrAuthorization):
		return &Error{Err: fmt.Errorf("%w: %w", ErrRefused, err), Fix: "make another on a node: fleetbus token add"}
	case errors.Is(err, nats.ErrSecureConnWanted):
		return &Error{Err: err, Fix: "join by a listener that has TLS"}
	case errors.Is(err, nats.ErrNoInfoReceived), errors.Is(err, nats.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return &Error{Err: err, Fix: "check that host and port are those of a NATS listener, and the firewall between"}
	}
	return &Error{Err: err}
}

// A Client holds a connection that may only enroll. Get one from Dial; it is not
// safe for concurrent use.
type Client struct {
	join Join
	nc   *nats.Conn
}

// Dial connects to the node j.Host. The server is verified by the authority's
// hash in the token, over TLS 1.3. The error is an *Error and may wrap
// ErrAuthority, ErrClock, ErrRefused or a *HostError. The caller closes the
// Client.
func Dial(ctx context.Context, j Join) (*Client, error) {
	nc, err := j.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &Client{join: j, nc: nc}, nil
}

// Close ends the connection.
func (c *Client) Close() { c.nc.Close() }

// Node exchanges the token for what makes the joiner a node. When an answer does
// not come it asks again, up to five times: the fleet gives the same answer to
// the same token and keys. The error is an *admin.Error if the fleet refuses,
// and else may be an *Error or wrap context.DeadlineExceeded or
// nats.ErrNoResponders.
func (c *Client) Node(ctx context.Context, r NodeRequest) (NodeReply, error) {
	return exchange[NodeReply](ctx, c, NodeSubject, r)
}

// Leaf exchanges the token for what makes the joiner a site, or asks what it is
// for. For the rest see Node.
func (c *Client) Leaf(ctx context.Context, r LeafRequest) (LeafReply, error) {
	return exchange[LeafReply](ctx, c, LeafSubject, r)
}

// Region exchanges the token for what makes the joiner the first node of a region, or
// asks what it is for. For the rest see Node.
func (c *Client) Region(ctx context.Context, r RegionRequest) (NodeReply, error) {
	return exchange[NodeReply](ctx, c, RegionSubject, r)
}

// User exchanges the token for credentials. For the rest see Node.
func (c *Client) User(ctx context.Context, r UserRequest) (UserReply, error) {
	return exchange[UserReply](ctx, c, UserSubject, r)
}

func exchange[Out any](ctx context.Context, c *Client, subject string, in any) (Out, error) {
	var none Out
	subject, err := c.join.subject(subject)
	if err != nil {
		return none, err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return none, fmt.Errorf("encoding the request: %w", err)
	}
	wait := pause
	for attempt := 1; ; attempt++ {
		out, err := ask[Out](ctx, c, subject, body)
		if err == nil || attempt == attempts || !passing(err) || ctx.Err() != nil {
			return out, err
		}
		select {
		case <-ctx.Done():
			return none, fmt.Errorf("exchanging the token: %w: %w", context.Cause(ctx), err)
		case <-time.After(wait):
			wait *= 2
		}
	}
}

// ask makes one attempt, over a new connection if the old one is gone.
func ask[Out any](ctx context.Context, c *Client, subject string, body []byte) (Out, error) {
	var none Out
	if !c.nc.IsConnected() {
		nc, err := c.join.connect(ctx)
		if err != nil {
			return none, err
		}
		c.nc = nc
	}
	ctx, cancel := context.WithTimeout(ctx, c.join.timeout())
	defer cancel()
	msg, err := c.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		// A request that is not permitted goes unanswered; why is told aside.
		return none, fmt.Errorf("exchanging the token: %w", inOneLine([]error{err, c.nc.LastError()}))
	}
	out, err := open[Out](msg.Data)
	if err != nil {
		return none, fmt.Errorf("exchanging the token: %w", err)
	}
	return out, nil
}

// open takes a reply out of its envelope.
func open[Out any](data []byte) (Out, error) {
	var envelope struct {
		Error *admin.Error `json:"error"`
		Data  *Out         `json:"data"`
	}
	var none Out
	if err := json.Unmarshal(data, &envelope); err != nil {
		return none, fmt.Errorf("reading the answer: %w", err)
	}
	if envelope.Error != nil {
		return none, envelope.Error
	}
	if envelope.Data == nil {
		return none, errors.New("reading the answer: it is empty")
	}
	return *envelope.Data, nil
}

// passing reports whether err may be gone at the next attempt.
func passing(err error) bool {
	var refusal *admin.Error
	if errors.As(err, &refusal) {
		return refusal.Code == admin.Unavailable
	}
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrTimeout) || errors.As(err, &network)
}
