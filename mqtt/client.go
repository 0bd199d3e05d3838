package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// serve serves one client.
func (p *Protocol) serve(ctx context.Context, conn net.Conn, state *tls.ConnectionState, login fleetbus.Login) {
	defer conn.Close()
	defer func() { // one client's packet never ends the process
		if what := recover(); what != nil {
			p.log().Error("an MQTT connection failed", "remote", conn.RemoteAddr().String(), "panic", what)
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	r := packet.NewReader(conn, packet.Client, readBuffer)
	r.Maximum = connectMax
	r.Burst = readBurst
	if conn.SetReadDeadline(time.Now().Add(connectTimeout)) != nil || ctx.Err() != nil {
		return
	}
	first, err := r.Next()
	c, ok := first.(*packet.Connect)
	if err != nil || !ok {
		p.refuse(conn, r.Version, err)
		return
	}
	s := &session{
		p: p, conn: conn, r: r, v: c.Version, id: c.ClientID, done: make(chan struct{}), out: newOutbox(conn, p.pending(), &p.buffers),
		room: make(chan struct{}, 1), space: make(chan struct{}, 1), flights: map[uint16]*flight{}, in: map[uint16]*arrival{},
		aliases: map[uint16]string{}, quota: 0xFFFF,
	}
	s.out.v, s.out.max, s.out.drained = c.Version, int(c.MaximumPacketSize), s.drained
	if c.ReceiveMaximum > 0 { // [MQTT-4.9.0-1]
		s.quota = int(c.ReceiveMaximum)
	}
	defer close(s.done)
	var end context.CancelFunc
	s.ctx, end = context.WithCancel(ctx)
	answer, err := s.connect(ctx, c, state, login)
	if answer.Code != packet.Success {
		remote := conn.RemoteAddr().String()
		p.log().Info("MQTT client refused", "remote", remote, "client", clip(s.id), "code", answer.Code.String(), "error", err)
		end()
		s.answer(answer) // [MQTT-3.2.2-7] [MQTT-4.12.0-4]
		return           // [MQTT-3.1.4-6] [MQTT-3.14.0-1]
	}
	defer s.detach()
	defer end()
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		s.out.write()
	}()
	// Nothing goes out before CONNACK, and no other one after it.
	// [MQTT-3.1.4-5] [MQTT-3.2.0-1] [MQTT-3.2.0-2]
	s.out.send(answer)
	s.again()
	farewell := context.AfterFunc(ctx, s.redirect)
	defer farewell()
	err = s.read(c, answer)
	switch fault, ok := errors.AsType[*packet.Error](err); {
	case ok:
		s.log("MQTT client made an error", "code", fault.Code.String(), "error", err)
		s.kick(fault.Code, fault.What)
	case ctx.Err() != nil:
		s.redirect() // it may be sooner than farewell
	case errors.Is(err, errQuiet):
		s.kick(packet.KeepAliveTimeout, "nothing came in one and a half times the keep alive")
	default:
		s.out.end()
	}
	<-writing
}

// refuse answers what is no CONNECT.
func (p *Protocol) refuse(conn net.Conn, v packet.Version, err error) {
	fault, ok := errors.AsType[*packet.Error](err)
	if !ok {
		return
	}
	p.log().Info("MQTT client refused", "remote", conn.RemoteAddr().String(), "error", err)
	// 3.1.1 has an answer for a wrong version only. [MQTT311-3.1.4-1]
	if v == 0 || v == packet.V311 && !errors.Is(err, packet.ErrVersion) {
		return
	}
	b, err := (&packet.Connack{Code: fault.Code}).Append(nil, v, 0)
	if err == nil && conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = conn.Write(b)
	}
}

// answer writes a CONNACK that ends the connection.
func (s *session) answer(c *packet.Connack) {
	b, err := c.Append(nil, s.v, s.out.max)
	if err == nil && s.conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = s.conn.Write(b)
	}
}

