package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
)

const (
	// echoPause is the time from one request to the next, far from what any server
	// can bear.
	echoPause = time.Millisecond
	// echoMost and storedMost bound what is measured one after the other.
	echoMost, storedMost = 2000, 1000
)

// benchFlags are those of bench.
type benchFlags struct {
	messages, clients int
	size              size
	stored            bool
}

func newBenchCommand(a *app) *cobra.Command {
	f := benchFlags{size: 256}
	cmd := &cobra.Command{
		Use: "bench", Args: takes(), Annotations: reads(),
		Short: "Measure throughput and latency of a fleet",
		Long: `Measure how many messages a second go through a fleet, and how long a request
and its echo take. With --stream, the same for messages that are stored, in a
stream that is made for it and removed at the end. Other clients of the fleet
will notice.`,
		Example: `  fleetbus bench --creds alice.creds
  fleetbus bench --messages 1000000 --size 1KiB --clients 4 --stream`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, a) },
	}
	flags := cmd.Flags()
	flags.IntVar(&f.messages, "messages", 200_000, "messages to publish, in all")
	flags.Var(&f.size, "size", "size of a message")
	flags.IntVar(&f.clients, "clients", 1, "publishers at once, each with a subscriber of its own")
	flags.BoolVar(&f.stored, "stream", false, "measure messages that a stream stores too")
	// These are not for the verbs under bench, which start fleets of their own.
	fleet := a.onFleet(&cobra.Command{})
	flags.AddFlagSet(fleet.PersistentFlags())
	cmd.AddCommand(newBenchHouseCommand(a), newBenchMQTTCommand(a))
	return a.output(cmd)
}

