package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MostEchoes and mostStored bound what is measured one after the other.
const MostEchoes, mostStored = 2000, 1000

// A Measure is one line of what a load found out.
type Measure struct {
	Name string `json:"name"`
	// PerSecond is a rate of messages, and the rest are microseconds; what was not
	// measured is 0.
	PerSecond float64 `json:"per_second,omitempty"`
	P50       float64 `json:"p50_us,omitempty"`
	P90       float64 `json:"p90_us,omitempty"`
	P99       float64 `json:"p99_us,omitempty"`
	Max       float64 `json:"max_us,omitempty"`
}

// timed is the measure of how long something took, each of at least one time.
func timed(name string, took []time.Duration) Measure {
	at := func(q float64) float64 { return float64(percentile(took, q)) / float64(time.Microsecond) }
	return Measure{Name: name, P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
}

// A Load is what is put on a fleet that somebody else runs.
type Load struct {
	Messages, Size int // in all, in bytes
	// CreateStream makes the stream for messages that are stored. Without it none
	// is, and nothing of that measured.
	CreateStream func(context.Context, jetstream.JetStream, jetstream.StreamConfig) (jetstream.Stream, error)
}

// Measure puts the load on the fleet that the pairs are connected to, of which
// there is at least one. The conditions are those that only it knows.
func (l Load) Measure(ctx context.Context, pairs []Pair) ([]Measure, []Condition, error) {
	perSecond, err := throughput(ctx, pairs, max(1, l.Messages/len(pairs)), l.Size)
	if err != nil {
		return nil, nil, err
	}
	took, err := echoes(ctx, pairs[0], min(l.Messages, MostEchoes), l.Size, EchoPause)
	if err != nil {
		return nil, nil, err
	}
	measures := []Measure{{Name: "publish and subscribe", PerSecond: perSecond}, timed("request and echo", took)}
	if l.CreateStream == nil {
		return measures, nil, nil
	}
	more, stream, err := l.measureStream(ctx, pairs[0].Pub)
	return append(measures, more...), []Condition{stream}, err
}

// measureStream makes a stream, publishes to it, and removes it.
func (l Load) measureStream(ctx context.Context, nc *nats.Conn) (_ []Measure, _ Condition, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, Condition{}, err
	}
	name := "BENCH-" + rand.Text()
	config := jetstream.StreamConfig{Name: name, Subjects: []string{"bench.stored." + name}, Storage: jetstream.FileStorage}
	stream, err := l.CreateStream(ctx, js, config)
	if err != nil {
		return nil, Condition{}, fmt.Errorf("making stream %q: %w", name, err)
	}
	defer func() {
		// An interrupt is no reason to leave it behind.
		remove, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if e := js.DeleteStream(remove, name); e != nil {
			err = errors.Join(err, fmt.Errorf("removing stream %q: %w", name, e))
		}
	}()
	subject := config.Subjects[0]
	took, err := storeTimes(ctx, nc, subject, min(l.Messages, mostStored), l.Size)
	if err != nil {
		return nil, Condition{}, err
	}
	n := min(l.Messages, 10*mostStored)
	perSecond, err := storeRate(ctx, nc, subject, n, l.Size)
	if err != nil {
		return nil, Condition{}, err
	}
	copies := "1 copy"
	if r := stream.CachedInfo().Config.Replicas; r > 1 {
		copies = fmt.Sprintf("%d copies", r)
	}
	about := fmt.Sprintf("%s on disk; %d messages one by one, %d with %d under way", copies, len(took), n, storePending)
	return []Measure{timed("stored, one by one", took), {Name: "stored, pipelined", PerSecond: perSecond}}, Condition{"stream", about}, nil
}
