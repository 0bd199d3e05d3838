package mqtt

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/wire"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// maxQueue is how many stored messages wait in memory for a client; the others
	// wait in the stream.
	maxQueue = 512
	// lazily is how long it may take until it is stored what a client acknowledged.
	lazily = time.Second
	// maxSubscriptions is how many a session may have.
	maxSubscriptions = 1024
)

// session is a client that is connected, and its session.
//
// The goroutine of serve reads its packets; others hear the engine. Locks are
// taken in the order feed, mu, outbox.
type session struct {
	p     *Protocol
	a     *account
	said  said
	conn  net.Conn
	login *fleetbus.Session
	r     *packet.Reader
	out   outbox
	v     packet.Version
	id    string
	key   string
	done  chan struct{}   // closed when nothing of it is left
	ctx   context.Context // until the connection ends

	// Of the goroutine that reads.
	aliases map[uint16]string
	normal  bool               // the client said good-bye
	texts   bool               // it wants to be told why something is refused
	why     string             // what it published last is refused
	calm    int                // messages of QoS 1 since one of QoS 0
	known   map[string]address // by topic
	lines   []byte             // what it published, for over, until flush
	over    *wire.Conn
	wire    *wire.Conn // that of login, when it is open
	largest int        // message that the engine takes, in bytes

	here bool // other nodes may ask for it; the feed's lock is held

	mu       sync.Mutex
	rec      record
	durable  bool // rec is stored
	revision uint64
	saving   bool
	saves    []func() // to call, with mu held, when what is now is stored
	sleeping *time.Timer
	closed   bool

	quota     int // of PUBLISH packets that the client takes now
	queue     []message
	queued    int           // bytes of payload in queue and held
	space     chan struct{} // has an element if an answer went out
	parted    bool          // it was offered the messages upTo here, and is no more
	upTo      uint64
	behind    uint64        // if not 0, the stream has messages from here on for it
	held      []message     // came while the stream is being read
	greeted   bool          // CONNACK is sent
	reading   bool          // the stream is being read
	at        uint64        // the session has not been given what is stored from here on
	asking    bool          // it is asked where subscriptions begin
	repeating bool          // what was not acknowledged is being sent again
	room      chan struct{} // has an element if the queue is shorter, or a flight ended
	flights   map[uint16]*flight
	order     []*flight
	in        map[uint16]*arrival
	pending   []*answer         // to PUBLISH, in their order
	pack      pack              // what waits to be stored
	local     atomic.Bool       // it has a subscription with No Local
	resumed   bool              // it had subscriptions
	made      int               // subscriptions until now
	judged    bool              // its permissions have to be asked of each message
	given     map[string]uint16 // the topic aliases that the client knows
	aliasMax  uint16
	replies   replies
	owed      map[string]owed // by topic
}

// attach makes s the session of its client identifier, here and at every other
// node, and reports whether there was one before. [MQTT-3.1.3-2] [MQTT-3.1.4-4]
func (s *session) attach(ctx context.Context, c *packet.Connect) (present bool, err error) {
	a := s.a
	for try := 0; ; try++ {
		if err := a.claimLocal(ctx, s); err != nil {
			return false, err
		}
		present, err = s.resume(ctx, c)
		if err == nil {
			return present, nil
		}
		a.part(s)
		a.release(s)
		if !overtaken(err) || try == 10 {
			return false, err
		}
	}
}

// claimLocal makes s the holder of its key on this node. [MQTT-3.1.4-3]
func (a *account) claimLocal(ctx context.Context, s *session) error {
	for {
		a.feed.Lock()
		old := a.feed.local[s.key]
		if old == nil {
			a.feed.local[s.key] = s
		}
		a.feed.Unlock()
		if old == nil {
			a.index.adopt(s.key)
			return nil
		}
		old.kick(packet.SessionTakenOver, "another client has its identifier")
		select {
		case <-old.done:
		case <-ctx.Done():
			return fmt.Errorf("taking over a session: %w", ctx.Err())
		}
	}
}

// part has s hear nothing any more.
func (a *account) part(s *session) {
	for key := range s.rec.Subs {
		a.leave(s, key)
	}
	a.feed.Lock()
	defer a.feed.Unlock()
	s.mu.Lock()
	s.upTo, s.parted = a.last.Load(), true
	s.mu.Unlock()
	for filter := range s.rec.Subs {
		a.feed.tree.remove(filter, s)
	}
}

// release lets others have the key of s. Who has it reads the record.
func (a *account) release(s *session) {
	a.feed.Lock()
	defer a.feed.Unlock()
	if a.feed.local[s.key] == s {
		delete(a.feed.local, s.key)
	}
}

