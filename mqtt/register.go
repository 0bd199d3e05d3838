package mqtt

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// record is what of a session outlives its connection, and the node. [MQTT-4.1.0-1]
type record struct {
	ID    string `json:"id"`
	Owner string `json:"owner"`
	// Born tells this session from others of the same client.
	Born string `json:"born,omitempty"`
	// Run is the run of the node that the client is connected to; empty: it is away
	// since Left, and was last on By.
	Run  string    `json:"run,omitempty"`
	By   string    `json:"by,omitempty"`
	Left time.Time `json:"left,omitzero"`
	// Expiry is in seconds from Left.
	Expiry uint32 `json:"expiry,omitempty"`
	// Seq is up to where the stored messages were sent to the client, or are in Out.
	Seq uint64 `json:"seq,omitempty"`
	// Part is how many of the pack that follows were, or are.
	Part int                     `json:"part,omitempty"`
	Subs map[string]subscription `json:"subs,omitempty"`
	Out  []flight                `json:"out,omitempty"`
	// Ended are the filters of subscriptions that ended before all in Out that they
	// had taken was acknowledged.
	Ended []string `json:"ended,omitempty"`
	// In are the numbers of the messages of QoS 2 that the client has not released,
	// 0 for one that is known to be stored; Count is the last of the numbers.
	In     map[uint16]uint64 `json:"arrived,omitempty"`
	Count  uint64            `json:"count,omitempty"`
	Next   uint16            `json:"next,omitempty"`
	Will   *will             `json:"will,omitempty"`
	WillAt time.Time         `json:"will_at,omitzero"`
	// Gone says that the session ended.
	Gone bool `json:"gone,omitempty"`
}

// subscription is one of a session.
type subscription struct {
	QoS    packet.QoS            `json:"qos"`
	ID     uint32                `json:"id,omitempty"`
	Local  bool                  `json:"no_local,omitempty"`
	Retain bool                  `json:"retain_as_published,omitempty"`
	From   uint64                `json:"from,omitempty"` // it wants stored messages after this one
	Group  string                `json:"group,omitempty"`
	made   int                   // the how many-th it is
	share  *holding              // of a shared one
	handle packet.RetainHandling // what was asked for
}

// flight is a message that the client has not acknowledged, expired or not.
// [MQTT-4.3.3-7] [MQTT-4.3.3-13] [MQTT-4.4.0-1]
type flight struct {
	ID  uint16 `json:"id"`
	Seq uint64 `json:"seq,omitempty"`
	// Part is how many messages of its pack are before it.
	Part int        `json:"part,omitempty"`
	QoS  packet.QoS `json:"qos"`
	// Released says that PUBREL was sent or is about to be. [MQTT-4.3.3-6]
	Released bool `json:"released,omitempty"`
	// Retained says that it is a retained message, whose Seq is in that stream.
	Retained bool   `json:"retained,omitempty"`
	Sub      uint32 `json:"sub,omitempty"`
	Share    string `json:"share,omitempty"` // where its group is told that it is taken
	sent     bool   // on this connection
	done     func() // tells the consumer of a shared subscription
}

// will is a will as it is stored.
type will struct {
	// ID tells the engine that it has it already: who publishes it may die, and
	// another does it then.
	ID      string        `json:"id,omitempty"`
	Topic   string        `json:"topic"`
	Payload []byte        `json:"payload,omitempty"`
	QoS     packet.QoS    `json:"qos,omitempty"`
	Retain  bool          `json:"retain,omitempty"`
	Delay   uint32        `json:"delay,omitempty"`
	Expires bool          `json:"expires,omitempty"`
	Expiry  uint32        `json:"expiry,omitempty"`
	Format  packet.Format `json:"format,omitempty"`
	Content []byte        `json:"content,omitempty"`
	Reply   []byte        `json:"reply,omitempty"`
	Corr    []byte        `json:"corr,omitempty"`
	User    []packet.Pair `json:"user,omitempty"`
}