// connect lets the client in, or says in a CONNACK why not.
func (s *session) connect(ctx context.Context, c *packet.Connect, state *tls.ConnectionState, login fleetbus.Login) (*packet.Connack, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+requestTimeout)
	defer cancel()
	no := func(code packet.Code, why string, err error) (*packet.Connack, error) {
		return &packet.Connack{Code: code, ReasonString: why}, err
	}
	if c.AuthMethod != "" { // [MQTT-4.12.0-1]
		return no(packet.BadAuthenticationMethod, "there is no enhanced authentication here", nil)
	}
	if s.id == "" {
		if c.Version == packet.V311 && !c.CleanStart { // [MQTT311-3.1.3-8]
			return no(packet.ClientIdentifierNotValid, "", nil)
		}
		s.id = rand.Text() // [MQTT-3.1.3-6] [MQTT-3.2.2-16]
	}
	credentials := identity.Credentials{TLS: state, Password: string(c.Password), Remote: s.conn.RemoteAddr().String()}
	if c.Username != nil {
		credentials.Username = *c.Username
	}
	if identity.IsBearer(credentials.Password) {
		credentials.Bearer, credentials.Password = credentials.Password, ""
	}
	var err error
	s.login, err = login(ctx, credentials)
	switch { // [MQTT-3.1.4-2]
	case errors.Is(err, identity.ErrUnauthorized) && c.Username != nil:
		return no(packet.BadUserNameOrPassword, err.Error(), err)
	case errors.Is(err, identity.ErrUnauthorized):
		return no(packet.NotAuthorized, err.Error(), err)
	case errors.Is(err, identity.ErrTooManyConnections) && c.Version == packet.V311:
		return no(packet.ServerUnavailable, "", err) // it has no word for a quota
	case errors.Is(err, identity.ErrTooManyConnections):
		return no(packet.QuotaExceeded, identity.ErrTooManyConnections.Error(), err)
	case errors.Is(err, strangers.ErrQueue):
		return no(packet.ServerBusy, "too many log in: connect again", err)
	case err != nil:
		return no(packet.ServerUnavailable, "the node cannot let anybody in now", err)
	}
	failed := func(code packet.Code, why string, err error) (*packet.Connack, error) {
		s.login.Close()
		return no(code, why, err)
	}
	if w := c.Will; w != nil {
		topic := string(w.Topic)
		subject := mapping.Subject(topic)
		if len(subject) > maxSubject {
			return failed(packet.TopicNameInvalid, "the topic of its will is too long", nil)
		}
		if reserved(topic) || !s.login.Principal.Permissions.Publish.Allows(subject) {
			return failed(packet.NotAuthorized, "it may not publish its will", nil)
		}
		if s.mustSign(subject) {
			return failed(packet.NotAuthorized, "the account requires signatures, and a will has none that is good when it is published", nil)
		}
	}
	if s.a, err = s.p.account(ctx, s.login); err != nil {
		return failed(packet.ServerUnavailable, "the engine is not ready", err)
	}
	s.key = digest(s.login.Principal.String(), s.id)            // any will do [MQTT-3.1.3-5] [MQTT-3.1.3-8]
	s.texts = c.Version == packet.V5 && !c.NoProblemInformation // [MQTT-3.1.2-29]
	s.judged = len(s.login.Principal.Permissions.Subscribe.Deny) > 0
	present, err := s.attach(ctx, c)
	if errors.Is(err, errFull) {
		return failed(packet.QuotaExceeded, "the account has no more room for sessions", err)
	}
	if err != nil {
		return failed(packet.ServerUnavailable, "its session cannot be had now", err)
	}
	s.login.SetClosedHandler(func(*nats.Conn) { s.kick(packet.NotAuthorized, "its right to be connected ended") })
	if s.login.IsClosed() { // before there was a handler
		s.kick(packet.NotAuthorized, "its right to be connected ended")
	}
	if err := s.restore(ctx); err != nil {
		s.mu.Lock()
		s.rec.Will = nil
		s.mu.Unlock()
		s.detach()
		return no(packet.ServerUnavailable, "its subscriptions cannot be had now", err)
	}
	return s.connack(c, present), nil
}

