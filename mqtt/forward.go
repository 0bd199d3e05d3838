package mqtt

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What QoS 1 and 2 is published in a region is stored there, and forwarded from there to
// each other region that keeps something for MQTT in the account; so are retained
// messages. A record among those of the sessions has the place up to where that region has
// them, and one node of the region forwards. It does not matter if two do for a while:
// each does in order, from a place that was confirmed, and what comes twice is known by
// its number. What came from another region is not forwarded.
const (
	// forwardPrefix begins the names of those records, which no session's name does.
	forwardPrefix = "to_"
	// headerRegion is the region that a message was forwarded from.
	headerRegion = "Mqtt-Region"
	// forwardedAtOnce is how many messages may be on their way to a region.
	forwardedAtOnce = 512
	// headerStored is when a retained message was published, in nanoseconds: of two
	// regions' the later one stays.
	headerStored = "Mqtt-Stored"
	// meetEvery is how often other regions are told that this one keeps something, and
	// meetTimeout how long they may take to answer. After againEvery is tried again what
	// could not be forwarded.
	meetEvery, meetTimeout, againEvery = 10 * time.Second, 2 * time.Second, time.Second
	// forgetAfter is how long a region may be away before what is published meanwhile is
	// not kept for it any more.
	forgetAfter = 10 * time.Minute
	// stalledAfter is how long nothing of what waits may come to a region, if there is no
	// room for more, before it is removed.
	stalledAfter = 10 * time.Second
)

// forwarding is the record of what is forwarded to a region from one stream.
type forwarding struct {
	Region string `json:"region,omitempty"`
	// Place is where the region has what is its own, and Kind of which stream this is.
	Place string `json:"place,omitempty"`
	Kind  string `json:"kind,omitempty"`
	// Born tells the messages from others of the same numbers.
	Born string `json:"born,omitempty"`
	// Seq is up to where the region has them.
	Seq uint64 `json:"seq,omitempty"`
	// Gone says that nothing is forwarded any more.
	Gone bool `json:"gone,omitempty"`
}

// name is that of the record.
func (f *forwarding) name() string {
	return forwardPrefix + strings.TrimSuffix(f.Kind, ".") + "_" + f.Region
}

// meeting is what regions tell each other.
type meeting struct {
	Region string `json:"region"`
	Place  string `json:"place"`
}

// forwards are those of an account that this node does.
type forwards struct {
	mu      sync.Mutex
	running map[string]context.CancelFunc // by name of the record
	due     time.Time                     // when it is looked again what is to be forwarded
	first   bool                          // this node forwarded when it looked last

	// stalls are the regions for which something waits while there is no room, by name
	// of the record; of who cleans.
	stalls map[string]stall
}

// stall is up to where a region had what is its own, and since when.
type stall struct {
	seq   uint64
	since time.Time
	told  bool
}

// others names the other regions.
func (a *account) others() []string {
	_, _, others := a.conn.Regions()
	return others
}

// openForwards answers other regions, and asks them: when it returns, what they store
// from then on comes here.
func (a *account) openForwards(ctx context.Context) error {
	a.forwards.running, a.forwards.stalls = map[string]context.CancelFunc{}, map[string]stall{}
	if a.at.region == "" {
		return nil
	}
	if _, err := a.conn.Subscribe(meetPrefix+a.at.region, func(msg *nats.Msg) { a.running.Go(func() { a.met(msg) }) }); err != nil {
		return err
	}
	a.meetAll(ctx)
	return nil
}

// keepForwards has what is to be forwarded forwarded, if it is this node that does so.
func (a *account) keepForwards(now time.Time) {
	if a.at.region == "" {
		return
	}
	f := &a.forwards
	first, news := a.first(), a.index.forwardsAnew()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !first {
		for name, stop := range f.running {
			stop()
			delete(f.running, name)
		}
	}
	due := !now.Before(f.due) || first != f.first || news
	f.first = first
	if !due || !first {
		return
	}
	f.due = now.Add(meetEvery)
	others := a.others()
	a.running.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, openTimeout)
		defer cancel()
		a.resumeForwards(others)
		a.meetAll(ctx)
	})
}

// meetAll asks all other regions, and returns when those have answered that are there.
func (a *account) meetAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for _, region := range a.others() {
		if !a.conn.HeardElsewhere(meetPrefix + region) {
			continue // a client here that hears everything would be taken for one that may answer
		}
		asked.Go(func() {
			if err := a.meet(ctx, region); err != nil && a.ctx.Err() == nil && !errors.Is(err, nats.ErrNoResponders) {
				a.p.log().Debug("a region was not told that this one has MQTT clients", "account", a.name, "region", region, "error", err)
			}
		})
	}
	asked.Wait()
}

