package queue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestMain(m *testing.M) { await.Main(m) }

// room is what queues of a test share: a clock that stands, and what was told of them.
type room struct {
	queue.Env
	t testing.TB

	mu   sync.Mutex
	now  time.Time
	dead []*queue.Dead
	gone []string
	keep bool // dead letters are not settled
}

func newRoom(t testing.TB) *room {
	r := &room{t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.Timers = queue.NewTimers(func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.now
	})
	r.Outlet = r
	return r
}

func (r *room) DeadLetter(d *queue.Dead) {
	r.mu.Lock()
	r.dead = append(r.dead, d)
	keep := r.keep
	r.mu.Unlock()
	if !keep {
		d.Settled()
	}
}

func (r *room) Gone(q *queue.Queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = append(r.gone, q.Settings().Name)
}

// pass has time pass, and timers fire.
func (r *room) pass(d time.Duration) {
	r.mu.Lock()
	r.now = r.now.Add(d)
	r.mu.Unlock()
	r.Timers.Fire()
}

// died are the bodies of dead letters with their reasons, once.
func (r *room) died() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, d := range r.dead {
		all = append(all, string(d.Message.Body)+":"+string(d.Reason()))
	}
	r.dead = nil
	return strings.Join(all, " ")
}

func settings(t testing.TB, arguments frame.Table, more ...func(*frame.QueueDeclare)) *queue.Settings {
	t.Helper()
	m := &frame.QueueDeclare{Queue: "q", Arguments: arguments}
	for _, f := range more {
		f(m)
	}
	s, err := queue.Parse("/", m, "me")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *room) queue(arguments frame.Table, more ...func(*frame.QueueDeclare)) *queue.Queue {
	r.t.Helper()
	return queue.New(settings(r.t, arguments, more...), &r.Env)
}

func durable(m *frame.QueueDeclare) { m.Durable = true }

func message(t testing.TB, body string, p frame.Properties) *queue.Message {
	t.Helper()
	properties, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := queue.NewMessage("x", "key", properties, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func publish(t testing.TB, q *queue.Queue, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		q.Publish(message(t, body, frame.Properties{}), nil)
	}
}

// verdict is whether a message was taken.
type verdict struct {
	mu  sync.Mutex
	all []bool
}

func (v *verdict) Done(taken bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, taken)
}

func (v *verdict) String() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprint(v.all)
}

// taker takes what it is handed, so many at most.
type taker struct {
	mu   sync.Mutex
	room int
	got  []queue.Delivery
	over int
}

func (c *taker) Deliver(d queue.Delivery) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.room == 0 {
		return false
	}
	c.room--
	c.got = append(c.got, d)
	return true
}

func (c *taker) Gone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over++
}

// take are the deliveries since the last time.
func (c *taker) take() (all []queue.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, c.got = c.got, nil
	return all
}

// bodies are theirs; "!" is behind what is redelivered.
func bodies(all []queue.Delivery) string {
	var s []string
	for _, d := range all {
		body := string(d.Message.Body)
		if d.Redelivered {
			body += "!"
		}
		s = append(s, body)
	}
	return strings.Join(s, " ")
}

func ids(all []queue.Delivery) (ids []uint64) {
	for _, d := range all {
		ids = append(ids, d.ID)
	}
	return ids
}

func consume(t testing.TB, q *queue.Queue, o queue.ConsumerOptions) (*taker, *queue.Subscription) {
	t.Helper()
	c := &taker{room: 1 << 30}
	s, err := q.Consume(c, o)
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func same(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %q, and not %q", what, got, want)
	}
}

// drain gets all there are.
func drain(t testing.TB, q *queue.Queue) string {
	t.Helper()
	var all []queue.Delivery
	for {
		d, left, ok, err := q.Get(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return bodies(all)
		}
		all = append(all, d)
		if n := q.Counts().Ready; n != left {
			t.Fatalf("%d are said to be left and %d are", left, n)
		}
	}
}

