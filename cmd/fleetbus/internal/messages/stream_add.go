package messages

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// streamFlags are the flags of stream add.
type streamFlags struct {
	subjects, sources            []string
	replicas, storage, retention string
	maxAge                       command.Life
	maxBytes                     command.Size
	maxMsgs                      int64
	region                       string
	g                            command.Guard
}

// autoReplicas is the metadata of a stream whose replicas the fleet may choose,
// as it grows.
const autoReplicas = "fleetbus.replicas"

func newStreamAdd(a *command.App) *cobra.Command {
	var f streamFlags
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Make a stream, or set what is named of one",
		Example: `  fleetbus stream add ORDERS --subject 'orders.>' --creds alice.creds
  fleetbus stream add JOBS --subject 'jobs.>' --retention workqueue --max-age 7d
  fleetbus stream add READINGS --source berlin:READINGS --source munich:READINGS`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, a, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.subjects, "subject", nil, "subjects that are kept (default: the stream's name, unless it has sources)")
	flags.StringSliceVar(&f.sources, "source", nil, "streams whose messages are copied: `STREAM`, or SITE:STREAM for one at a site or in another region")
	flags.StringVar(&f.region, "region", "", "`name` of the region that it is to be in; another one than that of the node that is asked is refused")
	f.replicas, f.storage, f.retention = "auto", "file", "limits"
	flags.Var(&command.Choice{Value: &f.replicas, Words: []string{"auto", "1", "3", "5"}}, "replicas", "copies on different nodes: 1, 3, 5, or auto: 3 if the fleet has the nodes")
	flags.Var(&command.Choice{Value: &f.storage, Words: []string{"file", "memory"}}, "storage", "where messages are kept: file or memory")
	flags.Var(&command.Choice{Value: &f.retention, Words: []string{"limits", "interest", "workqueue"}}, "retention", "until when: limits, interest (of consumers) or workqueue (once acknowledged)")
	flags.Var(&f.maxAge, "max-age", "how long a message is kept, such as 24h or 7d, or never")
	flags.Var(&f.maxBytes, "max-bytes", "what is kept at most, such as 10GiB")
	flags.Int64Var(&f.maxMsgs, "max-msgs", 0, "how many messages are kept at most; 0 is unlimited")
	f.g.Drying(cmd)
	return a.Output(cmd)
}

// added is the result of stream add.
type added struct {
	streamInfo
	Changed bool `json:"changed"`
}

func (f *streamFlags) run(cmd *cobra.Command, a *command.App, name string) error {
	what := fmt.Sprintf("adding stream %q", name)
	if name == "" || strings.ContainsAny(name, " \t\r\n.*>/\\") {
		return command.Fail(command.ExitUsage, "use letters, digits, - and _", "%s: it is no name for a stream", what)
	}
	if f.g.DryRun {
		_, err := streamNamed(a, cmd, what, name)
		var missing *command.Failure
		switch {
		case errors.As(err, &missing) && missing.Code == command.ExitNotFound:
			return a.ShowPlan("make stream %s", name)
		case err != nil:
			return err
		}
		return a.ShowPlan("set what is named of stream %s", name)
	}
	result, err := WithStreams(cmd, a, what, func(ctx context.Context, js jetstream.JetStream) (added, error) {
		return f.apply(ctx, js, cmd.Flags(), name)
	})
	if f.region != "" && command.TooFewNodes(err) {
		return command.Fail(command.ExitConflict, "ask a node there, with --server: fleetbus gateway ls names them", "%s: the node that was asked is not of region %s", what, f.region)
	}
	if err != nil {
		return err
	}
	if f.auto(cmd.Flags(), result) && result.Replicas < 3 {
		a.Hint("warning: stream %s has one copy: the fleet has less than 3 nodes that keep streams, and a lost disk loses it", name)
	}
	return a.Show(command.Report{Value: result, Text: func(p *command.Page) {
		same := ""
		if !result.Changed {
			same = ", nothing changed"
		}
		kept := result.Subjects
		for _, source := range f.sources {
			kept = append(kept, "what "+source+" has")
		}
		p.Line("stream %s keeps %s in %s%s", name, strings.Join(kept, ", "), copies(result.Replicas), same)
	}})
}

