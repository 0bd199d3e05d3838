package mqtt

import (
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// holding is what a client of a group has and has not acknowledged. It is safe for
// concurrent use.
type holding struct {
	mu    sync.Mutex
	msgs  map[jetstream.Msg]struct{}
	ended bool
}

// end gives back what is not acknowledged.
func (h *holding) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for msg := range h.msgs {
		_ = msg.Nak()
	}
}

// over reports whether it has been given back.
func (h *holding) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
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
