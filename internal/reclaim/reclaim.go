// Package reclaim gives memory that nobody needs any more back to the system, and has
// little of it lie between what is needed.
package reclaim

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// reclaimCheck is how often memory is looked at, reclaimQuiet how little is
	// allocated between two looks of a quiet server, and reclaimWorth the least
	// that is worth a collection; both in bytes.
	reclaimCheck = time.Second
	reclaimQuiet = 4 << 20
	reclaimWorth = 16 << 20
	// reclaimTimes is how often a stack must be halved until it is as small as one
	// that no handshake has made grow.
	reclaimTimes = 4
	// headroom is about how many bytes are allocated between two collections. With more
	// of them, the garbage of handshakes lies scattered among what clients keep; with
	// fewer, a small heap is collected all the time. leastPercent and mostPercent bound
	// what that is of the heap.
	headroom                  = 32 << 20
	leastPercent, mostPercent = 50, 200
)

// Keep gives memory back to the system when a server has become quiet after
// it was busy: a storm of handshakes leaves garbage behind that an idle server
// would keep for minutes. Unless GOGC is set, it also has a large heap collected
// sooner than a small one. It returns when ctx is done.
func Keep(ctx context.Context) {
	pace := func(uint64) {}
	if os.Getenv("GOGC") == "" {
		last := debug.SetGCPercent(mostPercent)
		defer debug.SetGCPercent(last)
		set := mostPercent
		pace = func(live uint64) {
			if now := percent(live); now < set*9/10 || now > set*11/10 {
				set = now
				debug.SetGCPercent(now)
			}
		}
	}
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	tick := time.NewTicker(reclaimCheck)
	defer tick.Stop()
	var before, done uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(samples)
		pace(samples[2].Value.Uint64())
		allocated := samples[0].Value.Uint64()
		garbage := int64(samples[1].Value.Uint64()) - int64(samples[2].Value.Uint64())
		quiet := allocated-before < reclaimQuiet
		before = allocated
		if quiet && (garbage > reclaimWorth || allocated-done > 8*reclaimWorth) {
			// A collection halves the stacks that are too large.
			for range reclaimTimes {
				debug.FreeOSMemory()
			}
			done = allocated
		}
	}
}

// percent is how much of a heap with so many live bytes is allocated until it is
// collected.
func percent(live uint64) int {
	return int(min(max(100*headroom/max(live, 1), leastPercent), mostPercent))
}
