package demo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/human"
)

const (
	// durableMessages are acknowledged before the leader is killed, and again
	// after.
	durableMessages = 100
	// ackTimeout is how long the writer waits before it publishes a message again.
	ackTimeout = time.Second
)

// survive kills the node that leads a stream while messages are written to it,
// reads every acknowledged one, and starts the node again.
func (d *Demo) survive(ctx context.Context) (measured, error) {
	nc, err := d.dial(d.nodes[embeddedNode], d.clerk)
	if err != nil {
		return measured{}, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return measured{}, fmt.Errorf("opening streams: %w", err)
	}
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.*"}, Replicas: len(d.nodes)})
	if err != nil {
		return measured{}, fmt.Errorf("making a stream: %w", err)
	}
	victim, err := d.lead(ctx, nc, stream)
	if err != nil {
		return measured{}, err
	}
	w := &writer{js: js}
	resumed, err := d.outlive(ctx, w, victim, stream)
	// The node is for the next step too.
	restarted := time.Now()
	if err := errors.Join(err, d.rejoin(ctx, victim, stream)); err != nil {
		return measured{}, err
	}
	return measured{detail: fmt.Sprintf("%s killed, writes went on after %s; %d acknowledged, %d read back; %s caught up in %s",
		victim.Name, human.Duration(resumed), w.count(), w.count(), victim.Name, human.Duration(time.Since(restarted)))}, nil
}

// outlive kills the node while w writes to the stream, reads what was acknowledged
// before and after, and returns how long nothing was. The node is killed in any
// case: the caller starts it again.
func (d *Demo) outlive(ctx context.Context, w *writer, victim *Node, stream jetstream.Stream) (resumed time.Duration, err error) {
	stop := w.start(ctx)
	defer stop()
	err = w.acked(ctx, durableMessages)
	victim.kill()
	killed := time.Now()
	if err != nil {
		return 0, err
	}
	// One message may have been acknowledged before the kill and counted after it.
	if err := w.acked(ctx, w.count()+2); err != nil {
		return 0, err
	}
	resumed = time.Since(killed)
	if err := w.acked(ctx, w.count()+durableMessages); err != nil {
		return 0, err
	}
	stop()
	return resumed, w.read(ctx, stream)
}

// lead returns the node that leads the stream. The embedded one, which cannot be
// killed, hands over to another first.
func (d *Demo) lead(ctx context.Context, nc *nats.Conn, stream jetstream.Stream) (leader *Node, err error) {
	err = retry(ctx, "waiting for a leader that can be killed", func(ctx context.Context) error {
		info, err := stream.Info(ctx)
		if err != nil {
			return err
		}
		for _, n := range d.nodes {
			if info.Cluster == nil || info.Cluster.Leader != n.Name {
				continue
			}
			if n.process != nil {
				leader = n
				return nil
			}
			request := fmt.Sprintf(`{"placement":{"preferred":%q}}`, d.nodes[0].Name)
			if _, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+info.Config.Name, []byte(request)); err != nil {
				return err
			}
		}
		return errors.New("there is none yet")
	})
	return leader, err
}

// rejoin starts the node again, and returns when its copy of the stream and the
// fleet are as they were.
func (d *Demo) rejoin(ctx context.Context, n *Node, stream jetstream.Stream) error {
	if err := d.launch(n); err != nil {
		return err
	}
	if err := d.ready(ctx, n); err != nil {
		return err
	}
	if _, err := d.whole(ctx); err != nil {
		return err
	}
	return retry(ctx, fmt.Sprintf("waiting for the copy of node %q", n.Name), func(ctx context.Context) error {
		info, err := stream.Info(ctx)
		if err != nil {
			return err
		}
		if info.Cluster == nil || len(info.Cluster.Replicas) != len(d.nodes)-1 {
			return errors.New("there are copies missing")
		}
		for _, r := range info.Cluster.Replicas {
			if !r.Current || r.Offline || r.Lag > 0 {
				return fmt.Errorf("the copy of %s is %d behind", r.Name, r.Lag)
			}
		}
		return nil
	})
}

// A writer publishes numbered messages, each again and again until it is
// acknowledged.
type writer struct {
	js jetstream.JetStream

	mu sync.Mutex
	// sequences of the acknowledged messages, by number.
	sequences []uint64
	// last is why a message had to be published again.
	last error
}

// start begins to write. stop ends it, and may be called again.
func (w *writer) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var writing sync.WaitGroup
	writing.Go(func() {
		for ctx.Err() == nil {
			w.write(ctx, w.count())
		}
	})
	return func() {
		cancel()
		writing.Wait()
	}
}

// write publishes message n. The stream knows by its id one that it has stored
// without our having heard so.
func (w *writer) write(ctx context.Context, n int) {
	try, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	id := strconv.Itoa(n)
	ack, err := w.js.Publish(try, "orders.new", []byte(id), jetstream.WithMsgID(id))
	w.mu.Lock()
	if err != nil {
		w.last = err
	} else {
		w.sequences = append(w.sequences, ack.Sequence)
	}
	w.mu.Unlock()
	if err != nil {
		<-try.Done()
	}
}

// count is the number of acknowledged messages.
func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sequences)
}

// acked returns when n messages are acknowledged.
func (w *writer) acked(ctx context.Context, n int) error {
	return retry(ctx, "waiting for messages to be acknowledged", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if have := len(w.sequences); have < n {
			return fmt.Errorf("%d of %d are, the last error is: %v", have, n, w.last)
		}
		return nil
	})
}

// read reads every acknowledged message from the stream. Call it when nothing is
// written any more.
func (w *writer) read(ctx context.Context, stream jetstream.Stream) error {
	for n, seq := range w.sequences {
		var got *jetstream.RawStreamMsg
		what := fmt.Sprintf("reading acknowledged message %d of %d", n, len(w.sequences))
		// Streams may have elected their leaders before the fleet has: it then
		// answers that it is not available. That a message is not there is final.
		err := retry(ctx, what, func(ctx context.Context) (err error) {
			got, err = stream.GetMsg(ctx, seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil
			}
			return err
		})
		switch {
		case err != nil:
			return err
		case got == nil:
			return fmt.Errorf("%s: it is lost", what)
		case string(got.Data) != strconv.Itoa(n):
			return fmt.Errorf("%s: message %q is in its place", what, got.Data)
		}
	}
	return nil
}
