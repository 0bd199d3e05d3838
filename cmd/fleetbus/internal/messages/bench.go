package messages

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/bench"
	"github.com/fleetbus/fleetbus/internal/human"
	"github.com/fleetbus/fleetbus/internal/natsload"
)

// benchFlags are those of bench.
type benchFlags struct {
	messages, clients int
	size              command.Size
	stored            bool
}

func newBenchCommand(a *command.App) *cobra.Command {
	f := benchFlags{size: 256}
	cmd := &cobra.Command{
		Use: "bench", Args: command.Takes(), Annotations: command.Reads(),
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
	fleet := a.OnFleet(&cobra.Command{})
	flags.AddFlagSet(fleet.PersistentFlags())
	cmd.AddCommand(newBenchClientsCommand(a))
	cmd.AddCommand(benchVerbs(a)...)
	return a.Output(cmd)
}

// newBenchClientsCommand is what bench scale runs the clients in.
func newBenchClientsCommand(a *command.App) *cobra.Command {
	return &cobra.Command{
		Use: "clients", Args: command.Takes(), Annotations: command.Prints(), Hidden: true,
		Short: "Be very many clients, as bench scale says on standard input",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return natsload.Serve(cmd.Context(), a.Stdin, a.Stdout)
		},
	}
}

// showConditions writes them below a table.
func showConditions(p *command.Page, list []bench.Condition) {
	p.Line("")
	p.Line("conditions:")
	lines := make([]command.Field, len(list))
	for i, c := range list {
		lines[i] = command.Field{"  " + c.Name, c.Value}
	}
	command.Fields(p, lines)
}

func (f *benchFlags) run(cmd *cobra.Command, a *command.App) error {
	const what = "measuring the fleet"
	if f.messages < 1 || f.clients < 1 || f.size < 1 {
		return command.Fail(command.ExitUsage, "fleetbus bench --help", "%s: --messages, --clients and --size have to be above 0", what)
	}
	ctx := cmd.Context()
	pairs, err := f.connect(ctx, a, what)
	for _, p := range pairs {
		defer p.Pub.Close()
		defer p.Sub.Close()
	}
	if err != nil {
		return err
	}
	nc := pairs[0].Pub
	if limit := nc.MaxPayload(); int64(f.size) > limit {
		return command.Fail(command.ExitUsage, "--size "+human.Size(limit), "%s: the server takes messages of %s at most", what, human.Size(limit))
	}
	stop := a.Progress(what)
	measures, conditions, err := f.measure(ctx, pairs)
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	value := struct {
		Measures   []bench.Measure   `json:"measures"`
		Conditions []bench.Condition `json:"conditions"`
	}{measures, conditions}
	return a.Show(command.Report{Value: value, Text: func(p *command.Page) {
		command.Table(p, measures,
			command.Col("MEASURE", func(m bench.Measure) string { return m.Name }),
			command.Col("RATE", func(m bench.Measure) string { return formatRate(m.PerSecond) }),
			command.Col("P50", func(m bench.Measure) string { return formatMicros(m.P50) }),
			command.Col("P90", func(m bench.Measure) string { return formatMicros(m.P90) }),
			command.Col("P99", func(m bench.Measure) string { return formatMicros(m.P99) }),
			command.Col("MAX", func(m bench.Measure) string { return formatMicros(m.Max) }))
		showConditions(p, conditions)
	}})
}

// connect opens the connections of all pairs. It returns those that it opened
// even if it fails.
func (f *benchFlags) connect(ctx context.Context, a *command.App, what string) ([]bench.Pair, error) {
	prefix := "bench." + rand.Text() + "."
	var pairs []bench.Pair
	for i := range f.clients {
		pub, err := a.AsUser(ctx, what, nats.NoReconnect())
		if err != nil {
			return pairs, err
		}
		sub, err := a.AsUser(ctx, what, nats.NoReconnect())
		if err != nil {
			pub.Close()
			return pairs, err
		}
		pairs = append(pairs, bench.Pair{Pub: pub, Sub: sub, Subject: prefix + strconv.Itoa(i)})
	}
	return pairs, nil
}

// measure puts the load on the fleet.
func (f *benchFlags) measure(ctx context.Context, pairs []bench.Pair) ([]bench.Measure, []bench.Condition, error) {
	load := bench.Load{Messages: f.messages, Size: int(f.size)}
	if f.stored {
		load.CreateStream = func(ctx context.Context, js jetstream.JetStream, config jetstream.StreamConfig) (jetstream.Stream, error) {
			return (&streamFlags{}).replicate(config, true, func(c jetstream.StreamConfig) (jetstream.Stream, error) {
				return js.CreateStream(ctx, c)
			})
		}
	}
	conditions := append(f.conditions(pairs[0], max(1, f.messages/len(pairs))*len(pairs)), bench.Machine())
	measures, more, err := load.Measure(ctx, pairs)
	if err != nil {
		for _, p := range pairs {
			err = command.Violation(p.Pub, err)
		}
		return nil, nil, err
	}
	return measures, append(conditions, more...), nil
}

// conditions are what the figures of a pair depend on.
func (f *benchFlags) conditions(p bench.Pair, messages int) []bench.Condition {
	link := "plain text"
	if state, err := p.Pub.TLSConnectionState(); err == nil {
		link = tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite)
	}
	rtt := "unknown"
	if d, err := p.Pub.RTT(); err == nil {
		rtt = d.Round(time.Microsecond).String()
	}
	return []bench.Condition{
		{Name: "publisher", Value: fmt.Sprintf("on node %s (engine %s), round trip %s", p.Pub.ConnectedServerName(), p.Pub.ConnectedServerVersion(), rtt)},
		{Name: "subscriber", Value: "on node " + p.Sub.ConnectedServerName()},
		{Name: "link", Value: link},
		{Name: "messages", Value: fmt.Sprintf("%d of %s from %s, at most %d under way for each", messages, human.Size(int64(f.size)), human.Count(f.clients, "publisher"), bench.UnderWay)},
		{Name: "requests", Value: fmt.Sprintf("%d, one each %v", min(f.messages, bench.MostEchoes), bench.EchoPause)},
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