// meet tells a region that this one keeps something, and learns whether it does.
func (a *account) meet(ctx context.Context, region string) error {
	body, err := json.Marshal(meeting{a.at.region, a.at.house})
	if err != nil {
		return err
	}
	msg, err := a.conn.RequestWithContext(ctx, meetPrefix+region, body)
	if err != nil {
		return err
	}
	var theirs meeting
	if err := json.Unmarshal(msg.Data, &theirs); err != nil {
		return fmt.Errorf("reading what region %q answers: %w", region, err)
	}
	return a.forwardTo(ctx, theirs)
}

// met answers a region, when what is stored here from now on will be forwarded to it. Each
// node does so: which one is the first is not known for a while after one has died.
func (a *account) met(msg *nats.Msg) {
	var theirs meeting
	if json.Unmarshal(msg.Data, &theirs) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, openTimeout)
	defer cancel()
	err := a.forwardTo(ctx, theirs)
	var body []byte
	if err == nil {
		body, err = json.Marshal(meeting{a.at.region, a.at.house})
	}
	if err == nil {
		err = msg.Respond(body)
	}
	if err != nil && a.ctx.Err() == nil {
		a.p.log().Warn("MQTT is not forwarded to a region", "account", a.name, "region", theirs.Region, "error", err)
	}
}

// forwarded are the streams of which the messages are forwarded, by the kind of their
// subjects.
func (a *account) forwarded() map[string]*bounded {
	return map[string]*bounded{"msg.": &a.messages, "ret.": &a.retained}
}

// forwardTo has both streams forwarded to a region.
func (a *account) forwardTo(ctx context.Context, to meeting) error {
	if to.Region == a.at.region || !slices.Contains(a.others(), to.Region) || !strings.HasPrefix(to.Place, house) {
		return fmt.Errorf("region %q is not known", to.Region)
	}
	known := a.index.forwarded()
	for kind, b := range a.forwarded() {
		f := forwarding{Region: to.Region, Place: to.Place, Kind: kind, Born: rand.Text()}
		if known[f.name()].Place != to.Place {
			if err := a.begin(ctx, f, b); err != nil {
				return fmt.Errorf("forwarding to region %q: %w", to.Region, err)
			}
		}
		if a.first() {
			a.startForward(f.name(), b)
		}
	}
	return nil
}

// begin writes the record wanted, unless there is one: of messages from now on, and of all
// that is retained.
func (a *account) begin(ctx context.Context, wanted forwarding, b *bounded) error {
	f, revision, err := a.loadForward(ctx, wanted.name())
	if err != nil || !f.Gone && f.Place == wanted.Place {
		return err
	}
	if b == &a.messages {
		info, err := b.Info(ctx)
		if err != nil {
			return err
		}
		wanted.Seq = info.State.LastSeq
	}
	if _, err = a.saveForward(&wanted, revision); overtaken(err) {
		return nil // another node was told as well
	}
	return err
}

// loadForward reads a record. One that is missing is gone.
func (a *account) loadForward(ctx context.Context, name string) (f forwarding, revision uint64, err error) {
	msg, err := a.registry.GetLastMsgForSubject(ctx, a.at.session+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return forwarding{Gone: true}, 0, nil
	}
	if err != nil {
		return f, 0, fmt.Errorf("reading what is forwarded: %w", err)
	}
	if json.Unmarshal(msg.Data, &f) != nil {
		f = forwarding{Gone: true}
	}
	return f, msg.Sequence, nil
}

// saveForward writes a record over the one of that revision.
func (a *account) saveForward(f *forwarding, revision uint64) (uint64, error) {
	data, err := json.Marshal(f)
	if err != nil {
		return 0, fmt.Errorf("writing what is forwarded: %w", err)
	}
	msg := &nats.Msg{Subject: a.at.session + f.name(), Data: data, Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: []string{strconv.FormatUint(revision, 10)},
		jetstream.MsgIDHeader:               []string{rand.Text()}, // it may be written twice
	}}
	if f.Gone {
		msg.Header.Set(jetstream.MsgTTLHeader, removed.String())
	}
	return a.storeNow(&a.registry, msg)
}

// endForward has nothing forwarded any more, until the regions meet again.
func (a *account) endForward(f forwarding, revision uint64) error {
	f.Gone = true
	_, err := a.saveForward(&f, revision)
	return err
}