func newWill(w *packet.Will) *will {
	if w == nil { // [MQTT311-3.1.2-12]
		return nil
	}
	return &will{
		ID: rand.Text(), Topic: string(w.Topic), Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Delay: w.Delay, Expires: w.Expires, Expiry: w.Expiry,
		Format: w.Format, Content: w.ContentType, Reply: w.ResponseTopic, Corr: w.CorrelationData, User: w.UserProperties,
	}
}

func (w *will) message() *packet.Message {
	return &packet.Message{
		Topic: []byte(w.Topic), Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Expires: w.Expires, Expiry: w.Expiry,
		Format: w.Format, ContentType: w.Content, ResponseTopic: w.Reply, CorrelationData: w.Corr, UserProperties: w.User,
	}
}

// left marks the client as away from now on. [MQTT-3.1.2-8]
func (r *record) left(now time.Time, by string) {
	r.Run, r.By, r.Left = "", by, now
	if r.Will != nil {
		r.WillAt = now.Add(time.Duration(min(r.Will.Delay, r.Expiry)) * time.Second)
	}
}

// ends is when a session whose client is away expires.
func (r *record) ends() time.Time {
	return r.Left.Add(min(time.Duration(r.Expiry)*time.Second, maxExpiry))
}

// register has the sessions of an account, as far as it has heard.
type register struct {
	heard   follower
	mu      sync.Mutex
	entries map[string]entry
	beats   map[string]beat // of the runs of all nodes
	back    func()          // answers the first beat of a node
	// abandoned are the sessions that have ended on this node, which could not be
	// stored. Their records may say that their clients are here.
	abandoned map[string]bool
	// forwards are the records of what is forwarded to other regions, and anew says that
	// there is another one.
	forwards map[string]forwarding
	anew     bool
}

func (x *register) init(back func()) {
	x.entries, x.beats, x.abandoned, x.back, x.forwards = map[string]entry{}, map[string]beat{}, map[string]bool{}, back, map[string]forwarding{}
}

// abandon has the record of key looked at.
func (x *register) abandon(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.abandoned[key] = true
}

func (x *register) isAbandoned(key string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.abandoned[key]
}

// adopt is called when the client of key is here.
func (x *register) adopt(key string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.abandoned, key)
}

// beat is the last that was heard of a node.
type beat struct {
	at    time.Time
	floor uint64 // of its sessions
	addr  string // at which clients reach it; may be empty
}

// gone is the last word of a node.
const gone = "gone"

// entry is what is remembered of a record.
type entry struct {
	seq     uint64
	filters []string
	run, by string
	due     time.Time // when something is to be done
	seen    time.Time
}

func (x *register) beat(msg *nats.Msg) {
	run := last(msg.Subject)
	x.mu.Lock()
	_, known := x.beats[run]
	if floor, err := strconv.ParseUint(string(msg.Data), 10, 64); err == nil {
		x.beats[run] = beat{time.Now(), floor, msg.Header.Get(headerServer)}
	} else {
		delete(x.beats, run)
		known = true
	}
	x.mu.Unlock()
	if !known {
		x.back()
	}
}

// others are the runs of the other nodes that are there.
func (x *register) others(now time.Time, own string) (runs []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for run, b := range x.beats {
		switch {
		case now.Sub(b.at) > deadAfter:
			delete(x.beats, run)
		case run != own:
			runs = append(runs, run)
		}
	}
	return runs
}

// maxServers bounds what a client is told where else it may go.
const maxServers = 8

// servers are where clients reach the other nodes that are there, some of them, in any
// order.
func (x *register) servers(now time.Time, own string) (addrs []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for run, b := range x.beats {
		if run != own && b.addr != "" && now.Sub(b.at) <= deadAfter && len(addrs) < maxServers {
			addrs = append(addrs, b.addr)
		}
	}
	return addrs
}

