package hub

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// dialTimeout bounds each step of a connection: the network, TLS, the login.
	dialTimeout = 5 * time.Second
	// writeTimeout is how long the hub may take nothing.
	writeTimeout = 10 * time.Second
	// receiveMaximum is how many messages the hub may have under way to us, and the
	// most that we have under way to it.
	receiveMaximum = 256
	// maxIncoming bounds a packet of the hub's, in bytes.
	maxIncoming = 1<<20 + 64<<10
)

// A Step is how far a connection came.
type Step string

// The steps, in their order.
const (
	StepSettings  Step = "settings"
	StepReach     Step = "reach"
	StepTLS       Step = "tls"
	StepVersion   Step = "version"
	StepLogin     Step = "login"
	StepLimits    Step = "limits"
	StepSubscribe Step = "subscribe"
	StepPublish   Step = "publish"
	StepRoundTrip Step = "round trip"
)

// An Error is why the hub cannot be used: the step that failed, and what to do.
// Get one with errors.As.
type Error struct {
	Step Step
	// Code is the hub's reason; 0: it gave none.
	Code packet.Code
	// Err says what is wrong, and Fix what mends it.
	Err error
	Fix string
}

// longest is how much of what a hub says is told of, in bytes: it may give a reason of 64 KiB,
// and show a certificate for as many names as it likes.
const longest = 1000

// Brief is err, of which the beginning is told if it is long: another broker says how much.
func Brief(err error) error {
	if err == nil || len(err.Error()) <= longest {
		return err
	}
	return brief{err}
}

type brief struct{ error }

func (b brief) Error() string {
	return strings.ToValidUTF8(b.error.Error()[:longest], "") + " …"
}

// Unwrap is all of it.
func (b brief) Unwrap() error { return b.error }

// Error is Err's, or the beginning of it.
func (e *Error) Error() string { return Brief(e.Err).Error() }

// Unwrap is Err.
func (e *Error) Unwrap() error { return e.Err }

// A conn is a connection to the hub that has logged in. Reading is for one
// goroutine; send is safe for concurrent use.
type conn struct {
	net.Conn
	r       *packet.Reader
	connack packet.Connack
	silence time.Duration // that ends it
	state   *tls.ConnectionState

	mu  sync.Mutex
	buf []byte
}

// Read ends after silence.
func (c *conn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// send writes packets, in one piece. packet.ErrSize says that the hub takes none of
// that size; any other error is the connection's end.
func (c *conn) send(packets ...packet.Packet) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = c.buf[:0]
	for _, p := range packets {
		if c.buf, err = p.Append(c.buf, packet.V5, int(c.connack.MaximumPacketSize)); err != nil {
			return err
		}
	}
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = c.Write(c.buf)
	if cap(c.buf) > 64<<10 {
		c.buf = nil
	}
	return err
}

// next is the hub's next packet. The error is an *Error.
func (c *conn) next() (packet.Packet, error) {
	p, err := c.r.Next()
	if err == nil {
		return p, nil
	}
	var bad *packet.Error
	var timeout net.Error
	switch {
	case errors.As(err, &bad):
		return nil, &Error{Step: StepVersion, Err: fmt.Errorf("the hub does not keep to MQTT 5.0: %w", err), Fix: "update the hub, or look what listens there"}
	case errors.As(err, &timeout) && timeout.Timeout():
		err = errors.New("it is silent")
	}
	return nil, &Error{Step: StepReach, Err: fmt.Errorf("the connection to the hub broke: %w", err), Fix: "start the hub, or look at the network and at the hub's log"}
}

// qos is the best that both want.
func (c *conn) qos(o *Options) packet.QoS {
	if o.AtMostOnce || c.connack.MaximumQoS != nil && *c.connack.MaximumQoS == 0 {
		return 0
	}
	return 1
}

// window is how many messages may be under way to the hub.
func (c *conn) window() int {
	if c.connack.ReceiveMaximum == 0 {
		return receiveMaximum
	}
	return min(receiveMaximum, int(c.connack.ReceiveMaximum))
}

