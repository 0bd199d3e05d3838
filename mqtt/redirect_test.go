package mqtt_test

import (
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestRedirect stops nodes: a client is told where the other one is, unless there is
// none, or it does not take so long an answer.
func TestRedirect(t *testing.T) {
	nodes := cluster(t, 2)
	connect := func(node int, c packet.Connect) *peer {
		c.CleanStart = true
		p, _ := nodes[node].connect(t, &c)
		return p
	}
	last := func(p *peer, code packet.Code, server string) {
		t.Helper()
		if d := next[*packet.Disconnect](p); d.Code != code || d.ServerReference != server {
			t.Errorf("%v %q, not %v %q", d.Code, d.ServerReference, code, server)
		}
	}
	fleetbustest.Eventually(t, "the nodes know of each other", func() error {
		old := connect(1, packet.Connect{ClientID: "moves"})
		defer connect(0, packet.Connect{ClientID: "moves"}).Close()
		if err := old.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, err := old.r.Next()
		return err
	})
	here, narrow, older := connect(0, packet.Connect{}), connect(0, packet.Connect{ClientID: "narrow", MaximumPacketSize: 20}), connect(0, packet.Connect{Version: packet.V311, ClientID: "older"})
	there := connect(1, packet.Connect{})
	nodes[0].Stop()
	last(here, packet.UseAnotherServer, nodes[1].Addr("mqtt").String())
	last(narrow, packet.ServerShuttingDown, "")
	if p, err := older.r.Next(); err == nil {
		t.Errorf("a client of 3.1.1 is sent %v", p.Type())
	}
	there.well()
}
