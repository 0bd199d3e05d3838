package mqtt

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// holding is what a client of a group has and has not acknowledged. It is safe for
// concurrent use.
type holding struct {
	consuming jetstream.ConsumeContext
	done      <-chan struct{} // closed when no more come

	mu    sync.Mutex
	msgs  map[jetstream.Msg]struct{}
	ended bool // it has been given back
}

func (h *holding) add(msg jetstream.Msg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.msgs[msg] = struct{}{}
}

func (h *holding) remove(msg jetstream.Msg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.msgs, msg)
}

func (h *holding) each(do func(jetstream.Msg)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for msg := range h.msgs {
		do(msg)
	}
}

// beat tells the group that the client is there, until no more come.
func (h *holding) beat() {
	beat := time.NewTicker(sharedWait / 3)
	defer beat.Stop()
	for {
		select {
		case <-h.done:
			return
		case <-beat.C:
			h.each(func(msg jetstream.Msg) { _ = msg.InProgress() })
		}
	}
}

// end has no more come. What has come already is held, too: it is to be given back, and
// would otherwise wait for sharedWait.
func (h *holding) end() {
	h.consuming.Drain()
	<-h.done
}

// giveBack gives to others what the client has not acknowledged, but for the
// flights of QoS 2, which are its own.
func (h *holding) giveBack(flights []*flight) {
	taken := map[string]bool{}
	for _, f := range flights {
		taken[f.Share] = f.QoS == 2
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for msg := range h.msgs {
		if !taken[msg.Reply()] {
			_ = msg.Nak()
		}
	}
}

// over reports whether it has been given back.
func (h *holding) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}
