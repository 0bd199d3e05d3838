package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Pair is a publisher and a subscriber, each on a connection of its own.
type Pair struct {
	Pub, Sub *nats.Conn
	Subject  string
}

const (
	// UnderWay is how many messages are under way on a pair at most.
	UnderWay = chunk * chunks
	// EchoPause is the time from one request to the next, far from what any server
	// can bear.
	EchoPause = time.Millisecond
	// chunk is how many messages a publisher sends before it looks whether it may
	// go on; chunks is how many of them are under way on a pair at most. That is
	// enough to keep every link busy, and too little for a server to cut a
	// subscriber off for being slow.
	chunk, chunks = 1 << 10, 16
	// storePending is how many durable messages wait for their acknowledgment at
	// most, when they are pipelined.
	storePending = 256
	// stalled is how long nothing may arrive before it is clear that a message was
	// lost, with a connection; hearing how long a subscriber may take to be heard
	// of.
	stalled, hearing = 10 * time.Second, 30 * time.Second
)

// listen subscribes and returns when the publisher's node knows of it. A request
// is answered with its own data; any other message goes to handle.
func (p Pair) listen(ctx context.Context, handle func()) (*nats.Subscription, error) {
	sub, err := p.Sub.Subscribe(p.Subject, func(m *nats.Msg) {
		if m.Reply == "" {
			handle()
			return
		}
		// A requester that hears nothing says so.
		_ = m.Respond(m.Data)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to %q: %w", p.Subject, err)
	}
	hear, cancel := context.WithTimeout(ctx, hearing)
	defer cancel()
	if err := patiently(hear, func(ctx context.Context) error {
		_, err := p.Pub.RequestWithContext(ctx, p.Subject, nil)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("reaching the subscriber of %q: %w", p.Subject, err), sub.Unsubscribe())
	}
	return sub, nil
}

// patiently tries again what nobody answered, in time or at all: who should is
// starting, or not known yet where the question was asked.
func patiently(ctx context.Context, do func(context.Context) error) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		try, cancel := context.WithTimeout(ctx, 50*wait)
		err := do(try)
		cancel()
		if err == nil || !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// throughput publishes n messages of size bytes on every pair and returns how
// many a second arrived at the subscribers.
func throughput(ctx context.Context, pairs []Pair, n, size int) (float64, error) {
	var flows []func(context.Context) error
	var total atomic.Int64
	done, failed := make(chan struct{}), make(chan error, len(pairs))
	for _, p := range pairs {
		// A permit is for one chunk; the subscriber gives it back.
		permits := make(chan struct{}, chunks)
		arrived := 0
		sub, err := p.listen(ctx, func() {
			if arrived++; arrived%chunk == 0 || arrived == n {
				<-permits
			}
			if total.Add(1) == int64(n*len(pairs)) {
				close(done)
			}
		})
		if err != nil {
			return 0, err
		}
		// The connection's end ends it as well.
		defer func() { _ = sub.Unsubscribe() }()
		flows = append(flows, func(ctx context.Context) error { return p.flow(ctx, n, size, permits) })
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	for _, flow := range flows {
		go func() {
			if err := flow(ctx); err != nil {
				failed <- err
			}
		}()
	}
	tick := time.NewTicker(stalled)
	defer tick.Stop()
	for before := int64(0); ; {
		select {
		case <-done:
			return float64(total.Load()) / time.Since(began).Seconds(), nil
		case err := <-failed:
			return 0, err
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for the messages: %w", context.Cause(ctx))
		case <-tick.C:
			now := total.Load()
			if now == before {
				return 0, fmt.Errorf("waiting for the messages: %d of %d arrived, and no other in %v", now, n*len(pairs), stalled)
			}
			before = now
		}
	}
}

// flow publishes n messages, a chunk for each permit.
func (p Pair) flow(ctx context.Context, n, size int, permits chan<- struct{}) error {
	payload := make([]byte, size)
	for i := range n {
		if i%chunk == 0 {
			select {
			case permits <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := p.Pub.Publish(p.Subject, payload); err != nil {
			return fmt.Errorf("publishing to %q: %w", p.Subject, err)
		}
	}
	return p.Pub.FlushWithContext(ctx)
}

// echoes sends n requests of size bytes, one each pause, and returns how long
// each took until its echo was there.
func echoes(ctx context.Context, p Pair, n, size int, pause time.Duration) ([]time.Duration, error) {
	sub, err := p.listen(ctx, func() {})
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	payload := make([]byte, size)
	return paced(ctx, n, pause, func() error {
		if _, err := p.Pub.RequestWithContext(ctx, p.Subject, payload); err != nil {
			return fmt.Errorf("requesting from %q: %w", p.Subject, err)
		}
		return nil
	})
}

// paced does something n times, once each pause or as soon as the time before is
// over, and returns how long each time took.
func paced(ctx context.Context, n int, pause time.Duration, do func() error) ([]time.Duration, error) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	took := make([]time.Duration, n)
	for i := range took {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		began := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		took[i] = time.Since(began)
	}
	return took, nil
}

// storeRate publishes n messages of size bytes that a stream stores, with
// storePending of them under way, and returns how many a second were
// acknowledged.
func storeRate(ctx context.Context, nc *nats.Conn, subject string, n, size int) (float64, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(storePending), jetstream.WithPublishAsyncTimeout(stalled))
	if err != nil {
		return 0, err
	}
	payload := make([]byte, size)
	acks := make([]jetstream.PubAckFuture, n)
	began := time.Now()
	for i := range acks {
		if acks[i], err = js.PublishAsync(subject, payload, jetstream.WithStallWait(stalled)); err != nil {
			return 0, fmt.Errorf("publishing to %q: %w", subject, err)
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return 0, fmt.Errorf("publishing to %q: %w", subject, err)
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for acknowledgments: %w", context.Cause(ctx))
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// storeTimes publishes n messages of size bytes that a stream stores, each after
// the acknowledgment of the one before, and returns how long each took.
func storeTimes(ctx context.Context, nc *nats.Conn, subject string, n, size int) ([]time.Duration, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	payload := make([]byte, size)
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		if _, err := js.Publish(ctx, subject, payload); err != nil {
			return nil, fmt.Errorf("publishing to %q: %w", subject, err)
		}
		took[i] = time.Since(began)
	}
	return took, nil
}
