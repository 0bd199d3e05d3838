package amqp

import (
	"context"
	"errors"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// greet takes the protocol header. Whoever speaks another protocol or version is told
// which one is spoken here, and is gone.
func (c *conn) greet() bool {
	if c.net.SetReadDeadline(time.Now().Add(connectTimeout)) != nil {
		return false
	}
	if c.ctx.Err() != nil {
		return false
	}
	header, err := c.r.ProtocolHeader()
	if err != nil {
		return false
	}
	if string(header[:]) == frame.ProtocolHeader {
		return true
	}
	if c.net.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = c.net.Write([]byte(frame.ProtocolHeader))
	}
	c.p.log().Info("AMQP client of another version refused", "remote", c.remote)
	return false
}

// capabilities are what clients look for.
func capabilities() frame.Table {
	t := frame.Table{}
	for _, name := range []string{
		"publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify", "connection.blocked", "consumer_priorities",
		"authentication_failure_close", "per_consumer_qos", "direct_reply_to",
	} {
		t[name] = true
	}
	return t
}

// handshake lets the client in, from Start to the open virtual host.
func (c *conn) handshake() error {
	c.offered = c.mechanisms()
	list := ""
	for i, name := range c.offered {
		if i > 0 {
			list += " "
		}
		list += name
	}
	until := time.Now().Add(connectTimeout)
	err := c.send(0, &frame.ConnectionStart{
		VersionMinor: 9, ServerProperties: frame.Table{"product": "fleetbus", "platform": "Go", "capabilities": capabilities()},
		Mechanisms: list, Locales: "en_US",
	})
	if err != nil {
		return err
	}
	startOk, err := expect[*frame.ConnectionStartOk](c, until)
	if err != nil {
		return err
	}
	c.client.product, _ = startOk.ClientProperties["product"].(string)
	c.client.capabilities, _ = startOk.ClientProperties["capabilities"].(frame.Table)
	if err := c.authenticate(startOk); err != nil {
		return err
	}
	// A login that waited its turn does not count.
	until = time.Now().Add(connectTimeout)
	if err := c.tune(until); err != nil {
		return err
	}
	return c.openVHost(until)
}

// expect is the next method, which has to be an M on channel 0.
func expect[M frame.Method](c *conn, until time.Time) (m M, err error) {
	for {
		f, err := c.next(func() time.Time { return until })
		if err != nil {
			return m, err
		}
		if f.Kind == frame.KindHeartbeat {
			continue
		}
		if f.Kind != frame.KindMethod || f.Channel != 0 {
			return m, frame.ConnectionError(frame.ChannelFault, "a %v frame on channel %d before the connection is open", f.Kind, f.Channel)
		}
		got, err := c.r.Method(f)
		if err != nil {
			return m, err
		}
		if m, ok := got.(M); ok {
			return m, nil
		}
		if _, ok := got.(*frame.ConnectionClose); ok {
			return m, errGoodbye
		}
		return m, frame.ConnectionError(frame.CommandInvalid, "%v where %v is expected", got.ID(), m.ID()).Of(got)
	}
}

// tune agrees on the size of frames, the number of channels and heartbeats.
func (c *conn) tune(until time.Time) error {
	channels, largest := c.p.channels(), c.p.maxFrame()
	if err := c.send(0, &frame.ConnectionTune{ChannelMax: uint16(channels), FrameMax: uint32(largest), Heartbeat: c.p.heartbeat()}); err != nil {
		return err
	}
	ok, err := expect[*frame.ConnectionTuneOk](c, until)
	if err != nil {
		return err
	}
	no := func(format string, args ...any) error {
		return frame.ConnectionError(frame.NotAllowed, format, args...).Of(ok)
	}
	switch n := int(ok.ChannelMax); {
	case n == 0:
		return no("negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (%d)", channels)
	case n > channels:
		return no("negotiated channel_max = %d is higher than the maximum allowed value (%d)", n, channels)
	}
	switch n := uint64(ok.FrameMax); {
	case n == 0:
		return no("negotiated frame_max = 0 (no limit) is higher than the maximum allowed value (%d)", largest)
	case n > uint64(largest):
		return no("negotiated frame_max = %d is higher than the maximum allowed value (%d)", n, largest)
	case n < frame.MinFrame:
		return no("negotiated frame_max = %d is lower than the minimum allowed value (%d)", n, frame.MinFrame)
	}
	c.channelMax = int(ok.ChannelMax)
	c.tuned(int(ok.FrameMax), time.Duration(ok.Heartbeat)*time.Second)
	return nil
}

// tuned sets what was agreed on.
func (c *conn) tuned(largest int, heartbeat time.Duration) {
	c.r.Maximum = largest
	c.patience = 2 * heartbeat
	c.out.tune(largest, heartbeat/2)
}

