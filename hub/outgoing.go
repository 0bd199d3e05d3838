package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// refusedPause is how long a link waits before it offers a message again that the hub
// refused.
const refusedPause = 5 * time.Second

// outgoing is what is under way to the hub. The packet identifier of a message comes
// from its number, so that it is the same when it is sent again, also by another
// process: the hub's session knows it.
type outgoing struct {
	window int
	freed  chan struct{} // has an element after each acknowledgement

	mu    sync.Mutex
	order []*sent // by when they were sent
	ids   map[uint16]*sent
	// reading is the iterator that is read, and back where to read again from.
	reading jetstream.MessagesContext
	back    *place
	// rewinding lasts until a message was sent from there, at rewound.
	rewinding bool
	rewound   time.Time
	repeated  map[string]asking // of other origins
	// held says since when nothing is sent, because the hub refused a message, and
	// probing that one is sent at a time to see whether it takes them again.
	held    time.Time
	probing bool
}

// place is a place in the queue: what comes after number, and before which before was
// the last of this node's.
type place struct{ number, before uint64 }

// sent is a message under way, or one that is passed by.
type sent struct {
	number uint64
	own    bool // it was sent
	done   bool
	at     time.Time
}

func (o *outgoing) init(window int) {
	o.window, o.freed, o.ids = window, make(chan struct{}, 1), map[uint16]*sent{}
	o.repeated = map[string]asking{}
}

func identifier(number uint64) uint16 { return uint16(number%0xFFFF) + 1 }

// stalled reports whether the hub is silent about a message for too long.
func (o *outgoing) stalled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.order) > 0 && !o.order[0].done && time.Since(o.order[0].at) > stall
}

// reserve waits for a place for a message; false: ctx ended, or reading begins anew.
func (o *outgoing) reserve(ctx context.Context, number uint64) bool {
	for {
		o.mu.Lock()
		if o.back != nil {
			o.mu.Unlock()
			return false
		}
		busy := len(o.ids)
		_, taken := o.ids[identifier(number)]
		if !taken && o.held.IsZero() && busy < o.window && (busy == 0 || !o.probing) {
			e := &sent{number: number, own: true, at: time.Now()}
			o.ids[identifier(number)] = e
			o.order = append(o.order, e)
			o.mu.Unlock()
			return true
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return false
		case <-o.freed:
		}
	}
}

func (o *outgoing) free() {
	select {
	case o.freed <- struct{}{}:
	default:
	}
}

// passBy notes that there is nothing to send of number.
func (o *outgoing) passBy(number uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.order); n > 0 && o.order[n-1].done && !o.order[n-1].own {
		o.order[n-1].number = max(o.order[n-1].number, number)
		return
	}
	o.order = append(o.order, &sent{number: number, done: true})
}

// finish is what is done with since the last call: up to where all is, and the last
// message among it that was sent.
func (o *outgoing) finish() (done, last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.order) > 0 && o.order[0].done {
		done = max(done, o.order[0].number)
		if o.order[0].own {
			last = max(last, o.order[0].number)
		}
		o.order = o.order[1:]
	}
	return done, last
}

// rewind has everything after a place sent again.
func (o *outgoing) rewind(to place) {
	o.mu.Lock()
	if o.back == nil || o.back.number > to.number {
		o.back = &to
	}
	o.rewinding = true
	reading := o.reading
	o.mu.Unlock()
	if reading != nil {
		reading.Stop()
	}
	o.free()
}

// send sends the queue, until ctx is done.
func (s *session) send(ctx context.Context) error {
	at := s.place()
	for ctx.Err() == nil {
		if err := s.sendAfter(ctx, at); err != nil {
			return err
		}
		s.out.mu.Lock()
		if s.out.back != nil {
			at, s.out.back = *s.out.back, nil
		}
		s.out.mu.Unlock()
	}
	return nil
}

// place is up to where all is handed on.
func (r *run) place() place {
	r.mu.Lock()
	defer r.mu.Unlock()
	return place{r.record.Done, r.record.Last}
}

