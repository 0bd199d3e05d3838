package mqtt_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fleetbus/fleetbus"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/smalldisk"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestShortDisk has a node whose disk is short: a publisher is told, QoS 0 goes on,
// and when there is room the node takes messages again.
func TestShortDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "96m")
	h := start(t, func(o *fleetbus.Options) { o.Dir, o.Store.Reserve = filepath.Join(disk, "data"), 16<<20 })
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", SessionExpiry: 600})
	sub.subscribe(1, "a")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	told := func() packet.Code {
		pub.send(publish("a", "x", 1, 1))
		return next[*packet.Ack](pub).Code
	}
	if code := told(); code.Failed() {
		t.Fatalf("a message: %v", code)
	}
	m := next[*packet.Publish](sub)
	sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	filler := filepath.Join(disk, "somebody-elses")
	if err := os.WriteFile(filler, make([]byte, 82<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "the publisher is told", func() error {
		code := told()
		if !code.Failed() {
			next[*packet.Publish](sub)
			return errors.New("it is acknowledged")
		}
		if code != packet.QuotaExceeded {
			t.Fatalf("it is told %v", code)
		}
		return nil
	})
	pub.send(publish("a", "not stored", 0, 0))
	if m := next[*packet.Publish](sub); string(m.Payload) != "not stored" {
		t.Errorf("QoS 0: %q", m.Payload)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "room", func() error {
		if code := told(); code.Failed() {
			return errors.New(code.String())
		}
		return nil
	})
}