// openVHost opens the virtual host that the client asks for: the account of its
// principal, which is also called "/" and "".
func (c *conn) openVHost(until time.Time) error {
	open, err := expect[*frame.ConnectionOpen](c, until)
	if err != nil {
		return err
	}
	name, account := open.VirtualHost, c.who.Account
	if name == "" {
		name = "/"
	}
	if name != "/" && name != account {
		return frame.ConnectionError(frame.NotAllowed, "vhost %s not found", name).Of(open)
	}
	ctx, cancel := context.WithTimeout(c.ctx, loginTimeout)
	defer cancel()
	here, there, err := c.p.vhosts.open(ctx, c.session, func() ([]byte, error) { return c.handover(name) })
	switch {
	case err == nil && here != nil:
		err = c.enter(ctx, here, name)
	case err == nil: // the other node says the rest
		c.there = there
		c.opened(name)
	}
	if err != nil {
		return c.ofHost(err, open)
	}
	return nil
}

// enter opens a virtual host that is here.
func (c *conn) enter(ctx context.Context, v vhost, name string) (err error) {
	c.host, err = v.attach(ctx, peer{principal: c.who, id: c.id, vhost: name, remote: c.remote, leave: c.moved})
	if err != nil {
		return err
	}
	c.out.guard(v.holds)
	c.opened(name)
	return c.send(0, &frame.ConnectionOpenOk{})
}

// opened has the client be a stranger no more.
func (c *conn) opened(name string) {
	c.vhost = name
	c.r.Entries = 0
	c.source.left = -1
}

// moved has the client connect again, because its virtual host is not here any more.
func (c *conn) moved() {
	c.kick(elsewhere())
}

// authenticate logs the client in.
func (c *conn) authenticate(m *frame.ConnectionStartOk) error {
	with, err := c.credentials(m.Mechanism, string(m.Response))
	if err != nil {
		return refusal(err, m)
	}
	s, err := c.logIn(with)
	if err != nil {
		return c.refused(err, m)
	}
	if c.proof != nil { // the client wants to know that it is at the right place
		if _, err := c.challenge(c.proof.Final()); err != nil {
			s.Close()
			return err
		}
	}
	c.secret = m.Mechanism != external
	with.Password, with.Bearer, with.Prove = "", "", nil
	c.with, c.who = with, s.Principal
	c.guest.Leave()
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
	c.watch(s)
	if s.IsClosed() { // before there was a handler
		return ended()
	}
	return nil
}

func ended() *frame.Error {
	return frame.ConnectionError(frame.ConnectionForced, "its right to be connected ended")
}

func (c *conn) logIn(with identity.Credentials) (*fleetbus.Session, error) {
	ctx, cancel := context.WithTimeout(c.ctx, loginTimeout)
	defer cancel()
	return c.login(ctx, with)
}

// refusal is err for the client, as one of a login that is refused.
func refusal(err error, m frame.Method) error {
	if fault, ok := errors.AsType[*frame.Error](err); ok {
		return fault.Of(m)
	}
	return err
}

// refused is what a client is told whose login was refused: never why.
func (c *conn) refused(err error, m *frame.ConnectionStartOk) error {
	switch {
	case errors.Is(err, identity.ErrUnauthorized):
		return frame.ConnectionError(frame.AccessRefused, "Login was refused using authentication mechanism %s. For details see the log of the node.", m.Mechanism).Of(m)
	case errors.Is(err, identity.ErrTooManyConnections):
		return frame.ConnectionError(frame.NotAllowed, "%s", identity.ErrTooManyConnections.Error()).Of(m)
	}
	if why := c.why(); why != nil {
		return why
	}
	if errors.Is(err, strangers.ErrQueue) {
		return frame.ConnectionError(frame.ConnectionForced, "too many log in: connect again").Of(m)
	}
	c.p.log().Warn("an AMQP client could not be let in", "remote", c.remote, "error", err)
	return frame.ConnectionError(frame.InternalError, "the node cannot let anybody in now").Of(m)
}

// updateSecret logs in again with a new secret, and goes on as the same principal for as
// long as the new one is good.
func (c *conn) updateSecret(m *frame.ConnectionUpdateSecret) error {
	no := frame.ConnectionError(frame.NotAllowed, "the new secret was refused").Of(m)
	if !c.secret {
		return frame.ConnectionError(frame.NotAllowed, "the connection was not opened with a secret").Of(m)
	}
	with := withSecret(c.with, string(m.NewSecret))
	s, err := c.logIn(with)
	if errors.Is(err, identity.ErrUnauthorized) {
		return no
	}
	if err != nil {
		return c.ofHost(err, m)
	}
	if s.Principal.String() != c.who.String() {
		s.Close()
		return no
	}
	c.mu.Lock()
	before := c.session
	c.session = s
	c.mu.Unlock()
	c.watch(s)
	before.Close()
	if s.IsClosed() {
		return ended()
	}
	return c.send(0, &frame.ConnectionUpdateSecretOk{})
}

// ofHost is an error of what is behind the machine for the client, who is told all of a
// *frame.Error and nothing of others.
func (c *conn) ofHost(err error, m frame.Method) error {
	if fault, ok := errors.AsType[*frame.Error](err); ok {
		return fault.Of(m)
	}
	if why := c.why(); why != nil {
		return why
	}
	c.p.log().Warn("AMQP: a request failed", "remote", c.remote, "name", m.ID().String(), "error", err)
	return frame.ConnectionError(frame.InternalError, "the node cannot do this now: try again").Of(m)
}