// sendAfter sends what the queue has after a place, until ctx is done or reading
// begins anew.
func (s *session) sendAfter(ctx context.Context, at place) error {
	state, err := s.q.state(ctx)
	if err != nil {
		return err
	}
	known := state.FirstSeq <= at.number+1 // else something is gone from the queue
	s.run.mu.Lock()
	s.first = state.FirstSeq
	s.run.mu.Unlock()
	consumer, err := s.q.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: at.number + 1})
	if err != nil {
		return fmt.Errorf("reading the hub's queue: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(receiveMaximum))
	if err != nil {
		return fmt.Errorf("reading the hub's queue: %w", err)
	}
	defer messages.Stop()
	s.out.mu.Lock()
	again := s.out.back != nil
	s.out.reading = messages
	s.out.mu.Unlock()
	if again {
		return nil
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	for {
		msg, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the hub's queue: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("reading the hub's queue: %w", err)
		}
		m := mark{origin: s.q.origin, number: meta.Sequence.Stream, before: at.before, known: known}
		sent, err := s.sendOne(ctx, msg, m)
		if errors.Is(err, errAnew) {
			return nil
		}
		if err != nil {
			return err
		}
		if sent {
			at.before, known = m.number, true
		}
		s.advance()
	}
}

// errAnew says that the queue is to be read from another place.
var errAnew = errors.New("begin anew")

// sendOne sends a message of the queue, if it is one for the hub.
func (s *session) sendOne(ctx context.Context, msg jetstream.Msg, m mark) (bool, error) {
	if msg.Headers().Get(OriginHeader) != "" {
		s.out.passBy(m.number)
		return false, nil
	}
	p, ok := s.o.publish(msg.Subject(), msg.Headers(), msg.Data(), m, time.Now())
	if ok && s.c.connack.MaximumPacketSize > 0 && p.Size(packet.V5)+2 > int(s.c.connack.MaximumPacketSize) {
		s.log.Warn("a message is too large for the hub, and stays here", "subject", msg.Subject(), "size", p.Size(packet.V5), "limit", s.c.connack.MaximumPacketSize)
		s.count(func(v *view) { v.tooLarge++ })
		ok = false
	}
	if !ok {
		s.out.passBy(m.number)
		return false, nil
	}
	if !s.out.reserve(ctx, m.number) {
		return false, errAnew
	}
	s.run.mu.Lock()
	p.Dup = s.qos > 0 && m.number <= s.reached
	s.reached = max(s.reached, m.number)
	s.run.mu.Unlock()
	p.QoS = s.qos
	if s.qos > 0 {
		p.ID = identifier(m.number)
	}
	if err := s.c.send(p); err != nil {
		return false, fmt.Errorf("sending a message to the hub: %w", err)
	}
	s.out.mu.Lock()
	if s.out.rewinding && s.out.back == nil {
		s.out.rewinding, s.out.rewound = false, time.Now()
	}
	s.out.mu.Unlock()
	s.count(func(v *view) { v.sent++ })
	if s.qos == 0 {
		s.acknowledged(&packet.Ack{ID: identifier(m.number)})
	}
	return true, nil
}

// acknowledged takes the hub's answer to a message.
func (s *session) acknowledged(a *packet.Ack) {
	o := &s.out
	o.mu.Lock()
	e, ok := o.ids[a.ID]
	if !ok {
		o.mu.Unlock()
		return
	}
	delete(o.ids, a.ID)
	if !a.Code.Failed() {
		e.done = true
		well := o.probing && o.held.IsZero()
		o.probing = o.probing && !well
		o.mu.Unlock()
		if well {
			s.accepted()
		}
		s.advance()
		o.free()
		return
	}
	// Nothing may pass it: the others would miss it. It is offered again.
	first := o.held.IsZero()
	o.probing = true
	if first {
		o.held = time.Now()
	}
	o.mu.Unlock()
	if first {
		err := fmt.Errorf("the hub refuses a message: %v", a.Code)
		if a.ReasonString != "" {
			err = fmt.Errorf("%w: %q", err, a.ReasonString)
		}
		s.refused(&Error{Step: StepPublish, Code: a.Code, Err: err, Fix: fmt.Sprintf("let this user write %q at the hub: nothing goes out until then", s.o.base()+"#")})
	}
}

// retry offers again what was refused, after a while.
func (s *session) retry() {
	o := &s.out
	o.mu.Lock()
	due := !o.held.IsZero() && time.Since(o.held) > refusedPause
	if due {
		o.held = time.Time{}
		// What was acknowledged behind it is offered again, too.
		o.order, o.ids = nil, map[uint16]*sent{}
	}
	o.mu.Unlock()
	if due {
		o.rewind(s.place())
	}
}

// advance notes what is done with.
func (s *session) advance() {
	done, last := s.out.finish()
	if done == 0 {
		return
	}
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	s.record.Done, s.record.Last = max(s.record.Done, done), max(s.record.Last, last)
	s.dirty = true
}