// dial connects and logs in. clean throws the session at the hub away. The error is
// an *Error.
func dial(ctx context.Context, o *Options, s server, clean bool) (*conn, error) {
	nc, state, err := reach(ctx, o, s)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, silence: dialTimeout, state: state}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	if err := c.login(o, clean); err != nil {
		nc.Close()
		return nil, err
	}
	keep := o.KeepAlive
	if server := c.connack.ServerKeepAlive; server != nil && *server > 0 {
		keep = min(keep, time.Duration(*server)*time.Second)
	}
	c.silence = keep * 3 / 2
	return c, nil
}

// reach connects, as far as TLS.
func reach(ctx context.Context, o *Options, s server) (net.Conn, *tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	var config *tls.Config
	if s.tls {
		var err error
		if config, err = o.config(s.host); err != nil {
			return nil, nil, &Error{Step: StepSettings, Err: err, Fix: "name files that this node may read"}
		}
	}
	nc, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, nil, &Error{Step: StepReach, Err: err, Fix: reachFix(err)}
	}
	if !s.tls {
		return nc, nil, nil
	}
	t := tls.Client(nc, config)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, nil, &Error{Step: StepTLS, Err: fmt.Errorf("no TLS with %s: %w", s.addr, err), Fix: tlsFix(err)}
	}
	state := t.ConnectionState()
	return t, &state, nil
}

func reachFix(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "correct the host's name, or the name server that this machine asks"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "open the port in the firewall between this machine and the hub"
	}
	return "start the hub, or correct the port: 8883 with TLS, 1883 without, as a rule"
}

func tlsFix(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, errPin):
		return "if the hub has a new key, pin that one; if not, somebody is in between"
	case errors.As(err, &unknown):
		return "name the authority of the hub's certificate with ca, or pin its key with pin"
	case errors.As(err, &name):
		return "set server_name to a name in the hub's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the hub's certificate, or set this machine's clock"
	case errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return "the port may be one without TLS: use that of TLS, or mqtt://"
	}
	return "look at the hub's log; it may demand a certificate, set by cert and key"
}

const fixOld = "update the hub to a version with MQTT 5.0: mosquitto has it since 1.6"

// errOld says that the hub speaks an older version.
var errOld = errors.New("the hub speaks MQTT 3.1.1 and not 5.0")

// login sends CONNECT and takes CONNACK.
func (c *conn) login(o *Options, clean bool) error {
	password, err := o.password()
	if err != nil {
		return &Error{Step: StepSettings, Err: err, Fix: "name a file that this node may read"}
	}
	connect := &packet.Connect{
		Version: packet.V5, ClientID: o.ClientID, CleanStart: clean, KeepAlive: uint16(min(o.KeepAlive, maxKeepAlive) / time.Second),
		SessionExpiry: uint32(o.SessionExpiry / time.Second), ReceiveMaximum: receiveMaximum, MaximumPacketSize: maxIncoming,
	}
	if o.User != "" {
		connect.Username, connect.Password = &o.User, password
	}
	if clean {
		connect.SessionExpiry = 0
	}
	sent := c.send(connect)
	in := bufio.NewReaderSize(c, 4<<10)
	head, err := in.Peek(4) // also if it was not sent: TLS 1.3 tells late why not
	if err != nil && sent != nil {
		err = fmt.Errorf("%w, after %w", err, sent)
	}
	if err != nil {
		return c.refused(err)
	}
	// CONNACK of MQTT 3.1.1 is the only one without properties.
	if head[0] == byte(packet.CONNACK)<<4 && head[1] == 2 {
		return &Error{Step: StepVersion, Code: packet.UnsupportedProtocolVersion, Err: errOld, Fix: fixOld}
	}
	c.r = packet.NewReader(in, packet.Server, 4<<10)
	c.r.Version, c.r.Maximum = packet.V5, maxIncoming
	// What the hub lets through may not end the connection, again and again.
	c.r.Limits = packet.Limits{UserProperties: maxIncoming / 5, UserPropertyBytes: maxIncoming, Levels: 1 << 16}
	p, err := c.r.Next()
	if err != nil {
		return c.refused(err)
	}
	ack, ok := p.(*packet.Connack)
	if !ok {
		return c.refused(fmt.Errorf("it answers CONNECT with %v", p.Type()))
	}
	c.connack = *ack
	if !ack.Code.Failed() {
		return nil
	}
	text := fmt.Errorf("the hub refuses the login: %v", ack.Code)
	if ack.ReasonString != "" {
		text = fmt.Errorf("%w: %q", text, ack.ReasonString)
	}
	e := &Error{Step: StepLogin, Code: ack.Code, Err: text}
	switch ack.Code {
	case packet.UnsupportedProtocolVersion:
		e.Step, e.Err, e.Fix = StepVersion, errOld, fixOld
	case packet.BadUserNameOrPassword:
		e.Fix = "correct user and password_file, or make that user at the hub"
	case packet.NotAuthorized, packet.Banned:
		e.Fix = "let this user, or this certificate, in at the hub: user, password_file, cert"
	case packet.ClientIdentifierNotValid:
		e.Fix = "set client_id to one that the hub takes"
	case packet.UseAnotherServer, packet.ServerMoved:
		e.Fix = "set servers to where the hub is now"
		if ack.ServerReference != "" {
			e.Fix = fmt.Sprintf("set servers to where the hub is now: %.200q", ack.ServerReference)
		}
	default:
		e.Fix = "look at the hub's log"
	}
	return e
}

