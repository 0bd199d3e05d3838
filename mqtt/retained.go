package mqtt

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// keeper has the retained messages of an account, as far as it has heard.
type keeper struct {
	heard follower
	mu    sync.Mutex
	kept  map[string]message
}

// removed is how long the notice stays that a retained message is removed.
const removed = time.Minute

func (k *keeper) init() { k.kept = map[string]message{} }

// hear takes what the stream has.
func (k *keeper) hear(msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		return
	}
	subject := strings.TrimPrefix(msg.Subject(), retainedPrefix)
	m, ok := decode(subject, &nats.Msg{Data: msg.Data(), Header: msg.Headers()})
	m.seq = meta.Sequence.Stream
	defer k.heard.reach(m.seq)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case ok && len(m.payload) == 0: // [MQTT-3.3.1-6]
		delete(k.kept, m.topic)
	case ok:
		k.kept[m.topic] = m // [MQTT-3.3.1-5]
	}
}

// matching are the retained messages that a filter takes, in the order in which
// they were published. [MQTT-3.3.1-9]
func (a *account) matching(filter string) []message {
	k := &a.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []message
	take := func(m message) {
		if m.expired() {
			delete(k.kept, m.topic)
			return
		}
		found = append(found, m)
	}
	if !strings.ContainsAny(filter, "+#") {
		if m, ok := k.kept[filter]; ok {
			take(m)
		}
		return found
	}
	for topic, m := range k.kept {
		if matches(filter, topic) {
			take(m)
		}
	}
	slices.SortFunc(found, func(x, y message) int { return cmp.Compare(x.seq, y.seq) })
	return found
}

// retain stores p as the retained message of its topic, or removes that one.
// [MQTT-3.3.1-5] [MQTT-3.3.1-7]
func (a *account) retain(subject, client string, p *packet.Message, owner any, done func(error)) {
	store := a.storeMore
	if len(p.Payload) == 0 {
		store = a.store
	}
	store(&a.retained, keepsake(subject, client, p), owner, func(_ uint64, _ bool, err error) { done(err) })
}

// keepsake is p as it is retained.
func keepsake(subject, client string, p *packet.Message) *nats.Msg {
	msg := encode(retainedPrefix+subject, client, p)
	ttl := time.Duration(0)
	switch {
	case len(p.Payload) == 0:
		ttl = removed
	case p.Expires:
		ttl = time.Duration(max(p.Expiry, 1)) * time.Second
	}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	if ttl > 0 {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(int(ttl/time.Second))+"s")
	}
	return msg
}