// resumeForwards goes on with what an earlier run, or another node, began.
func (a *account) resumeForwards(others []string) {
	for name, f := range a.index.forwarded() {
		if slices.Contains(others, f.Region) {
			a.startForward(name, a.forwarded()[f.Kind])
			continue
		}
		// It is a region of this fleet no more.
		_, revision, err := a.loadForward(a.ctx, name)
		if err == nil {
			err = a.endForward(f, revision)
		}
		if err != nil && a.ctx.Err() == nil {
			a.p.log().Debug("forgetting what was forwarded to a region", "account", a.name, "region", f.Region, "error", err)
		}
	}
}

// startForward forwards by a record, unless this node does so already.
func (a *account) startForward(name string, b *bounded) {
	o := &a.forwards
	o.mu.Lock()
	defer o.mu.Unlock()
	if b == nil || o.running[name] != nil || a.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(a.ctx)
	o.running[name] = stop
	a.running.Go(func() {
		err := a.forward(ctx, name, b)
		if err != nil && ctx.Err() == nil && !overtaken(err) {
			a.p.log().Warn("MQTT is not forwarded to a region for now", "account", a.name, "session", name, "error", err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if ctx.Err() == nil { // otherwise another one may run
			delete(o.running, name)
			o.due = time.Now().Add(againEvery)
		}
		stop()
	})
}

// errForgotten says that a region was away for too long.
var errForgotten = errors.New("it was away, or had no room, for too long: what was published meanwhile does not come there")

// forward forwards until ctx is done, another node does, or nothing is to be.
func (a *account) forward(ctx context.Context, name string, b *bounded) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, revision, err := a.loadForward(ctx, name)
	if err != nil || f.Gone {
		return err
	}
	w, err := newWriter(a.conn.Conn)
	if err != nil {
		return err
	}
	defer w.close()
	consumer, err := b.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: f.Seq + 1, // also what is not forwarded, which is not kept for it
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(forwardedAtOnce, 4*a.p.window()), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return err
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	came := make(chan jetstream.Msg)
	failed := make(chan error, 1)
	a.running.Go(func() {
		for {
			msg, err := messages.Next()
			if err != nil {
				failed <- err
				return
			}
			select {
			case came <- msg:
			case <-ctx.Done():
				return
			}
		}
	})
	to := &crossing{a: a, writer: w, f: &f}
	idle := time.NewTicker(weighEvery)
	defer idle.Stop()
	saved, at := f.Seq, time.Now()
	for {
		var batch []jetstream.Msg
		select {
		case err := <-failed:
			return err
		case msg := <-came:
			batch = append(batch, msg)
		case <-idle.C:
		}
		for more := len(batch) > 0; more && len(batch) < forwardedAtOnce; {
			select {
			case msg := <-came:
				batch = append(batch, msg)
			case <-time.After(time.Millisecond):
				more = false
			}
		}
		sent := 0
		if len(batch) > 0 {
			if sent, err = to.send(ctx, batch); err != nil {
				if errors.Is(err, errForgotten) {
					err = errors.Join(err, a.endForward(f, revision))
				}
				return err
			}
			meta, err := batch[len(batch)-1].Metadata()
			if err != nil {
				return err
			}
			f.Seq = meta.Sequence.Stream
		}
		// Where nothing was sent, the record may say less for a while.
		if sent > 0 || f.Seq > saved && time.Since(at) >= weighEvery {
			if revision, err = a.saveForward(&f, revision); err != nil {
				return err
			}
			saved, at = f.Seq, time.Now()
		}
	}
}

// A crossing is the way to another region.
type crossing struct {
	a      *account
	writer *writer
	f      *forwarding
	asked  time.Time // when the region was asked for room last
	left   int64     // how much there was, less what was sent since, in bytes
}

// outgoing are the messages of a batch as they go to the region: of those that take one
// another's place only the last, so that it does not matter in which order they come.
func (c *crossing) outgoing(batch []jetstream.Msg) (out []*nats.Msg, err error) {
	place := map[string]int{}
	for _, msg := range batch {
		one, err := c.a.outgoing(msg, c.f)
		if err != nil {
			return nil, err
		}
		if one == nil {
			continue
		}
		if i, ok := place[one.Subject]; ok && c.f.Kind == "ret." {
			out[i] = one
			continue
		}
		place[one.Subject] = len(out)
		out = append(out, one)
	}
	return out, nil
}

// send has a batch stored in the region, in order, however long that takes. It returns how
// many of it are to be there.
func (c *crossing) send(ctx context.Context, batch []jetstream.Msg) (int, error) {
	left, err := c.outgoing(batch)
	sent := len(left)
	for began := time.Now(); err == nil && len(left) > 0; {
		if c.room(ctx) {
			if left, err = c.try(ctx, left); err != nil || len(left) == 0 {
				break
			}
		}
		if c.f.Kind == "msg." && time.Since(began) > forgetAfter { // what is retained does not grow
			return 0, errForgotten
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(againEvery):
		}
	}
	return sent, err
}

// room reports whether the region has room for more stored messages, as far as is known:
// its own nodes refuse only what its own clients publish. If it has none they wait, as
// when it is away.
func (c *crossing) room(ctx context.Context) bool {
	if c.f.Kind != "msg." || c.left > 0 && time.Since(c.asked) < weighEvery {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	there, err := jetstream.NewWithDomain(c.a.conn.Conn, c.f.Region)
	if err != nil {
		return true
	}
	stream, err := there.Stream(ctx, messagesStream)
	if c.left, c.asked = c.a.messages.most, time.Now(); err == nil {
		c.left -= int64(stream.CachedInfo().State.Bytes)
	}
	return c.left > 0
}

// full are the engine's refusals of a stream that may have room later.
var full = []jetstream.ErrorCode{noResources, noStorage, 10002, 10077}

// try sends messages, and returns those of which it is not known that they are there.
func (c *crossing) try(ctx context.Context, msgs []*nats.Msg) (again []*nats.Msg, err error) {
	answers := make([]error, len(msgs))
	waits := &waiting{done: make(chan struct{}), n: len(msgs)}
	for i, msg := range msgs {
		c.left -= int64(len(msg.Data)) + overhead
		c.writer.write(msg, c.f, func(_ uint64, _ bool, err error) { waits.answer(&answers[i], err) })
	}
	if err := waits.wait(ctx, c.writer); err != nil {
		return nil, err
	}
	for i, err := range answers {
		switch {
		case errors.Is(err, errUnanswered) || refused(err, full...):
			again = append(again, msgs[i])
		case err != nil:
			c.a.p.log().Warn("a region does not take what MQTT clients published", "account", c.a.name, "region", c.f.Region, "error", err)
		}
	}
	return again, nil
}

// waiting counts answers.
type waiting struct {
	mu   sync.Mutex
	n    int
	done chan struct{}
}

func (w *waiting) answer(place *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*place = err
	if w.n--; w.n == 0 {
		close(w.done)
	}
}

// wait waits for the answers, and keeps the writer going.
func (w *waiting) wait(ctx context.Context, to *writer) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			to.tick(now)
		}
	}
}

