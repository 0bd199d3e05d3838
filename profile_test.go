package fleetbus_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

// TestProfile has an administrator, and nobody else, take profiles of another node.
func TestProfile(t *testing.T) {
	servers := fleetbustest.StartCluster(t, 2)
	c := servers[0].Admin()
	for _, node := range []string{"n1", "n2"} {
		got, err := c.Profile(t.Context(), admin.ProfileRequest{Node: node, Kind: admin.ProfileCPU, Duration: 100 * time.Millisecond})
		if err != nil || got.Node != node || !bytes.HasPrefix(got.Data, []byte{0x1f, 0x8b}) {
			t.Errorf("the profile of %s is of %q: %v", node, got.Node, err)
		}
	}
	if _, err := c.Profile(t.Context(), admin.ProfileRequest{Node: "n2", Kind: "cmdline"}); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("a profile that there is not: %v", err)
	}
	if _, err := c.Profile(t.Context(), admin.ProfileRequest{Node: "n9", Kind: admin.ProfileHeap}); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("a node that there is not: %v", err)
	}
	user := servers[0].Dial("acme", "someone", nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if _, err := admin.New(user).Profile(t.Context(), admin.ProfileRequest{Node: "n1", Kind: admin.ProfileHeap}); err == nil {
		t.Error("a user took a profile of a node")
	}
}