func refused(t testing.TB, err error, code frame.Code, text string) {
	t.Helper()
	e, _ := errors.AsType[*frame.Error](err)
	if e == nil || e.Code != code || !strings.Contains(e.Reply(), text) {
		t.Fatalf("%v, and not %d %s", err, code, text)
	}
}

func TestRequeueGoesToItsOldPlace(t *testing.T) {
	q := newRoom(t).queue(nil)
	c, s := consume(t, q, queue.ConsumerOptions{Prefetch: 3})
	publish(t, q, "1", "2", "3", "4", "5")
	first := c.take()
	same(t, "prefetch", bodies(first), "1 2 3")
	q.Settle(ids(first[1:2]), queue.Requeue)
	same(t, "requeued", bodies(c.take()), "2!")
	s.Cancel()
	q.Settle(ids(first), queue.Requeue) // the second is not its any more
	if got, want := q.Counts(), (queue.Counts{Ready: 4, Unacked: 1, Bytes: 4}); got != want {
		t.Fatalf("%+v, and not %+v", got, want)
	}
	same(t, "the rest", drain(t, q), "1! 3! 4 5")
	q.Settle([]uint64{4}, queue.Requeue)
	same(t, "the last", drain(t, q), "2!")
}

func TestRoundRobinAndPriority(t *testing.T) {
	q := newRoom(t).queue(nil)
	a, _ := consume(t, q, queue.ConsumerOptions{})
	b, _ := consume(t, q, queue.ConsumerOptions{})
	publish(t, q, "1", "2", "3", "4")
	same(t, "a", bodies(a.take()), "1 3")
	same(t, "b", bodies(b.take()), "2 4")
	high, s := consume(t, q, queue.ConsumerOptions{Priority: 5, Prefetch: 2})
	publish(t, q, "5", "6", "7")
	got := high.take()
	same(t, "the one with priority", bodies(got), "5 6")
	same(t, "who is next", bodies(a.take())+bodies(b.take()), "7")
	q.Settle(ids(got[:1]), queue.Ack)
	publish(t, q, "8")
	same(t, "the one with credit again", bodies(high.take()), "8")
	s.Cancel()
	publish(t, q, "9")
	same(t, "without it", bodies(a.take())+bodies(b.take()), "9")
}

func TestARefusedDeliveryWaits(t *testing.T) {
	q := newRoom(t).queue(nil)
	c := &taker{room: 1}
	s, err := q.Consume(c, queue.ConsumerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, q, "1", "2")
	same(t, "room for one", bodies(c.take()), "1")
	c.room = 5
	publish(t, q, "3")
	same(t, "not resumed", bodies(c.take()), "")
	s.Resume()
	same(t, "resumed", bodies(c.take()), "2 3")
}

// resumer resumes its subscription while it is offered something.
type resumer struct {
	taker
	s       *queue.Subscription
	refused bool
}

func (r *resumer) Deliver(d queue.Delivery) bool {
	if r.s != nil && !r.refused {
		r.refused = true
		r.s.Resume()
		return false
	}
	return r.taker.Deliver(d)
}