func (x *register) hear(msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		return
	}
	defer x.heard.reach(meta.Sequence.Stream)
	key := last(msg.Subject())
	if strings.HasPrefix(key, forwardPrefix) {
		x.hearForward(key, msg.Data())
		return
	}
	var r record
	if json.Unmarshal(msg.Data(), &r) != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if r.Gone {
		delete(x.entries, key)
		return
	}
	e := entry{seq: r.Seq, filters: r.filters(), run: r.Run, by: r.By, seen: time.Now()}
	for _, f := range r.Out {
		if !f.Released && !f.Retained { // it will be sent again
			e.seq = min(e.seq, f.Seq-1)
		}
	}
	if r.Run == "" {
		e.due = r.ends()
		if r.Will != nil && r.WillAt.Before(e.due) {
			e.due = r.WillAt
		}
	}
	x.entries[key] = e
}

func (x *register) hearForward(name string, data []byte) {
	var f forwarding
	if json.Unmarshal(data, &f) != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.Gone {
		delete(x.forwards, name)
		return
	}
	x.anew = x.anew || x.forwards[name].Born != f.Born
	x.forwards[name] = f
}

// forwardsAnew reports whether there was another record since it was asked last.
func (x *register) forwardsAnew() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	anew := x.anew
	x.anew = false
	return anew
}

// forwarded are the records of what is forwarded to other regions, by name.
func (x *register) forwarded() map[string]forwarding {
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.forwards)
}

// filters are those of the stored messages that the session may still ask for.
func (r *record) filters() (filters []string) {
	for key, sub := range r.Subs {
		// What was taken may be of one that now takes less.
		if sub.QoS > 0 && sub.Group == "" || len(r.Out) > 0 {
			if _, filter, err := packet.CheckFilter(key); err == nil {
				filters = append(filters, filter)
			}
		}
	}
	return append(filters, r.Ended...)
}

// floor is up to where, as the other nodes say, no session needs a stored message
// that has no record.
func (x *register) floor(now time.Time, own string) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	floor := uint64(math.MaxUint64)
	for run, b := range x.beats {
		if run != own && now.Sub(b.at) <= deadAfter {
			floor = min(floor, b.floor)
		}
	}
	return floor
}

// needs are those of the sessions that have a record.
func (x *register) needs() []need {
	x.mu.Lock()
	defer x.mu.Unlock()
	needs := make([]need, 0, len(x.entries))
	for key, e := range x.entries {
		if e.run != "" || len(e.filters) > 0 {
			needs = append(needs, need{who: key, here: e.run != "", seq: e.seq, filters: e.filters})
		}
	}
	return needs
}

// needed is up to where, of what is stored up to most, none of them needs anything.
func (x *register) needed(most uint64) uint64 {
	for _, n := range x.needs() {
		most = min(most, n.seq)
	}
	return most
}

// due are the keys of which something is to be done now by this node: of clients
// that it had, and, later, of those that nodes had that are not heard of.
func (x *register) due(now time.Time, run string) (keys []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for key, e := range x.entries {
		switch {
		case e.run == run && x.abandoned[key]:
			if now.Sub(e.seen) > othersWait {
				keys = append(keys, key)
			}
		case e.run == run:
		case e.run != "":
			alive := x.beats[e.run].at
			if alive.Before(e.seen) {
				alive = e.seen
			}
			if now.Sub(alive) > deadAfter {
				keys = append(keys, key)
			}
		case now.After(e.due) && (e.by == run || now.Sub(e.due) > othersWait):
			keys = append(keys, key)
		}
	}
	return keys
}

// load reads the record of key. One that is missing is the zero value.
func (a *account) load(ctx context.Context, key string) (r record, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var msg *jetstream.RawStreamMsg
	err = again(ctx, func(ctx context.Context) (err error) {
		msg, err = a.registry.GetLastMsgForSubject(ctx, a.at.session+key)
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return record{Gone: true}, 0, nil
	}
	if err != nil {
		return r, 0, fmt.Errorf("reading an MQTT session: %w", err)
	}
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		r = record{Gone: true}
	}
	return r, msg.Sequence, nil
}

// save writes the record of key over the one of that revision.
func (a *account) save(key string, r *record, revision uint64, done func(revision uint64, err error)) {
	data, err := json.Marshal(r)
	if err != nil {
		done(0, fmt.Errorf("writing an MQTT session: %w", err))
		return
	}
	msg := &nats.Msg{Subject: a.at.session + key, Data: data, Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: []string{strconv.FormatUint(revision, 10)},
		jetstream.MsgIDHeader:               []string{rand.Text()}, // it may be written twice
	}}
	if r.Gone {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(int(removed/time.Second))+"s")
	}
	a.store(&a.registry, msg, nil, func(seq uint64, _ bool, err error) { done(seq, err) })
}

