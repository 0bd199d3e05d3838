package fleetbus_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

func limited(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestOneNode(t *testing.T) {
	began := time.Now()
	s := fleetbustest.Start(t, func(o *fleetbus.Options) { o.Accounts = []string{"app"} })
	t.Logf("ready after %v", time.Since(began))
	alice := s.Dial("acme", "alice")
	bob := s.Dial("acme", "bob")
	eve := s.Dial("other", "eve")
	heard, silent := make(chan *nats.Msg, 1), make(chan *nats.Msg, 1)
	if _, err := alice.ChanSubscribe("orders.>", heard); err != nil {
		t.Fatal(err)
	}
	if _, err := eve.ChanSubscribe(">", silent); err != nil {
		t.Fatal(err)
	}
	for _, nc := range []*nats.Conn{alice, eve} {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := bob.Publish("orders.new", []byte("42")); err != nil {
		t.Fatal(err)
	}
	select {
	case msg := <-heard:
		if string(msg.Data) != "42" {
			t.Errorf("alice heard %q", msg.Data)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("alice heard nothing")
	}
	if err := eve.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case msg := <-silent:
		t.Errorf("another account heard %q", msg.Subject)
	default:
	}
	js, err := jetstream.New(bob)
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if _, err := js.Publish(limited(t, 5*time.Second), "orders.new", []byte("43")); err != nil {
		t.Fatal(err)
	}
	session, err := s.Session(t.Context(), identity.Principal{Account: "acme", Name: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	spread, err := s.Admin().DenyUser(limited(t, 10*time.Second), "acme/bob")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", spread)
	if len(spread.Nodes) != 1 || spread.Closed() != 1 {
		t.Errorf("the denial acted as %+v", spread)
	}
}

// TestInterface has a listener at the address of an interface.
func TestInterface(t *testing.T) {
	at := func(addr string) func(*fleetbus.Options) {
		return func(o *fleetbus.Options) {
			for i := range o.Listeners {
				o.Listeners[i].Addr = addr
			}
		}
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		t.Skip("the loopback interface is not called lo")
	}
	s := fleetbustest.Start(t, at("%lo:0"))
	if host, _, err := net.SplitHostPort(s.Addr("nats").String()); err != nil || host != "127.0.0.1" {
		t.Errorf("it listens at %v, %v", s.Addr("nats"), err)
	}
	o := fleetbus.Options{Dir: t.TempDir(), Listeners: []fleetbus.Listener{{Name: "nats", Protocol: fleetbus.NATS(), Addr: "%no-such:4222"}}}
	lost, err := fleetbus.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Run(limited(t, 20*time.Second)); err == nil || !strings.Contains(err.Error(), `opening listener "nats": looking for interface "no-such"`) {
		t.Errorf("of an interface that is not there it says: %v", err)
	}
}

func TestThreeNodes(t *testing.T) {
	began := time.Now()
	nodes := fleetbustest.StartCluster(t, 3)
	t.Logf("ready after %v", time.Since(began))
	alice := nodes[0].Creds("acme", "alice")
	var conns []*nats.Conn
	for _, n := range nodes {
		nc, err := n.Connect(alice, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		conns = append(conns, nc)
	}
	heard, err := conns[2].SubscribeSync("orders.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := conns[2].Flush(); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "a message crosses", func() error {
		if err := conns[0].Publish("orders.new", nil); err != nil {
			return err
		}
		_, err := heard.NextMsg(100 * time.Millisecond)
		return err
	})
	status, err := nodes[1].Admin().Status(limited(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Nodes) != 3 || status.Survives != 1 || status.Leader == "" {
		t.Errorf("the status is %+v", status)
	}
	for _, n := range status.Nodes {
		if n.State != "up" || !n.Voter {
			t.Errorf("node %s is %s, voter %v", n.Name, n.State, n.Voter)
		}
	}
	spread, err := nodes[1].Admin().DenyUser(limited(t, 10*time.Second), "acme/alice")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", spread)
	if len(spread.Nodes) != 3 || spread.Closed() != 3 {
		t.Errorf("the denial acted as %+v", spread)
	}
	for i, nc := range conns {
		fleetbustest.Eventually(t, "a denied connection closes", func() error {
			if !nc.IsClosed() {
				return errors.New("it is open")
			}
			return nil
		})
		if _, err := nodes[i].Connect(alice); err == nil {
			t.Errorf("a denied user was let in by node %d", i)
		}
	}
}
