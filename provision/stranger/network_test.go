package stranger

import (
	"errors"
	"testing"

	"github.com/fleetbus/fleetbus/internal/strangers"
)

// TestOneNetwork has a machine come from many addresses of its own: it is one, and leaves
// room for others.
func TestOneNetwork(t *testing.T) {
	p := &Protocol{PerAddress: 2}
	from := func(remote string) error {
		_, err := p.enter(strangers.Network(remote))
		return err
	}
	for remote, want := range map[string]error{"[2001:db8::1]:1": nil, "[2001:db8::2]:1": nil} {
		if err := from(remote); !errors.Is(err, want) {
			t.Errorf("%s: %v", remote, err)
		}
	}
	if err := from("[2001:db8::3]:1"); !errors.Is(err, errCrowded) {
		t.Errorf("a third of one network: %v", err)
	}
	for _, remote := range []string{"[2001:db8:0:1::1]:1", "192.0.2.1:1"} {
		if err := from(remote); err != nil {
			t.Errorf("%s: %v", remote, err)
		}
	}
}
