package hub

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A Check is one thing that a link needs of a hub.
type Check struct {
	// Name of the check: a Step.
	Name string `json:"name"`
	// OK is false if a link cannot work like this.
	OK bool `json:"ok"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Fix is what to do; empty if there is nothing. A check that is OK and has one is
	// a warning.
	Fix string `json:"fix,omitempty"`
}

const (
	// probeTimeout bounds each of the last steps.
	probeTimeout = 5 * time.Second
	// endsSoon is when the end of the hub's certificate is worth a warning.
	endsSoon = 30 * 24 * time.Hour
	// smallPacket is a limit of the hub's that notices fit in, and not much more.
	smallPacket = 64 << 10
)

// Probe tries whether a hub is what a link needs, and leaves nothing there: it
// connects to the first of o.Servers, logs in, and has one message go there and back
// below the prefix, in the account if one is named. progress is called with each check
// when it is done. The error is the first that failed, an *Error or a FieldError.
func Probe(ctx context.Context, o Options, progress func(Check)) ([]Check, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	name := "check-" + strings.ToLower(rand.Text()[:10])
	if o.ClientID == "" {
		o.ClientID = "fleetbus-" + name
	}
	o = o.withDefaults()
	s, err := parseServer(o.Servers[0])
	if err != nil {
		return nil, err
	}
	p := &probe{o: o, server: s, progress: progress}
	err = p.run(ctx, name)
	return p.checks, err
}

type probe struct {
	o        Options
	server   server
	progress func(Check)
	checks   []Check
}

func (p *probe) add(name string, ok bool, fix, format string, args ...any) {
	c := Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...), Fix: fix}
	p.checks = append(p.checks, c)
	if p.progress != nil {
		p.progress(c)
	}
}

// fail adds a check that failed.
func (p *probe) fail(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Step: StepReach, Err: err}
	}
	p.add(string(e.Step), false, e.Fix, "%v", e.Err)
	return e
}

func (p *probe) run(ctx context.Context, name string) error {
	began := time.Now()
	addrs, err := new(net.Resolver).LookupHost(ctx, p.server.host)
	if err != nil {
		return p.fail(&Error{Step: StepReach, Err: err, Fix: reachFix(err)})
	}
	c, err := dial(ctx, &p.o, p.server, true)
	if err != nil && !past(err, StepReach) {
		return p.fail(err)
	}
	p.add(string(StepReach), true, "", "%s answers, at %s", p.server.addr, strings.Join(addrs, ", "))
	if p.server.tls && past(err, StepTLS) {
		p.encrypted(ctx, c)
	} else if !p.server.tls {
		fix := ""
		if !isLoopback(p.server.host) {
			fix = "use mqtts://: everybody on the way can read and change what passes"
		}
		p.add(string(StepTLS), true, fix, "there is none")
	}
	if err != nil {
		if past(err, StepVersion) {
			p.add(string(StepVersion), true, "", "MQTT 5.0")
		} else if p.older(ctx) {
			err = &Error{Step: StepVersion, Code: packet.UnsupportedProtocolVersion, Err: errOld, Fix: fixOld}
		}
		return p.fail(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	p.add(string(StepVersion), true, "", "MQTT 5.0")
	who := "without a user"
	if p.o.User != "" {
		who = fmt.Sprintf("as %q", p.o.User)
	} else if p.o.Cert != "" {
		who = "with the certificate"
	}
	p.add(string(StepLogin), true, "", "%s, in %v", who, time.Since(began).Round(time.Millisecond))
	if err := p.limits(c); err != nil {
		return p.fail(err)
	}
	if err := p.roundTrip(c, name); err != nil {
		return p.fail(err)
	}
	_ = c.send(&packet.Disconnect{}) // the session ends anyway
	return nil
}

// past reports whether a step was passed.
func past(err error, step Step) bool {
	var e *Error
	if !errors.As(err, &e) {
		return err == nil
	}
	order := []Step{StepSettings, StepReach, StepTLS, StepVersion, StepLogin}
	return slices.Index(order, e.Step) > slices.Index(order, step)
}

// encrypted tells of TLS, which works.
func (p *probe) encrypted(ctx context.Context, c *conn) {
	var state *tls.ConnectionState
	if c != nil {
		state = c.state
	} else if nc, s, err := reach(ctx, &p.o, p.server); err == nil {
		nc.Close()
		state = s
	}
	if state == nil {
		p.add(string(StepTLS), true, "", "it works")
		return
	}
	cert := state.PeerCertificates[0]
	fix := ""
	if time.Until(cert.NotAfter) < endsSoon {
		fix = "renew the hub's certificate"
	}
	p.add(string(StepTLS), true, fix, "%s with %s, signed by %s, until %s; pin %s", tls.VersionName(state.Version), cert.Subject, cert.Issuer, cert.NotAfter.UTC().Format(time.DateOnly), pinOf(cert))
}

// older reports whether the hub speaks MQTT 3.1.1.
func (p *probe) older(ctx context.Context) bool {
	nc, _, err := reach(ctx, &p.o, p.server)
	if err != nil {
		return false
	}
	defer nc.Close()
	b, err := (&packet.Connect{Version: packet.V311, ClientID: p.o.ClientID, CleanStart: true, KeepAlive: 10}).Append(nil, packet.V311, 0)
	if err != nil || nc.SetDeadline(time.Now().Add(dialTimeout)) != nil {
		return false
	}
	if _, err := nc.Write(b); err != nil {
		return false
	}
	r := packet.NewReader(nc, packet.Server, 64)
	r.Version = packet.V311
	answer, err := r.Next()
	_, ok := answer.(*packet.Connack)
	return err == nil && ok
}

// limits are the hub's.
func (p *probe) limits(c *conn) error {
	a := &c.connack
	if a.NoWildcards {
		return &Error{Step: StepLimits, Err: errors.New("the hub has no subscriptions with wildcards"), Fix: "turn them on at the hub"}
	}
	size, fix, qos := "any size", "", packet.QoS(2)
	if a.MaximumPacketSize > 0 {
		size = fmt.Sprintf("%d bytes", a.MaximumPacketSize)
		if a.MaximumPacketSize < smallPacket {
			fix = "raise the hub's limit of a packet: larger messages stay here"
		}
	}
	if a.MaximumQoS != nil {
		qos = *a.MaximumQoS
	}
	if qos == 0 && !p.o.AtMostOnce {
		fix = "turn QoS 1 on at the hub: what it loses is noticed late"
	}
	retain := "retained messages"
	if a.NoRetain {
		retain = "no retained messages" // a link needs none
	}
	p.add(string(StepLimits), true, fix, "packets of %s, %d under way, QoS up to %d, %s", size, c.window(), qos, retain)
	return nil
}

// roundTrip has a message go to the hub and back.
func (p *probe) roundTrip(c *conn, name string) error {
	base := p.o.Prefix + "/"
	if p.o.Account != "" {
		base = p.o.base()
	}
	topic := base + controlTopic + "/" + name
	c.silence = probeTimeout
	if err := c.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: topic + "/#", QoS: c.qos(&p.o), RetainHandling: packet.RetainNever}}}); err != nil {
		return &Error{Step: StepSubscribe, Err: err}
	}
	readable := fmt.Sprintf("let this user read %q at the hub", base+"#")
	writable := fmt.Sprintf("let this user write %q at the hub", base+"#")
	began := time.Now()
	sent := false
	for back, acknowledged := false, c.qos(&p.o) == 0; !back || !acknowledged; {
		in, err := c.next()
		switch {
		case err != nil && !sent:
			return &Error{Step: StepSubscribe, Err: fmt.Errorf("the hub does not answer a subscription: %w", err), Fix: readable}
		case err != nil && !acknowledged:
			return &Error{Step: StepPublish, Err: fmt.Errorf("the hub does not acknowledge a message: %w", err), Fix: writable}
		case err != nil:
			return &Error{Step: StepRoundTrip, Code: packet.NotAuthorized, Err: errors.New("the hub took a message and a subscription of it, and did not deliver it"), Fix: readable}
		}
		switch in := in.(type) {
		case *packet.Suback:
			if len(in.Codes) == 1 && in.Codes[0].Failed() {
				return &Error{Step: StepSubscribe, Code: in.Codes[0], Err: fmt.Errorf("the hub refuses a subscription of %q: %v", topic+"/#", in.Codes[0]), Fix: readable}
			}
			p.add(string(StepSubscribe), true, "", "%s", topic+"/#")
			m := &packet.Publish{ID: 1, Message: packet.Message{Topic: []byte(topic + "/x"), Payload: []byte(name), QoS: c.qos(&p.o)}}
			if m.QoS == 0 {
				m.ID = 0
			}
			sent, began = true, time.Now()
			if err := c.send(m); err != nil {
				return &Error{Step: StepPublish, Err: err}
			}
		case *packet.Ack:
			if in.Code.Failed() {
				return &Error{Step: StepPublish, Code: in.Code, Err: fmt.Errorf("the hub refuses a message to %q: %v", topic+"/x", in.Code), Fix: writable}
			}
			acknowledged = true
			p.add(string(StepPublish), true, "", "%s", topic+"/x")
		case *packet.Publish:
			back = back || string(in.Payload) == name
			if in.QoS == 1 {
				if err := c.send(&packet.Ack{Kind: packet.PUBACK, ID: in.ID}); err != nil {
					return &Error{Step: StepPublish, Err: err}
				}
			}
		case *packet.Disconnect:
			return disconnected(in)
		}
	}
	p.add(string(StepRoundTrip), true, "", "%v", time.Since(began).Round(10*time.Microsecond))
	return nil
}
