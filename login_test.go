package fleetbus_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// TestRefusedSession opens one more session than the account may have: the
// caller is told why.
func TestRefusedSession(t *testing.T) {
	s := fleetbustest.Start(t)
	if _, err := s.Admin().AddAccount(limited(t, 10*time.Second), admin.AccountRequest{Name: "few", Limits: identity.Limits{Connections: 1}}); err != nil {
		t.Fatal(err)
	}
	open := func() (close func(), err error) {
		session, err := s.Session(limited(t, 10*time.Second), identity.Principal{Account: "few", Name: "billing"})
		if err != nil {
			return nil, err
		}
		return session.Close, nil
	}
	end, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := open(); !errors.Is(err, nats.ErrMaxAccountConnectionsExceeded) {
			t.Errorf("one session too many: %v", err)
		}
	}
	end()
	fleetbustest.Eventually(t, "there is room for another", func() error {
		end, err := open()
		if err == nil {
			end()
		}
		return err
	})
}
