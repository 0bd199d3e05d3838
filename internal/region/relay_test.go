package region_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/region"
)

// TestRelayAfterStart has the streams of a node come a while after it has started: the relay
// is not much later than they are, and nobody looks as often for ever.
func TestRelayAfterStart(t *testing.T) {
	for _, late := range []time.Duration{0, 10 * time.Millisecond, 300 * time.Millisecond, time.Second, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			opened := make(chan time.Duration, 1)
			looks := 0
			ctx, cancel := context.WithCancel(t.Context())
			r := region.NewRelays(region.RelayOptions{
				Region: "eu", Logger: slog.New(slog.DiscardHandler),
				Many: func() bool { return true },
				Streams: func() []string {
					if looks++; time.Since(began) < late {
						return nil
					}
					return []string{"acme"}
				},
				Clients: func() []string { return nil },
				Known:   func(string) bool { return true },
				Alone:   func(string) bool { return true },
				Heard:   func(string, string) bool { return true },
				Open: func(identity.Principal) (*nats.Conn, func(), error) {
					select {
					case opened <- time.Since(began):
					default:
					}
					return nil, nil, errors.New("there is none in this test")
				},
			})
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.Keep(ctx)
			}()
			took := <-opened
			if most := min(2*late, late+2*time.Second) + 50*time.Millisecond; took > most {
				t.Errorf("streams that come after %v have a relay after %v, which is more than %v", late, took, most)
			}
			if looks > 8+int(took/(2*time.Second)) {
				t.Errorf("it looked %d times in %v", looks, took)
			}
			cancel()
			<-done
		})
	}
}