// refused is what came in place of CONNACK.
func (c *conn) refused(err error) error {
	var bad *packet.Error
	var timeout net.Error
	var remote *net.OpError
	fix := "look at the hub's log; it may demand a certificate, or speak an older MQTT"
	switch {
	case errors.As(err, &remote) && remote.Op == "remote error", c.state != nil && errors.Is(err, syscall.ECONNRESET):
		return &Error{Step: StepTLS, Err: fmt.Errorf("the hub refuses TLS: %w", err), Fix: "give this node a certificate of an authority that the hub trusts: cert, key"}
	case errors.As(err, &bad):
		err, fix = fmt.Errorf("what answers does not speak MQTT 5.0: %w", err), "correct the port, or look what listens there"
	case errors.As(err, &timeout) && timeout.Timeout():
		err, fix = errors.New("it accepts connections and does not answer"), "correct the port, or look what listens there"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the hub closed the connection in place of an answer to CONNECT")
	}
	return &Error{Step: StepVersion, Err: err, Fix: fix}
}

// subscribe asks for filters, and returns when the hub has answered. What comes
// before the answer is given to other.
func (c *conn) subscribe(qos packet.QoS, other func(packet.Packet) error, filters ...string) error {
	s := &packet.Subscribe{ID: 1}
	for _, filter := range filters {
		s.Subscriptions = append(s.Subscriptions, packet.Subscription{Filter: filter, QoS: qos, NoLocal: true, RetainHandling: packet.RetainNever})
	}
	if err := c.send(s); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	for {
		p, err := c.next()
		if err != nil {
			return err
		}
		ack, ok := p.(*packet.Suback)
		if !ok {
			if err := other(p); err != nil {
				return err
			}
			continue
		}
		for i, code := range ack.Codes {
			if code.Failed() && i < len(filters) {
				return &Error{Step: StepSubscribe, Code: code, Err: fmt.Errorf("the hub refuses a subscription of %q: %v", filters[i], code),
					Fix: fmt.Sprintf("let this user read %q at the hub", filters[i])}
			}
		}
		return nil
	}
}

// disconnected is the error of a DISCONNECT of the hub's.
func disconnected(d *packet.Disconnect) error {
	err := fmt.Errorf("the hub ended the connection: %v", d.Code)
	if d.ReasonString != "" {
		err = fmt.Errorf("%w: %q", err, d.ReasonString)
	}
	e := &Error{Step: StepLogin, Code: d.Code, Err: err, Fix: "look at the hub's log"}
	if d.Code == packet.SessionTakenOver {
		e.Fix = "give every node a name of its own, or set client_id"
	}
	return e
}
