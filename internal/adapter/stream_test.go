package adapter_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/adapter"
)

// TestEnsureTriesAgain holds that an account which the engine is not ready for is
// opened again, that a refusal is not, and that the last error is one for the caller.
func TestEnsureTriesAgain(t *testing.T) {
	t.Parallel()
	a := identity.Adapter{Name: "reg", Stream: "REG", To: identity.Party{Account: "ops"}}
	refusal := admin.Errorf(admin.Conflict, "", "no")
	for _, c := range []struct {
		name  string
		errs  []error
		tries int
		code  admin.Code
	}{
		{"at once", []error{nil}, 1, ""},
		{"later", []error{nats.ErrAuthorization, nats.ErrNoResponders, jetstream.ErrJetStreamNotEnabled, nil}, 4, ""},
		{"refused", []error{nats.ErrConnectionClosed, refusal}, 2, admin.Conflict},
		{"never", []error{nats.ErrNoResponders}, 0, admin.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tries := 0
			err := adapter.Ensure(ctx, func(func(jetstream.JetStream) error) error {
				err := c.errs[min(tries, len(c.errs)-1)]
				if tries++; tries == 6 {
					cancel()
				}
				return err
			}, a, "in.", 1, nil)
			var told *admin.Error
			if c.code == "" && err != nil || c.code != "" && (!errors.As(err, &told) || told.Code != c.code) {
				t.Errorf("got %v, want %q", err, c.code)
			}
			if c.tries > 0 && tries != c.tries {
				t.Errorf("%d tries, want %d", tries, c.tries)
			}
		})
	}
}