func TestResumeWithinDeliver(t *testing.T) {
	q := newRoom(t).queue(nil)
	c := &resumer{taker: taker{room: 5}}
	s, err := q.Consume(c, queue.ConsumerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.s = s
	publish(t, q, "1")
	same(t, "resumed at once", bodies(c.take()), "1")
}

func TestChannelsShareCredit(t *testing.T) {
	r := newRoom(t)
	q, other := r.queue(nil), r.queue(nil)
	credit := queue.NewCredit(2)
	a, _ := consume(t, q, queue.ConsumerOptions{Credit: credit})
	b, s := consume(t, other, queue.ConsumerOptions{Credit: credit})
	free, quits := consume(t, other, queue.ConsumerOptions{Credit: credit, NoAck: true, Priority: -1})
	publish(t, q, "1", "2", "3")
	publish(t, other, "x")
	got := a.take()
	same(t, "of two", bodies(got)+bodies(b.take()), "1 2")
	same(t, "who needs none", bodies(free.take()), "x")
	s.Cancel()
	q.Settle(ids(got[:1]), queue.Ack)
	same(t, "after an ack", bodies(a.take()), "3")
	credit.SetLimit(0)
	publish(t, q, "4", "5")
	same(t, "without a limit", bodies(a.take()), "4 5")
	quits.Cancel()
	b, _ = consume(t, other, queue.ConsumerOptions{Credit: credit})
	credit.SetLimit(5)
	publish(t, other, "6", "7")
	same(t, "five", bodies(b.take()), "6")
	if _, err := q.Delete(false, false); err != nil {
		t.Fatal(err)
	}
	same(t, "what a deleted queue had is free again", bodies(b.take()), "7")
}

func TestSetPrefetch(t *testing.T) {
	q := newRoom(t).queue(nil)
	c, s := consume(t, q, queue.ConsumerOptions{Prefetch: 1})
	publish(t, q, "1", "2", "3", "4")
	same(t, "one", bodies(c.take()), "1")
	s.SetPrefetch(3)
	same(t, "three", bodies(c.take()), "2 3")
	s.SetPrefetch(1)
	q.Settle([]uint64{1, 2}, queue.Ack)
	same(t, "one again", bodies(c.take()), "")
	q.Settle([]uint64{3}, queue.Ack)
	same(t, "one again", bodies(c.take()), "4")
}

func TestExclusiveAndSingleActiveConsumers(t *testing.T) {
	r := newRoom(t)
	q := r.queue(nil)
	_, s := consume(t, q, queue.ConsumerOptions{Exclusive: true})
	_, err := q.Consume(&taker{}, queue.ConsumerOptions{})
	refused(t, err, frame.AccessRefused, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use")
	s.Cancel()
	consume(t, q, queue.ConsumerOptions{})
	_, err = q.Consume(&taker{}, queue.ConsumerOptions{Exclusive: true})
	refused(t, err, frame.AccessRefused, "in exclusive use")

	q = r.queue(frame.Table{"x-single-active-consumer": true})
	a, first := consume(t, q, queue.ConsumerOptions{Prefetch: 1})
	b, _ := consume(t, q, queue.ConsumerOptions{Priority: 9})
	publish(t, q, "1", "2")
	same(t, "the active one", bodies(a.take()), "1")
	same(t, "the other", bodies(b.take()), "")
	first.Cancel()
	same(t, "the next", bodies(b.take()), "2")
}

func TestNoAckAndGet(t *testing.T) {
	q := newRoom(t).queue(nil)
	publish(t, q, "1", "2", "3")
	d, left, ok, err := q.Get(t.Context(), false)
	if err != nil || !ok || left != 2 || string(d.Message.Body) != "1" {
		t.Fatalf("got %v, %d left, %v, %v", d, left, ok, err)
	}
	c, s := consume(t, q, queue.ConsumerOptions{NoAck: true})
	same(t, "no_ack", bodies(c.take()), "2 3")
	if n := q.Counts(); n.Unacked != 1 || n.Ready != 0 || n.Consumers != 1 {
		t.Fatalf("%+v", n)
	}
	s.Cancel()
	q.Settle([]uint64{d.ID, d.ID, 2, 77}, queue.Requeue)
	same(t, "what is unknown is passed over", drain(t, q), "1!")
}

func TestPurge(t *testing.T) {
	q := newRoom(t).queue(frame.Table{"x-dead-letter-exchange": "dlx"})
	publish(t, q, "1", "2", "3")
	d, _, _, _ := q.Get(t.Context(), false)
	if n, err := q.Purge(); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	q.Settle([]uint64{d.ID}, queue.Requeue)
	same(t, "what was unacked", drain(t, q), "1!")
	if n := q.Counts(); n != (queue.Counts{}) {
		t.Fatalf("%+v", n)
	}
}

func TestDelete(t *testing.T) {
	r := newRoom(t)
	q := r.queue(nil)
	publish(t, q, "1")
	_, err := q.Delete(false, true)
	refused(t, err, frame.PreconditionFailed, "PRECONDITION_FAILED - queue 'q' in vhost '/' not empty")
	c, s := consume(t, q, queue.ConsumerOptions{})
	publish(t, q, "2")
	_, err = q.Delete(true, false)
	refused(t, err, frame.PreconditionFailed, "queue 'q' in vhost '/' in use")
	if n, err := q.Delete(false, false); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if c.over != 1 {
		t.Fatalf("the consumer was told %d times", c.over)
	}
	same(t, "gone", strings.Join(r.gone, " "), "q")
	var v verdict
	q.Publish(message(t, "3", frame.Properties{}), &v)
	same(t, "what comes later", v.String(), "[true]")
	s.Resume()
	s.Cancel()
	q.Settle(ids(c.take()), queue.Requeue)
	if _, err := q.Consume(c, queue.ConsumerOptions{}); !errors.Is(err, queue.ErrGone) {
		t.Fatal(err)
	}
	if _, _, _, err := q.Get(t.Context(), true); !errors.Is(err, queue.ErrGone) {
		t.Fatal(err)
	}
	if _, err := q.Purge(); !errors.Is(err, queue.ErrGone) {
		t.Fatal(err)
	}
	if _, err := q.Delete(false, false); !errors.Is(err, queue.ErrGone) {
		t.Fatal(err)
	}
}

func TestAutoDelete(t *testing.T) {
	r := newRoom(t)
	q := r.queue(nil, func(m *frame.QueueDeclare) { m.AutoDelete = true })
	r.pass(time.Hour)
	if len(r.gone) > 0 {
		t.Fatal("it went before it had a consumer")
	}
	_, a := consume(t, q, queue.ConsumerOptions{})
	_, b := consume(t, q, queue.ConsumerOptions{})
	a.Cancel()
	a.Cancel()
	if len(r.gone) > 0 {
		t.Fatal("it went before its last consumer")
	}
	b.Cancel()
	same(t, "gone", strings.Join(r.gone, " "), "q")
}

func TestExpires(t *testing.T) {
	r := newRoom(t)
	q := r.queue(frame.Table{"x-expires": int32(300)})
	r.pass(200 * time.Millisecond)
	q.Touch()
	r.pass(200 * time.Millisecond)
	if _, _, _, err := q.Get(t.Context(), true); err != nil {
		t.Fatal("redeclaring it is use:", err)
	}
	r.pass(200 * time.Millisecond)
	_, s := consume(t, q, queue.ConsumerOptions{})
	r.pass(time.Hour)
	s.Cancel()
	r.pass(299 * time.Millisecond)
	if len(r.gone) > 0 {
		t.Fatal("it went too early")
	}
	r.pass(time.Millisecond)
	same(t, "gone", strings.Join(r.gone, " "), "q")
}

func TestMaxLength(t *testing.T) {
	r := newRoom(t)
	for name, c := range map[string]struct {
		arguments           frame.Table
		left, dead, verdict string
	}{
		"drop head":       {frame.Table{"x-max-length": int32(2), "x-dead-letter-exchange": "d"}, "cc dd", "aaaa:maxlen bb:maxlen", "[true true true true]"},
		"without a DLX":   {frame.Table{"x-max-length": int32(2)}, "cc dd", "", "[true true true true]"},
		"of bytes":        {frame.Table{"x-max-length-bytes": int64(5)}, "cc dd", "", "[true true true true]"},
		"one is too much": {frame.Table{"x-max-length-bytes": int64(1)}, "", "", "[true true true true]"},
		"reject":          {frame.Table{"x-max-length": uint8(2), "x-overflow": "reject-publish", "x-dead-letter-exchange": "d"}, "aaaa bb", "", "[true true false false]"},
		"reject bytes":    {frame.Table{"x-max-length-bytes": int16(6), "x-overflow": "reject-publish"}, "aaaa bb", "", "[true true false false]"},
		"reject-dlx":      {frame.Table{"x-max-length": int32(3), "x-overflow": "reject-publish-dlx", "x-dead-letter-exchange": "d"}, "aaaa bb cc", "dd:maxlen", "[true true true false]"},
	} {
		t.Run(name, func(t *testing.T) {
			q := r.queue(c.arguments)
			var v verdict
			for _, body := range []string{"aaaa", "bb", "cc", "dd"} {
				q.Publish(message(t, body, frame.Properties{}), &v)
			}
			same(t, "verdicts", v.String(), c.verdict)
			same(t, "left", drain(t, q), c.left)
			same(t, "dead", r.died(), c.dead)
		})
	}
	q := r.queue(frame.Table{"x-max-length": int32(1)})
	c, _ := consume(t, q, queue.ConsumerOptions{Prefetch: 2})
	publish(t, q, "1", "2", "3")
	got := c.take()
	same(t, "those that are handed out do not count", bodies(got), "1 2")
	q.Settle(ids(got[:1]), queue.Requeue)
	same(t, "one that came back goes first", bodies(c.take()), "1!")
	same(t, "and another stays", fmt.Sprint(q.Counts().Ready), "1")
}

func expiring(t testing.TB, body, ms string) *queue.Message {
	return message(t, body, frame.Properties{Expiration: ms})
}

func TestTTL(t *testing.T) {
	r := newRoom(t)
	q := r.queue(frame.Table{"x-message-ttl": int32(100), "x-dead-letter-exchange": "d"})
	q.Publish(expiring(t, "short", "50"), nil)
	q.Publish(expiring(t, "long", "5000"), nil)
	r.pass(49 * time.Millisecond)
	same(t, "early", r.died(), "")
	r.pass(time.Millisecond)
	same(t, "the message's", r.died(), "short:expired")
	r.pass(50 * time.Millisecond)
	same(t, "the queue's", r.died(), "long:expired")

	q = r.queue(nil)
	publish(t, q, "stays")
	q.Publish(expiring(t, "behind", "10"), nil)
	r.pass(time.Second)
	same(t, "what is not at the head is not judged", fmt.Sprint(q.Counts().Ready), "2")
	same(t, "the head", drain(t, q), "stays")

	q.Publish(expiring(t, "head", "10"), nil)
	publish(t, q, "behind")
	r.pass(10 * time.Millisecond)
	same(t, "behind an expired head", drain(t, q), "behind")

	c, s := consume(t, q, queue.ConsumerOptions{})
	q.Publish(expiring(t, "now", "0"), nil)
	got := c.take()
	same(t, "no time, and a consumer", bodies(got), "now")
	s.Cancel()
	q.Settle(ids(got), queue.Requeue)
	q.Publish(expiring(t, "now", "0"), nil)
	same(t, "no time, and none", fmt.Sprint(q.Counts().Ready), "0")

	q.Publish(expiring(t, "back", "100"), nil)
	d, _, _, _ := q.Get(t.Context(), false)
	r.pass(100 * time.Millisecond)
	q.Settle([]uint64{d.ID}, queue.Requeue)
	same(t, "its time goes on while it is handed out", fmt.Sprint(q.Counts().Ready), "0")
}

func TestPriorities(t *testing.T) {
	r := newRoom(t)
	q := r.queue(frame.Table{"x-max-priority": int32(5)})
	for _, p := range []uint8{1, 5, 3, 0, 9, 5} {
		q.Publish(message(t, fmt.Sprint(p), frame.Properties{Priority: p}), nil)
	}
	d, _, _, _ := q.Get(t.Context(), false)
	e, _, _, _ := q.Get(t.Context(), false)
	q.Settle([]uint64{e.ID, d.ID}, queue.Requeue)
	same(t, "order", drain(t, q), "5! 9! 5 3 1 0")
	q.Publish(message(t, "low", frame.Properties{Expiration: "10"}), nil)
	q.Publish(message(t, "high", frame.Properties{Priority: 4}), nil)
	r.pass(10 * time.Millisecond)
	same(t, "each priority has a head", drain(t, q), "high")
}

func TestDeliveryLimit(t *testing.T) {
	r := newRoom(t)
	q := r.queue(frame.Table{"x-queue-type": "quorum", "x-delivery-limit": int32(2), "x-dead-letter-exchange": "d"}, durable)
	q.Publish(message(t, "m", frame.Properties{Headers: frame.Table{"a": int32(1)}, ContentType: "text", Expiration: "999"}), nil)
	for n := range int64(3) {
		d, _, ok, err := q.Get(t.Context(), false)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		var p frame.Properties
		if err := p.Decode(d.Message.Properties); err != nil || p.Headers["x-delivery-count"] != n || p.Headers["a"] != int32(1) || p.ContentType != "text" || p.Expiration != "999" {
			t.Fatalf("delivery %d: %+v, %v", n, p, err)
		}
		q.Settle([]uint64{d.ID}, queue.Requeue)
	}
	same(t, "too often", r.died(), "m:delivery_limit")
}

func TestDeliveryCountIsOneHeader(t *testing.T) {
	q := newRoom(t).queue(frame.Table{"x-queue-type": "quorum"}, durable)
	for _, p := range []frame.Properties{{}, {Headers: frame.Table{}, Flags: frame.HasHeaders}, {Headers: frame.Table{"x-delivery-count": int64(7), "b": "c"}}, {Type: "t", ContentEncoding: "e"}} {
		q.Publish(message(t, "m", p), nil)
		d, _, _, _ := q.Get(t.Context(), true)
		var got frame.Properties
		if err := got.Decode(d.Message.Properties); err != nil || got.Headers["x-delivery-count"] != int64(0) || got.Type != p.Type || got.ContentEncoding != p.ContentEncoding {
			t.Fatalf("%+v, %v", got, err)
		}
		if n := strings.Count(string(d.Message.Properties), "x-delivery-count"); n != 1 {
			t.Fatalf("%d times", n)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	r := newRoom(t)
	q := r.queue(frame.Table{"x-dead-letter-exchange": "dlx"})
	q.Publish(message(t, "m", frame.Properties{Expiration: "500", UserID: "u", Headers: frame.Table{"CC": []any{"k2"}, "h": true}}), nil)
	d, _, _, _ := q.Get(t.Context(), false)
	q.Settle([]uint64{d.ID}, queue.Reject)
	dead := r.dead[0]
	if m := dead.Message; m.Exchange != "dlx" || m.Key != "key" {
		t.Fatalf("it goes to %q, %q", m.Exchange, m.Key)
	}
	var p frame.Properties
	if err := p.Decode(dead.Message.Properties); err != nil || p.Expiration != "" || p.Flags&frame.HasExpiration != 0 || p.UserID != "u" || p.Headers["h"] != true {
		t.Fatalf("%+v, %v", p, err)
	}
	want := `map[count:1 exchange:x original-expiration:500 queue:q reason:rejected routing-keys:[key k2] time:1767323045]`
	same(t, "x-death", fmt.Sprint(p.Headers["x-death"]), "["+want+"]")
	same(t, "first", fmt.Sprintln(p.Headers["x-first-death-queue"], p.Headers["x-first-death-reason"], p.Headers["x-first-death-exchange"], p.Headers["CC"]), "q rejected x [k2]\n")

	// It comes to another queue, and back.
	other := r.queue(frame.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q", "x-message-ttl": int32(0)}, func(m *frame.QueueDeclare) { m.Queue = "other" })
	r.dead = nil
	other.Publish(dead.Message, nil)
	dead = r.dead[0]
	if m := dead.Message; m.Exchange != "" || m.Key != "q" || dead.Headers["CC"] != nil {
		t.Fatalf("it goes to %q, %q, %v", m.Exchange, m.Key, dead.Headers["CC"])
	}
	if all := dead.Headers["x-death"].([]any); len(all) != 2 || all[0].(frame.Table)["queue"] != "other" || all[1].(frame.Table)["queue"] != "q" {
		t.Fatalf("%v", all)
	}
	q.Publish(dead.Message, nil)
	d, _, _, _ = q.Get(t.Context(), false)
	r.dead = nil
	q.Settle([]uint64{d.ID}, queue.Reject)
	all := r.dead[0].Headers["x-death"].([]any)
	if len(all) != 2 || all[0].(frame.Table)["queue"] != "q" || all[0].(frame.Table)["count"] != int64(2) || all[0].(frame.Table)["original-expiration"] != nil {
		t.Fatalf("%v", all)
	}
	same(t, "first", fmt.Sprint(r.dead[0].Headers["x-first-death-queue"]), "q")
}

func TestDeadLetterCycles(t *testing.T) {
	death := func(queue, reason string) frame.Table { return frame.Table{"queue": queue, "reason": reason} }
	for name, c := range map[string]struct {
		deaths []any // the latest first
		cycles bool
	}{
		"never there":        {[]any{death("a", "expired"), death("b", "maxlen")}, false},
		"to itself":          {[]any{death("q", "expired")}, true},
		"back":               {[]any{death("a", "expired"), death("q", "maxlen")}, true},
		"rejected there":     {[]any{death("a", "expired"), death("q", "rejected")}, false},
		"rejected since":     {[]any{death("a", "rejected"), death("q", "expired")}, false},
		"rejected before":    {[]any{death("a", "expired"), death("q", "expired"), death("b", "rejected")}, true},
		"of a strange shape": {[]any{"x", death("q", "expired")}, true},
	} {
		if d := (&queue.Dead{Headers: frame.Table{"x-death": c.deaths}}); d.Cycles("q") != c.cycles {
			t.Errorf("%s: %v", name, !c.cycles)
		}
	}
	if (&queue.Dead{}).Cycles("q") {
		t.Error("without a header")
	}
}

// back has dead letters go to a queue.
type back struct {
	room
	to map[string]*queue.Queue
}

func (b *back) DeadLetter(d *queue.Dead) {
	b.room.DeadLetter(d)
	if to := b.to[d.Message.Key]; to != nil && !d.Cycles(d.Message.Key) {
		to.Publish(d.Message, nil)
	}
}

// Two queues that send one another dead letters do not wait for one another.
func TestQueuesThatSendOneAnotherDeadLetters(t *testing.T) {
	b := &back{room: *newRoom(t)}
	b.Outlet = b
	to := func(name, other string) *queue.Queue {
		return b.queue(frame.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": other, "x-max-length": int32(1)}, func(m *frame.QueueDeclare) { m.Queue = name })
	}
	one, two := to("one", "two"), to("two", "one")
	b.to = map[string]*queue.Queue{"one": one, "two": two}
	var all sync.WaitGroup
	for _, q := range []*queue.Queue{one, two, one, two} {
		all.Go(func() {
			for range 500 {
				publish(t, q, "m")
				if d, _, ok, _ := q.Get(t.Context(), false); ok {
					q.Settle([]uint64{d.ID}, queue.Reject)
				}
			}
		})
	}
	all.Wait()
}

func TestReplyWhileTold(t *testing.T) {
	r := newRoom(t)
	q := r.queue(nil)
	c := &taker{room: 1 << 30}
	if _, err := q.Consume(c, queue.ConsumerOptions{}); err != nil {
		t.Fatal(err)
	}
	q.Publish(message(t, "1", frame.Properties{}), again{q, message(t, "2", frame.Properties{})})
	same(t, "published while told", bodies(c.take()), "1 2")
}

type again struct {
	q *queue.Queue
	m *queue.Message
}

func (a again) Done(bool) { a.q.Publish(a.m, nil) }

func TestTimersRun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	timers := queue.NewTimers(nil)
	over := make(chan struct{})
	go func() { timers.Run(ctx); close(over) }()
	r := newRoom(t)
	r.Timers = timers
	q := r.queue(frame.Table{"x-message-ttl": int32(1), "x-expires": int32(20)})
	publish(t, q, "1")
	await.Nil(t, "the queue goes", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.gone) == 0 {
			return errors.New("it is there")
		}
		return nil
	})
	stop()
	<-over
}