// resume reads what is stored of the session, and writes that it is here.
func (s *session) resume(ctx context.Context, c *packet.Connect) (present bool, err error) {
	a := s.a
	a.ask(ctx, s.key)
	old, revision, err := a.load(ctx, s.key)
	if err != nil {
		return false, err
	}
	now := time.Now()
	if !old.Gone && old.Run != "" { // its node died, or does not answer
		old.left(now, old.By)
	}
	if !old.Gone && !old.ends().After(now) { // [MQTT-4.1.0-2]
		revision, err = s.end(&old, revision)
		if err != nil {
			return false, err
		}
	}
	if !old.Gone && c.CleanStart { // [MQTT-3.1.2-4]
		if revision, err = s.end(&old, revision); err != nil {
			return false, err
		}
	}
	s.mu.Lock()
	s.rec, s.revision = record{Born: rand.Text()[:8]}, revision
	if present = !old.Gone; present { // [MQTT-3.1.2-5]
		s.rec = old
	} else { // [MQTT-3.1.2-6]
		s.rec.Seq = a.last.Load()
	}
	s.reading, s.at = true, s.rec.Seq+1 // until CONNACK is sent, and what waits
	was := old.Will
	if old.WillAt.After(now) {
		was = nil // [MQTT-3.1.3-9]
	}
	s.rec.ID, s.rec.Owner, s.rec.Run, s.rec.By = s.id, s.login.Principal.String(), a.p.run(), a.p.run()
	s.rec.Left, s.rec.WillAt, s.rec.Gone = time.Time{}, time.Time{}, false
	s.rec.Will = newWill(c.Will) // [MQTT-3.1.2-7]
	s.rec.Expiry = s.expiry(c)
	if s.rec.Subs == nil {
		s.rec.Subs = map[string]subscription{}
	}
	s.durable = s.rec.Expiry > 0 || s.rec.Will != nil
	full := s.durable && !present && a.registry.full.Load()
	s.quota, s.order = s.quota+len(s.order), nil // of the last try
	clear(s.flights)
	clear(s.in)
	for id, number := range s.rec.In {
		s.in[id] = &arrival{number: number, stored: number == 0}
	}
	for i := range s.rec.Out {
		f := s.rec.Out[i]
		s.flights[f.ID] = &f
		s.order = append(s.order, &f)
		if f.Released {
			f.sent = true
			s.quota--
		}
	}
	r := s.snapshot()
	s.mu.Unlock()
	if full {
		return false, errFull
	}
	if err := a.announce(was, s.key); err != nil {
		return false, err
	}
	if s.durable {
		if revision, err = a.saveNow(s.key, &r, revision); err != nil {
			return false, err
		}
		s.mu.Lock()
		s.revision = revision
		s.mu.Unlock()
	} else if present {
		if _, err := a.saveNow(s.key, &record{ID: s.id, Gone: true}, revision); err != nil {
			return false, err
		}
	}
	a.feed.Lock()
	s.here = true
	a.feed.Unlock()
	a.tell(was, s.key)
	a.claims(&r)
	return present, nil
}

// end ends a session that is stored, and publishes its will.
func (s *session) end(old *record, revision uint64) (uint64, error) {
	if err := s.a.announce(old.Will, s.key); err != nil {
		return 0, err
	}
	revision, err := s.a.saveNow(s.key, &record{ID: old.ID, Gone: true}, revision)
	if err != nil {
		return 0, err
	}
	s.a.tell(old.Will, s.key)
	*old = record{Gone: true}
	return revision, nil
}

// expiry is how long the session is kept without its client, in seconds.
func (s *session) expiry(c *packet.Connect) uint32 {
	if c.Version == packet.V311 { // [MQTT311-3.1.2-4] [MQTT311-3.1.2-6]
		if c.CleanStart {
			return 0
		}
		return s.p.sessionExpiry()
	}
	return min(c.SessionExpiry, s.p.sessionExpiry())
}

// detach ends the connection's part of the session: what is to outlive it is
// stored, or the session ends.
func (s *session) detach() {
	s.mu.Lock()
	s.storePack()
	s.closed = true
	if s.sleeping != nil {
		s.sleeping.Stop()
	}
	var shares []*holding
	for _, sub := range s.rec.Subs {
		if sub.share != nil {
			shares = append(shares, sub.share)
		}
	}
	s.mu.Unlock()
	for _, share := range shares {
		share.end()
	}
	s.login.Close()
	for _, b := range s.a.streams() {
		b.writer.drop(s) // its client publishes it again, and then it has its turn
	}
	s.a.part(s)
	defer s.a.release(s)

	s.mu.Lock()
	if s.normal {
		s.rec.Will = nil // [MQTT-3.14.4-3] [MQTT-3.1.2-10]
	}
	for s.saving {
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
		s.mu.Lock()
	}
	s.rec.left(time.Now(), s.p.run())
	r, w := s.snapshot(), s.rec.Will
	durable, revision, flights := s.durable, s.revision, s.order
	s.mu.Unlock()
	if r.WillAt.After(time.Now()) {
		w = nil // the sweep publishes it
	}
	err := s.a.announce(w, s.key)
	switch {
	case err != nil:
		w = nil // the sweep tries again
	case w != nil:
		r.Will = nil
	}
	if r.Expiry == 0 && err == nil { // [MQTT-3.1.2-23]
		r = record{ID: r.ID, Gone: true}
	}
	if durable {
		if _, err = s.a.saveNow(s.key, &r, revision); err != nil {
			w = nil // another node has it, or finds it
			s.a.index.abandon(s.key)
			if !overtaken(err) {
				s.log("an MQTT session was not stored", "error", err)
			}
		}
	}
	s.a.tell(w, s.key)
	if err == nil {
		s.a.claims(&r)
	}
	for _, share := range shares {
		share.giveBack(flights)
	}
}