// connack is the answer to a client that is let in.
func (s *session) connack(c *packet.Connect, present bool) *packet.Connack {
	answer := &packet.Connack{SessionPresent: present} // [MQTT-3.2.2-2] [MQTT-3.2.2-3]
	if c.Version != packet.V5 {
		return answer
	}
	answer.ReceiveMaximum, answer.MaximumPacketSize, answer.TopicAliasMaximum = s.p.receiveMaximum(), uint32(s.p.maxPacket()), s.p.topicAliases()
	if c.ClientID == "" {
		answer.AssignedClientID = s.id // [MQTT-3.1.3-7]
	}
	if c.SessionExpiry != s.rec.Expiry {
		answer.SessionExpiry = &s.rec.Expiry
	}
	if most := s.p.keepAlive(); most > 0 && (c.KeepAlive == 0 || time.Duration(c.KeepAlive)*time.Second > most) {
		answer.ServerKeepAlive = new(uint16(most / time.Second))
	}
	// There is no Response Information, and nothing that is missing is announced.
	// [MQTT-3.1.2-28] [MQTT-3.2.2-9] [MQTT-3.2.2-10] [MQTT-3.2.2-12] [MQTT-3.2.2-13]
	if n := min(c.TopicAliasMaximum, s.p.topicAliases()); n > 0 { // [MQTT-3.1.2-26] [MQTT-3.1.2-27]
		s.given = make(map[string]uint16, n)
		s.aliasMax = n
	}
	return answer
}

// errQuiet says that a client did not keep its keep alive.
var errQuiet = errors.New("nothing came")

// read takes the client's packets until the connection ends.
func (s *session) read(c *packet.Connect, answer *packet.Connack) error {
	patience := time.Duration(c.KeepAlive) * time.Second // [MQTT-3.2.2-22]
	if answer.ServerKeepAlive != nil {                   // [MQTT-3.2.2-21]
		patience = time.Duration(*answer.ServerKeepAlive) * time.Second
	}
	patience += patience / 2 // [MQTT-3.1.2-22]
	s.r.Maximum = s.p.maxPacket()
	defer s.flush()
	if patience == 0 {
		if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	for {
		if s.r.Buffered() == 0 {
			s.flush()
			if patience > 0 {
				if err := s.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
					return err
				}
			}
		}
		got, err := s.r.Next()
		if err != nil {
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				return errQuiet
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return io.EOF
			}
			return err
		}
		if err := s.take(got); err != nil {
			return err
		}
	}
}

// take does what a packet asks for.
func (s *session) take(got packet.Packet) error {
	switch got := got.(type) {
	case *packet.Publish:
		return s.published(got)
	case *packet.Ack:
		if got.Kind == packet.PUBREL {
			s.released(got.ID)
			return nil
		}
		return s.acknowledged(got)
	case *packet.Subscribe:
		return s.subscribe(got)
	case *packet.Unsubscribe:
		s.unsubscribe(got)
	case *packet.Pingreq:
		s.out.send(&packet.Pingresp{}) // [MQTT-3.12.4-1]
	case *packet.Disconnect:
		return s.disconnected(got)
	case *packet.Auth: // [MQTT-4.12.0-2] [MQTT-4.12.0-6] [MQTT-4.12.1-2]
		return fault(packet.ProtocolError, "MQTT-4.12.0-6", "AUTH without an Authentication Method in CONNECT")
	}
	return nil
}

func fault(code packet.Code, clause, what string) error {
	return &packet.Error{Code: code, Clause: clause, What: what}
}

// disconnected takes the client's good-bye.
func (s *session) disconnected(d *packet.Disconnect) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.SessionExpiry != nil {
		if *d.SessionExpiry > 0 && s.rec.Expiry == 0 {
			return fault(packet.ProtocolError, "MQTT 3.14.2.2.2", "DISCONNECT with a Session Expiry Interval, where CONNECT had none")
		}
		s.rec.Expiry = min(*d.SessionExpiry, s.p.sessionExpiry())
	}
	s.normal = d.Code == packet.NormalDisconnection // [MQTT-3.1.2-8] [MQTT-3.14.4-3]
	return io.EOF
}
