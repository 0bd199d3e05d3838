package provision_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/provision"
)

// from dials from another loopback address.
type from string

func (f from) Dial(network, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(string(f))}, Timeout: time.Minute}
	return d.Dial(network, addr)
}

// stranger comes in as any NATS client does.
func (p *place) stranger(address string) *nats.Conn {
	p.t.Helper()
	nc, err := nats.Connect("nats://"+p.addr(), nats.UserInfo("abcdefghijklmnop", ""), nats.SetCustomDialer(from(address)),
		nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(nc.Close)
	return nc
}

// TestReplies has a stranger ask for answers where it may not publish itself: what
// provisioners agree on, the engine's API, and a provisioner's own inbox.
func TestReplies(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	host := p.Dial(account, "host")
	heard, err := host.SubscribeSync(">")
	if err == nil {
		err = host.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	nc := p.stranger("127.0.0.1")
	const hello = `{"v":1,"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`
	forbidden := []string{identity.ProvisionLedger + ".token.evil", "$JS.API.STREAM.DELETE.PROVISION", "_INBOX.+provisioner-x.y", "orders.new"}
	for _, reply := range forbidden {
		for _, subject := range []string{identity.ProvisionHello + "127-0-0-1", identity.ProvisionAsk + d.Instance() + ".127-0-0-1"} {
			if err := nc.PublishRequest(subject, reply, []byte(hello)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One that is in order is answered after all of them.
	inbox := identity.Inbox("abcdefghijklmnop") + ".1"
	mine, err := nc.SubscribeSync(inbox)
	if err == nil {
		err = nc.PublishRequest(identity.ProvisionHello+"127-0-0-1", inbox, []byte(hello))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mine.NextMsg(time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := provision.Ask(soon(t), p.machine("till-1", d.token(t, "tills", "", 1))); err != nil {
		t.Errorf("provisioning does not work any more: %v", err)
	}
	for msg, err := heard.NextMsg(100 * time.Millisecond); err == nil; msg, err = heard.NextMsg(100 * time.Millisecond) {
		if slices.Contains(forbidden, msg.Subject) {
			t.Errorf("a provisioner was made to say %.40q at %s", msg.Data, msg.Subject)
		}
	}
}

// TestFlood has one address ask without end: machines at another have their turn.
func TestFlood(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	text := d.token(t, "tills", "", 10)
	ctx, cancel := context.WithCancel(t.Context())
	var flooding sync.WaitGroup
	defer flooding.Wait()
	defer cancel()
	first, err := provision.Ask(soon(t), p.machine("till-0", text))
	if err != nil {
		t.Fatal(err)
	}
	isMember(t, first, "acme/till-0")
	sent := 0
	nc := p.stranger("127.0.0.2")
	flooding.Go(func() {
		for ctx.Err() == nil {
			inbox := identity.Inbox("abcdefghijklmnop") + ".1"
			if err := errors.Join(
				nc.PublishRequest(identity.ProvisionHello+"127-0-0-2", inbox, []byte(`{"v":1,"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`)),
				nc.PublishRequest(identity.ProvisionAsk+d.Instance()+".127-0-0-2", inbox, []byte(`{"v":1,"sealed":{}}`)),
			); err != nil {
				return
			}
			if sent++; sent%200 == 0 && nc.FlushTimeout(time.Minute) != nil {
				return
			}
		}
	})
	for _, name := range []string{"till-1", "till-2", "till-3"} {
		if _, err := provision.Ask(soon(t), p.machine(name, text)); err != nil {
			t.Errorf("a flood from elsewhere keeps %s out: %v", name, err)
		}
	}
	cancel()
	flooding.Wait()
	t.Logf("%d floods", sent)
}
