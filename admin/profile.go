package admin

import (
	"context"
	"time"
)

// ProfileKind says what a profile is of.
type ProfileKind string

// The kinds of profiles.
const (
	// ProfileCPU is where processors spend their time.
	ProfileCPU ProfileKind = "cpu"
	// ProfileHeap is where the memory in use was taken, and ProfileAllocs all that ever
	// was.
	ProfileHeap   ProfileKind = "heap"
	ProfileAllocs ProfileKind = "allocs"
	// ProfileGoroutine is what goroutines wait for.
	ProfileGoroutine ProfileKind = "goroutine"
)

// ProfileKinds are all kinds.
func ProfileKinds() []ProfileKind {
	return []ProfileKind{ProfileCPU, ProfileHeap, ProfileAllocs, ProfileGoroutine}
}

// ProfileRequest asks for a profile of a node.
type ProfileRequest struct {
	Node string      `json:"node"`
	Kind ProfileKind `json:"kind"`
	// Duration of ProfileCPU, 25s at most.
	Duration time.Duration `json:"duration_ns,omitempty"`
}

// A Profile is what a node did, in the format of pprof. It holds names of functions, and
// nothing of what is in memory.
type Profile struct {
	Node string `json:"node"`
	Data []byte `json:"data"`
	// Error is why there is none.
	Error *Error `json:"error,omitempty"`
}

// Profile takes a profile of a node. It lasts as long as was asked for.
func (c *Client) Profile(ctx context.Context, r ProfileRequest) (Profile, error) {
	return call[Profile](ctx, c, "node.profile", r)
}
