// Package profiler takes profiles of this process when it is asked for one: nothing is
// open for them, and nothing runs in between.
package profiler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/admin"
)

const (
	// longest is how long the processors may be watched: an administrator's request has
	// to end before it times out.
	longest = 25 * time.Second
	// largest is what fits into an answer, whose bytes become a third more there.
	largest = 700 << 10
)

// A Profiler takes one profile at a time. The zero value is ready. It is safe for
// concurrent use.
type Profiler struct{ busy sync.Mutex }

// Take takes the profile that r asks for. The error is an *admin.Error, or ctx's.
func (p *Profiler) Take(ctx context.Context, r admin.ProfileRequest) ([]byte, error) {
	if !slices.Contains(admin.ProfileKinds(), r.Kind) {
		return nil, admin.Errorf(admin.Invalid, "cpu, heap, allocs or goroutine", "there is no profile %q", r.Kind)
	}
	if r.Kind == admin.ProfileCPU && (r.Duration <= 0 || r.Duration > longest) {
		return nil, admin.Errorf(admin.Invalid, fmt.Sprintf("watch for %v at most", longest), "the processors cannot be watched for %v", r.Duration)
	}
	if !p.busy.TryLock() {
		return nil, admin.Errorf(admin.Conflict, "try again in a moment", "another profile is being taken")
	}
	defer p.busy.Unlock()
	var out bytes.Buffer
	if err := take(ctx, r, &out); err != nil {
		return nil, err
	}
	if out.Len() > largest {
		return nil, admin.Errorf(admin.Failed, "take a shorter one", "the profile has %d bytes, and %d fit into an answer", out.Len(), largest)
	}
	return out.Bytes(), nil
}

func take(ctx context.Context, r admin.ProfileRequest, out *bytes.Buffer) error {
	if r.Kind == admin.ProfileCPU {
		if err := pprof.StartCPUProfile(out); err != nil {
			return admin.Errorf(admin.Conflict, "end the profile that the program takes of itself", "%v", err)
		}
		defer pprof.StopCPUProfile() // it writes the profile
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.Duration):
			return nil
		}
	}
	if r.Kind == admin.ProfileHeap {
		runtime.GC() // what is in use, and not what was
	}
	// Without debug it holds where memory was taken, and how much, and nothing of what is
	// in it.
	profile := pprof.Lookup(string(r.Kind))
	if profile == nil {
		return errors.New("this program has no such profile")
	}
	return profile.WriteTo(out, 0)
}
