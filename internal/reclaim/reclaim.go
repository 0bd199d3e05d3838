// Package reclaim gives memory that nobody needs any more back to the system.
package reclaim

import (
	"context"
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
)

// Keep gives memory back to the system when a server has become quiet after
// it was busy: a storm of handshakes leaves garbage behind that an idle server
// would keep for minutes. It returns when ctx is done.
func Keep(ctx context.Context) {
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
