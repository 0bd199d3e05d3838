package profiler_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/profiler"
)

func TestTake(t *testing.T) {
	var p profiler.Profiler
	for _, kind := range admin.ProfileKinds() {
		got, err := p.Take(t.Context(), admin.ProfileRequest{Kind: kind, Duration: 50 * time.Millisecond})
		if err != nil || !bytes.HasPrefix(got, []byte{0x1f, 0x8b}) {
			t.Errorf("a profile of %s is %d bytes: %v", kind, len(got), err)
		}
	}
	for _, r := range []admin.ProfileRequest{{Kind: "cmdline"}, {Kind: admin.ProfileCPU}, {Kind: admin.ProfileCPU, Duration: time.Hour}} {
		if _, err := p.Take(t.Context(), r); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
			t.Errorf("%+v: %v", r, err)
		}
	}

	// One at a time, and none when who asked is gone.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for {
			_, err := p.Take(ctx, admin.ProfileRequest{Kind: admin.ProfileCPU, Duration: 20 * time.Second})
			if !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
				ended <- err
				return
			}
		}
	}()
	for {
		_, err := p.Take(t.Context(), admin.ProfileRequest{Kind: admin.ProfileGoroutine})
		if errors.Is(err, &admin.Error{Code: admin.Conflict}) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a profile that nobody waits for ended with %v", err)
	}
}