// outgoing is msg as it goes to another region; nil if it does not.
func (a *account) outgoing(msg jetstream.Msg, f *forwarding) (*nats.Msg, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	rest, ok := strings.CutPrefix(msg.Subject(), a.at.house+f.Kind)
	if !ok || msg.Headers().Get(headerRegion) != "" {
		return nil, nil
	}
	out := &nats.Msg{Subject: f.Place + f.Kind + rest, Data: msg.Data(), Header: maps.Clone(msg.Headers())}
	if out.Header == nil {
		out.Header = nats.Header{}
	}
	for name := range out.Header {
		if strings.HasPrefix(name, "Nats-") && name != jetstream.MsgTTLHeader {
			delete(out.Header, name)
		}
	}
	if f.Kind == "ret." && out.Header.Get(headerStored) == "" {
		out.Header.Set(headerStored, strconv.FormatInt(meta.Timestamp.UnixNano(), 10))
	}
	out.Header.Set(headerRegion, a.at.region)
	out.Header.Set(jetstream.MsgIDHeader, f.Born+"."+strconv.FormatUint(meta.Sequence.Stream, 36))
	return out, nil
}

// unforwarded are the needs of other regions: what is stored and they have not got. If
// there is no room for more, one to which nothing comes has none any more: it must not have
// publishers refused. It is for who cleans.
func (a *account) unforwarded(now time.Time) (needs []need) {
	stalls := map[string]stall{}
	for name, f := range a.index.forwarded() {
		if f.Kind != "msg." {
			continue
		}
		if a.messages.full.Load() && f.Seq < a.last.Load() {
			s, ok := a.forwards.stalls[name]
			if !ok || s.seq != f.Seq {
				s = stall{seq: f.Seq, since: now}
			}
			lost := now.Sub(s.since) >= stalledAfter
			if lost && !s.told {
				s.told = true
				a.p.log().Warn("what MQTT clients publish is removed before a region has it: there is no more room", "account", a.name, "region", f.Region)
			}
			if stalls[name] = s; lost {
				continue
			}
		}
		needs = append(needs, need{who: "region " + f.Region, group: true, seq: f.Seq, filters: []string{everything}})
	}
	a.forwards.stalls = stalls
	return needs
}
