//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	overNATS = "NATS"
	overMQTT = "MQTT"
	overAMQP = "AMQP"

	// workStream has what is published over NATS. A message is told by its id for as long
	// as an outage may last.
	workStream = "WORK"
	duplicates = 10 * time.Minute
	// natsTry is when a publisher asks again.
	natsTry = 300 * time.Millisecond
	// between two messages of a lane there is half of that to one and a half.
	between = 10 * time.Millisecond
)

// makeWork makes the stream of an account.
func makeWork(ctx context.Context, js jetstream.JetStream, copies int) error {
	return until(ctx, patience, "there is a stream", func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: workStream, Subjects: []string{"work.>"}, Storage: jetstream.FileStorage, Replicas: copies, Duplicates: duplicates,
		})
		return err
	})
}

// publishNATS publishes the numbers of a lane until ctx is done, one after the other, each
// again under its id until it is known to be stored.
func publishNATS(ctx context.Context, nc *nats.Conn, l *lane) {
	js, err := jetstream.New(nc)
	if err != nil {
		return
	}
	for pause(ctx, between/2+rand.N(between)) == nil {
		n := l.next()
		msg := &nats.Msg{Subject: "work." + l.name, Data: l.payload(n), Header: nats.Header{jetstream.MsgIDHeader: {fmt.Sprintf("%s-%d", l.name, n)}}}
		for began := time.Now(); time.Since(began) < duplicates/2; {
			try, cancel := context.WithTimeout(context.WithoutCancel(ctx), natsTry)
			ack, err := js.PublishMsg(try, msg, jetstream.WithRetryAttempts(0))
			cancel()
			if err == nil {
				l.settle(n, acknowledged, ack.Sequence)
				break
			}
			// Whoever is told to stop leaves it unknown, when it had its time.
			if ctx.Err() != nil && time.Since(began) > patience/4 {
				return
			}
			_ = pause(ctx, 20*time.Millisecond)
		}
	}
}

// readNATS reads the stream of an account until ctx is done, by a consumer that the fleet
// keeps.
func readNATS(ctx context.Context, a *account, nc *nats.Conn, b *book) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	var consumer jetstream.Consumer
	if err := until(ctx, patience, "there is a consumer", func(ctx context.Context) (err error) {
		consumer, err = js.CreateOrUpdateConsumer(ctx, workStream, jetstream.ConsumerConfig{Durable: "reader", AckWait: 5 * time.Second, MaxAckPending: 1000})
		return err
	}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		batch, err := consumer.Fetch(100, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			_ = pause(ctx, 100*time.Millisecond)
			continue
		}
		for m := range batch.Messages() {
			// It may be delivered again: the consumer promises that at least once.
			b.receive(a, overNATS, m.Data(), true)
			_ = m.Ack()
		}
	}
	return nil
}

// auditNATS reads the whole stream of an account from each node's copy, by making it the
// leader, and says what is wrong with it.
func (l *load) auditNATS(ctx context.Context, a *account, nc *nats.Conn) (wrong []string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	for _, n := range l.fleet.nodes {
		if err := lead(ctx, nc, js, n); err != nil {
			return wrong, err
		}
		stored, err := readAll(ctx, js)
		if err != nil {
			return wrong, fmt.Errorf("reading the copy of %s: %w", n.name, err)
		}
		all, t := auditCopy(a, stored, l.book.of(overNATS))
		l.stored = l.stored.plus(t)
		for _, text := range all {
			wrong = append(wrong, "the copy of "+n.name+": "+text)
		}
	}
	return wrong, nil
}

// lead makes a node the leader of the work.
func lead(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, n *node) error {
	request, err := json.Marshal(map[string]any{"placement": map[string]string{"preferred": n.name}})
	if err != nil {
		return err
	}
	return until(ctx, patience, n.name+" leads", func(ctx context.Context) error {
		s, err := js.Stream(ctx, workStream)
		if err != nil {
			return err
		}
		if i := s.CachedInfo().Cluster; i != nil && i.Leader == n.name {
			return nil
		}
		if _, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+workStream, request); err != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
		return errors.New("it was asked to")
	})
}

// A stored message.
type stored struct {
	seq     uint64
	id      string
	payload string
}

// readAll reads the stream from its leader, without acknowledging.
func readAll(ctx context.Context, js jetstream.JetStream) (all []stored, err error) {
	err = until(ctx, patience, "the stream is read", func(ctx context.Context) error {
		all = nil
		s, err := js.Stream(ctx, workStream)
		if err != nil {
			return err
		}
		state := s.CachedInfo().State
		// No deadline of one request: there may be much to read.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		consumer, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, Replicas: 1, MemoryStorage: true, InactiveThreshold: time.Minute})
		if err != nil {
			return err
		}
		for uint64(len(all)) < state.Msgs {
			batch, err := consumer.Fetch(1000, jetstream.FetchMaxWait(5*time.Second))
			if err != nil {
				return err
			}
			before := len(all)
			for m := range batch.Messages() {
				meta, err := m.Metadata()
				if err != nil {
					return err
				}
				all = append(all, stored{meta.Sequence.Stream, m.Headers().Get(jetstream.MsgIDHeader), string(m.Data())})
			}
			if len(all) == before {
				return fmt.Errorf("%d of %d messages came: %w", len(all), state.Msgs, batch.Error())
			}
		}
		return nil
	})
	return all, err
}

// auditCopy compares one copy of the stream with what publishers were told, and counts what is
// wrong with it.
func auditCopy(a *account, all []stored, lanes []*lane) (wrong []string, t Tally) {
	byID, last := map[string]uint64{}, map[string]uint64{}
	for _, m := range all {
		if seq, ok := byID[m.id]; ok {
			t.Twice++
			wrong = append(wrong, fmt.Sprintf("%s is stored as %d and %d", m.id, seq, m.seq))
		}
		byID[m.id] = m.seq
	}
	for _, l := range lanes {
		if l.account != a {
			continue
		}
		l.mu.Lock()
		for n, f := range l.fates {
			id := fmt.Sprintf("%s-%d", l.name, n)
			seq, ok := byID[id]
			switch {
			case f == acknowledged && !ok:
				t.Lost++
				wrong = append(wrong, fmt.Sprintf("%s was acknowledged as %d and is not there", id, l.places[n]))
			case f == acknowledged && seq != l.places[n]:
				t.Disordered++
				wrong = append(wrong, fmt.Sprintf("%s was acknowledged as %d and is %d", id, l.places[n], seq))
			case ok && seq < last[l.name]:
				t.Disordered++
				wrong = append(wrong, fmt.Sprintf("%s is before an earlier one", id))
			}
			last[l.name] = max(last[l.name], seq)
			delete(byID, id)
		}
		l.mu.Unlock()
	}
	for id := range byID {
		wrong = append(wrong, fmt.Sprintf("%q was never sent", id))
	}
	if n := len(wrong); n > 5 {
		wrong = append(wrong[:5], fmt.Sprintf("and %d more", n-5))
	}
	return wrong, t
}