func (a *account) saveNow(key string, r *record, revision uint64) (uint64, error) {
	answered := make(chan struct{})
	var err error
	a.save(key, r, revision, func(seq uint64, e error) {
		revision, err = seq, e
		close(answered)
	})
	<-answered
	return revision, err
}

// sweep does what is due of the sessions whose clients are away. Nodes may try the
// same at once: who writes the record first does it.
func (a *account) sweep(now time.Time) {
	for _, key := range a.index.due(now, a.p.run()) {
		if !a.index.claim(key, now) {
			continue
		}
		a.running.Go(func() {
			if err := a.attend(key, now); err != nil && a.ctx.Err() == nil && !overtaken(err) {
				a.p.log().Debug("attending to an MQTT session", "account", a.name, "error", err)
			}
		})
	}
}

// claim puts off the next look at key.
func (x *register) claim(key string, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, ok := x.entries[key]
	if ok {
		e.seen, e.due = now, now.Add(storeTimeout)
		x.entries[key] = e
	}
	return ok
}

func (a *account) attend(key string, now time.Time) error {
	r, revision, err := a.load(a.ctx, key)
	if err != nil || r.Gone {
		return err
	}
	if r.Run == a.p.run() && !a.index.isAbandoned(key) {
		return nil // it is here again
	}
	if r.Run != "" { // its node died
		r.left(now, a.p.run())
		a.claims(&r)
	}
	w := r.Will
	if w != nil && (r.WillAt.After(now) && r.ends().After(now)) {
		w = nil
	}
	if err := a.announce(w, key); err != nil {
		return err
	}
	if w != nil {
		r.Will = nil // [MQTT-3.1.2-10]
	}
	r.Gone = !r.ends().After(now) // [MQTT-4.1.0-2]
	if r.Gone {
		r = record{ID: r.ID, Gone: true}
	}
	if _, err := a.saveNow(key, &r, revision); err != nil {
		return err
	}
	a.tell(w, key)
	return nil
}

// claims tells the groups what a session has of them: its node may have died before
// it could.
func (a *account) claims(r *record) {
	var shares []string
	for _, f := range r.Out {
		if f.Share != "" {
			shares = append(shares, f.Share)
		}
	}
	if len(shares) > 0 {
		a.running.Go(func() {
			for _, share := range shares {
				a.claim(share)
			}
		})
	}
}

// announce stores a will, if there is one and it is to be stored: before the record
// says that it is done with.
func (a *account) announce(w *will, client string) error {
	if w == nil {
		return nil
	}
	m, subject := w.message(), mapping.Subject(w.Topic)
	var err error
	if m.QoS > 0 {
		err = a.storeWill(&a.messages, encode(a.at.message+subject, client, m), w)
	}
	if m.Retain && err == nil { // [MQTT-3.1.2-14] [MQTT-3.1.2-15]
		err = a.storeWill(&a.retained, a.keepsake(subject, client, m, a.keep.stamp(w.Topic)), w)
	}
	return err
}

// storeWill stores msg, unless it is refused: then nobody will.
func (a *account) storeWill(b *bounded, msg *nats.Msg, w *will) error {
	msg.Header.Set(jetstream.MsgIDHeader, w.ID)
	err := errFull
	if !b.full.Load() {
		_, err = a.storeNow(b, msg)
	}
	switch {
	case errors.Is(err, errUnanswered):
		return fmt.Errorf("storing a will: %w", err)
	case err != nil:
		a.p.log().Warn("a will was not stored", "account", a.name, "error", err)
	}
	return nil
}

// tell publishes a will, if there is one, for those who hear at QoS 0.
func (a *account) tell(w *will, client string) {
	if w != nil {
		_ = a.conn.PublishMsg(encode(mapping.Subject(w.Topic), client, w.message()))
	}
}