// auto reports whether the number of replicas was left to the fleet just now.
func (f *streamFlags) auto(flags *pflag.FlagSet, result added) bool {
	return f.replicas == "auto" && (flags.Changed("replicas") || result.Changed)
}

func copies(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// apply makes the stream, or sets what the flags name of the one that is there.
func (f *streamFlags) apply(ctx context.Context, js jetstream.JetStream, flags *pflag.FlagSet, name string) (added, error) {
	old, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		config := jetstream.StreamConfig{Name: name, Subjects: f.subjects}
		if len(f.subjects) == 0 && len(f.sources) == 0 {
			config.Subjects = []string{name}
		}
		f.set(flags, &config)
		s, err := f.replicate(config, f.replicas == "auto", func(c jetstream.StreamConfig) (jetstream.Stream, error) {
			return js.CreateStream(ctx, c)
		})
		if err != nil {
			return added{}, err
		}
		return added{infoOf(s.CachedInfo()), true}, nil
	}
	if err != nil {
		return added{}, err
	}
	before := old.CachedInfo().Config
	config := before
	config.Metadata = maps.Clone(before.Metadata)
	if flags.Changed("subject") {
		config.Subjects = f.subjects
	}
	f.set(flags, &config)
	if reflect.DeepEqual(before, config) {
		return added{infoOf(old.CachedInfo()), false}, nil
	}
	s, err := f.replicate(config, flags.Changed("replicas") && f.replicas == "auto", func(c jetstream.StreamConfig) (jetstream.Stream, error) {
		return js.UpdateStream(ctx, c)
	})
	if err != nil {
		return added{}, err
	}
	info := s.CachedInfo()
	return added{infoOf(info), !reflect.DeepEqual(before, info.Config)}, nil
}

// set puts in config what the flags name, besides subjects. A new stream takes
// the defaults of the flags for the rest, which are those of the engine.
func (f *streamFlags) set(flags *pflag.FlagSet, config *jetstream.StreamConfig) {
	if f.region != "" {
		config.Placement = &jetstream.Placement{Cluster: f.region}
	}
	if flags.Changed("source") {
		config.Sources = nil
		for _, source := range f.sources {
			site, stream, of := strings.Cut(source, ":")
			if !of {
				config.Sources = append(config.Sources, &jetstream.StreamSource{Name: source})
				continue
			}
			// The streams of a site have its name for a domain.
			config.Sources = append(config.Sources, &jetstream.StreamSource{Name: stream, External: &jetstream.ExternalStream{APIPrefix: "$JS." + site + ".API"}})
		}
	}
	if flags.Changed("storage") && f.storage == "memory" {
		config.Storage = jetstream.MemoryStorage
	} else if flags.Changed("storage") {
		config.Storage = jetstream.FileStorage
	}
	if flags.Changed("retention") {
		config.Retention = map[string]jetstream.RetentionPolicy{
			"limits": jetstream.LimitsPolicy, "interest": jetstream.InterestPolicy, "workqueue": jetstream.WorkQueuePolicy,
		}[f.retention]
	}
	if flags.Changed("max-age") {
		config.MaxAge = time.Duration(f.maxAge)
		if f.maxAge == command.Never {
			config.MaxAge = 0
		}
	}
	// The engine says -1 for unlimited.
	if flags.Changed("max-bytes") {
		config.MaxBytes = unlimited(int64(f.maxBytes))
	}
	if flags.Changed("max-msgs") {
		config.MaxMsgs = unlimited(f.maxMsgs)
	}
	if flags.Changed("replicas") && f.replicas != "auto" {
		config.Replicas = int(f.replicas[0] - '0')
		delete(config.Metadata, autoReplicas)
	}
}

func unlimited(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// replicate makes or updates a stream with config. If the number of replicas is
// to be chosen it is 3, or 1 if the fleet does not have the nodes: a user does
// not see how many there are, but the engine says so.
func (f *streamFlags) replicate(config jetstream.StreamConfig, choose bool, do func(jetstream.StreamConfig) (jetstream.Stream, error)) (jetstream.Stream, error) {
	if !choose {
		return do(config)
	}
	if config.Metadata == nil {
		config.Metadata = map[string]string{}
	}
	config.Metadata[autoReplicas] = "auto"
	config.Replicas = 3
	s, err := do(config)
	if command.TooFewNodes(err) {
		config.Replicas = 1
		s, err = do(config)
	}
	return s, err
}