// A measure is one line of what bench found out.
type measure struct {
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
func timed(name string, took []time.Duration) measure {
	at := func(q float64) float64 { return float64(percentile(took, q)) / float64(time.Microsecond) }
	return measure{Name: name, P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
}

// A condition is something that a figure depends on.
type condition struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// showConditions writes them below a table.
func showConditions(p *page, list []condition) {
	p.line("")
	p.line("conditions:")
	lines := make([]field, len(list))
	for i, c := range list {
		lines[i] = field{"  " + c.Name, c.Value}
	}
	fields(p, lines)
}

// machine is the condition of where this process runs.
func machine() condition {
	return condition{"machine", fmt.Sprintf("%d CPUs, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())}
}

func (f *benchFlags) run(cmd *cobra.Command, a *app) error {
	const what = "measuring the fleet"
	if f.messages < 1 || f.clients < 1 || f.size < 1 {
		return fail(exitUsage, "fleetbus bench --help", "%s: --messages, --clients and --size have to be above 0", what)
	}
	ctx := cmd.Context()
	pairs, err := f.connect(ctx, a, what)
	for _, p := range pairs {
		defer p.pub.Close()
		defer p.sub.Close()
	}
	if err != nil {
		return err
	}
	nc := pairs[0].pub
	if limit := nc.MaxPayload(); int64(f.size) > limit {
		return fail(exitUsage, "--size "+formatSize(limit), "%s: the server takes messages of %s at most", what, formatSize(limit))
	}
	stop := a.progress(what)
	measures, conditions, err := f.measure(ctx, pairs)
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", what, violation(nc, err))
	}
	value := struct {
		Measures   []measure   `json:"measures"`
		Conditions []condition `json:"conditions"`
	}{measures, conditions}
	return a.show(report{value: value, text: func(p *page) {
		table(p, measures,
			column[measure]{"MEASURE", func(m measure) string { return m.Name }},
			column[measure]{"RATE", func(m measure) string { return formatRate(m.PerSecond) }},
			column[measure]{"P50", func(m measure) string { return formatMicros(m.P50) }},
			column[measure]{"P90", func(m measure) string { return formatMicros(m.P90) }},
			column[measure]{"P99", func(m measure) string { return formatMicros(m.P99) }},
			column[measure]{"MAX", func(m measure) string { return formatMicros(m.Max) }})
		showConditions(p, conditions)
	}})
}

// connect opens the connections of all pairs. It returns those that it opened
// even if it fails.
func (f *benchFlags) connect(ctx context.Context, a *app, what string) ([]pair, error) {
	prefix := "bench." + rand.Text() + "."
	var pairs []pair
	for i := range f.clients {
		pub, err := a.asUser(ctx, what, nats.NoReconnect())
		if err != nil {
			return pairs, err
		}
		sub, err := a.asUser(ctx, what, nats.NoReconnect())
		if err != nil {
			pub.Close()
			return pairs, err
		}
		pairs = append(pairs, pair{pub: pub, sub: sub, subject: prefix + strconv.Itoa(i)})
	}
	return pairs, nil
}

// measure puts the loads on the fleet, one after the other.
func (f *benchFlags) measure(ctx context.Context, pairs []pair) ([]measure, []condition, error) {
	first, bytes := pairs[0], int(f.size)
	each := max(1, f.messages/len(pairs))
	conditions := append(f.conditions(first, each*len(pairs)), machine())
	rate, err := throughput(ctx, pairs, each, bytes)
	if err != nil {
		return nil, nil, err
	}
	took, err := echoes(ctx, first, min(f.messages, echoMost), bytes, echoPause)
	if err != nil {
		return nil, nil, err
	}
	measures := []measure{{Name: "publish and subscribe", PerSecond: rate}, timed("request and echo", took)}
	if !f.stored {
		return measures, conditions, nil
	}
	more, stream, err := f.measureStream(ctx, first.pub)
	return append(measures, more...), append(conditions, stream), err
}

// measureStream makes a stream, publishes to it, and removes it.
func (f *benchFlags) measureStream(ctx context.Context, nc *nats.Conn) (_ []measure, _ condition, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, condition{}, err
	}
	name := "BENCH-" + rand.Text()
	config := jetstream.StreamConfig{Name: name, Subjects: []string{"bench.stored." + name}, Storage: jetstream.FileStorage}
	stream, err := (&streamFlags{}).replicate(config, true, func(c jetstream.StreamConfig) (jetstream.Stream, error) {
		return js.CreateStream(ctx, c)
	})
	if err != nil {
		return nil, condition{}, fmt.Errorf("making stream %q: %w", name, err)
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
	took, err := storeTimes(ctx, nc, subject, min(f.messages, storedMost), int(f.size))
	if err != nil {
		return nil, condition{}, err
	}
	n := min(f.messages, 10*storedMost)
	rate, err := storeRate(ctx, nc, subject, n, int(f.size))
	if err != nil {
		return nil, condition{}, err
	}
	about := fmt.Sprintf("%s on disk; %d messages one by one, %d with %d under way",
		copies(stream.CachedInfo().Config.Replicas), len(took), n, storePending)
	return []measure{timed("stored, one by one", took), {Name: "stored, pipelined", PerSecond: rate}}, condition{"stream", about}, nil
}

// conditions are what the figures of a pair depend on.
func (f *benchFlags) conditions(p pair, messages int) []condition {
	link := "plain text"
	if state, err := p.pub.TLSConnectionState(); err == nil {
		link = tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite)
	}
	rtt := "unknown"
	if d, err := p.pub.RTT(); err == nil {
		rtt = d.Round(time.Microsecond).String()
	}
	return []condition{
		{"publisher", fmt.Sprintf("on node %s (engine %s), round trip %s", p.pub.ConnectedServerName(), p.pub.ConnectedServerVersion(), rtt)},
		{"subscriber", "on node " + p.sub.ConnectedServerName()},
		{"link", link},
		{"messages", fmt.Sprintf("%d of %s from %s, at most %d under way for each", messages, formatSize(int64(f.size)), count(f.clients, "publisher"), chunk*chunks)},
		{"requests", fmt.Sprintf("%d, one each %v", min(f.messages, echoMost), echoPause)},
	}
}

func formatRate(perSecond float64) string {
	if perSecond == 0 {
		return ""
	}
	return strconv.FormatFloat(perSecond, 'f', 0, 64) + "/s"
}

func formatMicros(us float64) string {
	if us == 0 {
		return ""
	}
	return time.Duration(us * float64(time.Microsecond)).Round(time.Microsecond).String()
}