// kick ends the connection from this side, for a reason that a client of 5.0 is
// told. [MQTT-4.13.1-1]
func (s *session) kick(code packet.Code, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expel(code, why)
}

// expel is kick, with mu held.
func (s *session) expel(code packet.Code, why string) {
	s.dismiss(&packet.Disconnect{Code: code, ReasonString: why})
}

// dismiss ends the connection with the first of some packets that fits the client; mu is
// held.
func (s *session) dismiss(last ...*packet.Disconnect) {
	if s.closed {
		return
	}
	s.closed = true
	for _, d := range last {
		if s.v != packet.V5 || s.out.send(d) {
			break
		}
	}
	s.out.end() // [MQTT-3.14.4-1] [MQTT-3.14.4-2]
}

// redirect ends the connection because the node stops, and says where else the client
// may go, if there is another node. [MQTT 4.11]
func (s *session) redirect() {
	last := []*packet.Disconnect{{Code: packet.ServerShuttingDown, ReasonString: "the node stops"}}
	if s.p.advertised() != "" { // others are of its kind
		if others := s.a.index.servers(time.Now(), s.p.run()); len(others) > 0 {
			other := &packet.Disconnect{Code: packet.UseAnotherServer, ReasonString: "the node stops", ServerReference: strings.Join(others, " ")}
			last = slices.Insert(last, 0, other)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dismiss(last...)
}

// snapshot is the record as it is now; mu is held.
func (s *session) snapshot() record {
	r := s.rec
	r.Out = nil
	for _, f := range s.order {
		if f.done == nil {
			r.Out = append(r.Out, *f)
		}
	}
	if r.Out == nil {
		r.Ended, s.rec.Ended = nil, nil
	}
	r.In = nil
	for id, arrived := range s.in {
		if r.In == nil {
			r.In = map[uint16]uint64{}
		}
		r.In[id] = arrived.number
		if arrived.stored {
			r.In[id] = 0
		}
	}
	r.Subs = maps.Clone(s.rec.Subs)
	r.Seq, r.Part = s.floor()
	return r
}

// floor is up to where the stored messages were sent, or are flights, and how many
// of the pack that follows were, or are.
func (s *session) floor() (seq uint64, part int) {
	at := s.at - 1
	switch {
	case s.reading:
	case s.behind > 0:
		at = s.behind - 1
	case s.parted:
		at = max(at, s.upTo)
	default: // what the node heard, this session was offered
		at = max(at, s.a.last.Load())
	}
	for i := range s.queue {
		if m := &s.queue[i]; !m.kept && m.shared == nil && m.seq <= at {
			at, part = m.seq-1, m.part
		}
	}
	if at < s.rec.Seq || at == s.rec.Seq && part < s.rec.Part {
		return s.rec.Seq, s.rec.Part
	}
	return at, part
}

// persist calls then, with mu held, when what is now is stored. mu is held.
func (s *session) persist(then func()) {
	if !s.durable {
		then()
		return
	}
	s.saves = append(s.saves, then)
	if !s.saving {
		s.save()
	}
}

func (s *session) save() {
	s.saving = true
	then := s.saves
	s.saves = nil
	r := s.snapshot()
	s.rec.Seq, s.rec.Part = r.Seq, r.Part
	s.a.save(s.key, &r, s.revision, func(revision uint64, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.saving = false
		switch {
		case overtaken(err):
			s.expel(packet.SessionTakenOver, "another node has its session")
			return
		case err != nil && len(then) > 0:
			if !s.closed {
				s.log("an MQTT session was not stored", "error", err)
			}
			s.expel(packet.ServerBusy, "its session could not be stored")
			return
		case err != nil: // nobody waited for it
			s.later()
		default:
			s.revision = revision
		}
		for _, do := range then {
			do()
		}
		if len(s.saves) > 0 && !s.saving && !s.closed {
			s.save()
		}
	})
}

// later stores what is now within a second; mu is held.
func (s *session) later() {
	if !s.durable || s.sleeping != nil || s.closed {
		return
	}
	s.sleeping = time.AfterFunc(lazily, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sleeping = nil
		s.note()
	})
}

// note stores what is now, but nobody waits for it; mu is held.
func (s *session) note() {
	switch {
	case s.closed:
	case s.saving:
		s.later()
	default:
		s.save()
	}
}

// catchFloor stores that the session needs nothing up to last, if what is stored
// says that it needs much more.
func (s *session) catchFloor(last, most uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.durable && s.greeted && !s.closed && last-min(last, s.rec.Seq) > most { // before, its record is being written
		s.note()
	}
}
