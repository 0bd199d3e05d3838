package mqtt

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// keeper has the retained messages of an account, as far as it has heard.
type keeper struct {
	heard follower
	mu    sync.Mutex
	kept  map[string]message
	// times are when the retained messages were published, by topic, in nanoseconds, and
	// when some others were removed lately.
	times map[string]int64
	// prefix begins the subjects of the stream.
	prefix string
	// again stores what another region has put something older in the place of; m has no
	// payload if it was removed.
	again func(m message, stored int64, over uint64)
}

const (
	// removed is how long the notice stays that a retained message is removed, and
	// removedAway the same if other regions have to have it, which may be away.
	removed, removedAway = time.Minute, 24 * time.Hour
	// maxRemoved is of how many removed messages it is known when that was.
	maxRemoved = 10_000
)

func (k *keeper) init(prefix string, again func(m message, stored int64, over uint64)) {
	k.kept, k.times, k.prefix, k.again = map[string]message{}, map[string]int64{}, prefix, again
}

// hear takes what the stream has, and returns where it is there and how many bytes more
// are kept by it.
func (k *keeper) hear(msg jetstream.Msg) (seq uint64, more int) {
	meta, err := msg.Metadata()
	if err != nil {
		return 0, 0
	}
	subject := strings.TrimPrefix(msg.Subject(), k.prefix)
	m, ok := decode(subject, &nats.Msg{Data: msg.Data(), Header: msg.Headers()})
	m.seq = meta.Sequence.Stream
	defer k.heard.reach(m.seq)
	if !ok {
		return m.seq, 0
	}
	stored, err := strconv.ParseInt(msg.Headers().Get(headerStored), 10, 64)
	if err != nil {
		stored = meta.Timestamp.UnixNano()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if later, known := k.times[m.topic]; known && later > stored && msg.Headers().Get(headerRegion) != "" {
		newer, there := k.kept[m.topic]
		if !there {
			newer = message{topic: m.topic, client: m.client}
		}
		k.again(newer, later, m.seq)
		return m.seq, 0
	}
	k.times[m.topic] = stored
	more = len(m.payload) - len(k.kept[m.topic].payload)
	if len(m.payload) > 0 {
		k.kept[m.topic] = m // [MQTT-3.3.1-5]
		return m.seq, more
	}
	delete(k.kept, m.topic) // [MQTT-3.3.1-6]
	if len(k.times) > len(k.kept)+maxRemoved {
		maps.DeleteFunc(k.times, func(topic string, _ int64) bool {
			_, kept := k.kept[topic]
			return !kept
		})
	}
	return m.seq, more
}

// stamp is when a message of a topic is published: now, and after all that is known of it.
func (k *keeper) stamp(topic string) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(time.Now().UnixNano(), k.times[topic]+1)
}

// retainAgain stores m, which another region has put something older in the place of.
// Regions that retained something else at the same time have the same in the end.
func (a *account) retainAgain(m message, stored int64, over uint64) {
	if m.expired() {
		return
	}
	var p packet.Publish
	m.publish(&p)
	p.QoS, p.Retain = m.qos, true
	msg := a.keepsake(mapping.Subject(m.topic), m.client, &p.Message, stored)
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(over, 10))
	a.store(&a.retained, msg, nil, func(_ uint64, _ bool, err error) {
		if err != nil && !overtaken(err) && a.ctx.Err() == nil {
			a.p.log().Warn("a retained message is older than it was in another region", "account", a.name, "error", err)
		}
	})
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
			delete(k.times, m.topic)
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
	msg := a.keepsake(subject, client, p, a.keep.stamp(string(p.Topic)))
	store(&a.retained, msg, owner, func(_ uint64, _ bool, err error) { done(err) })
}

// keepsake is p as it is retained, published at a time.
func (a *account) keepsake(subject, client string, p *packet.Message, stored int64) *nats.Msg {
	msg := encode(a.at.retained+subject, client, p)
	ttl := time.Duration(0)
	switch {
	case len(p.Payload) == 0:
		if ttl = removed; a.at.region != "" && !a.retained.full.Load() && len(a.others()) > 0 {
			ttl = removedAway
		}
	case p.Expires:
		ttl = time.Duration(max(p.Expiry, 1)) * time.Second
	}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	if a.at.region != "" {
		msg.Header.Set(headerStored, strconv.FormatInt(stored, 10))
	}
	if ttl > 0 {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(int(ttl/time.Second))+"s")
	}
	return msg
}
