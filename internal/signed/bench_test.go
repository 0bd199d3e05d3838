package signed_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/fleetbustest"
)

// BenchmarkSend has one client publish, wait until the node has it, and publish again:
// unsigned in an account that verifies nothing, and signed in one that requires it; and
// has many signed messages on their way at once.
func BenchmarkSend(b *testing.B) {
	nodes := fleetbustest.StartCluster(b, 3)
	s := nodes[0]
	demand(b, s, "acme", "required")
	creds := s.MoreCreds("acme", "alice")
	signer, nc := signerOf(b, creds), connect(b, s, creds, "alice")
	ready(b, nc, signer)
	plain := s.Dial("plain", "alice")
	if _, err := plain.Subscribe("orders", func(m *nats.Msg) { _ = m.Respond(nil) }); err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256)
	b.Run("unsigned", func(b *testing.B) {
		for b.Loop() {
			if _, err := plain.Request("orders", body, 10*time.Second); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("signed", func(b *testing.B) {
		for b.Loop() {
			if err := signer.Send(b.Context(), nc, &nats.Msg{Subject: "orders", Data: body}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("signed-64-at-once", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := signer.Send(b.Context(), nc, &nats.Msg{Subject: "orders", Data: body}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
