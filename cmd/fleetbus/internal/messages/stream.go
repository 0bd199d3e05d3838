package messages

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newStreamCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("stream", "Streams, which keep messages, of the user's account",
		newStreamAdd(a), newStreamList(a), newStreamInfo(a), newStreamRemove(a)))
}

// WithStreams does something with the streams of the user's account.
func WithStreams[T any](cmd *cobra.Command, a *command.App, what string, do func(context.Context, jetstream.JetStream) (T, error)) (out T, err error) {
	nc, err := a.AsUser(cmd.Context(), what)
	if err != nil {
		return out, err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	defer a.Progress(what)()
	js, err := jetstream.New(nc)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	if out, err = do(ctx, js); err != nil {
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return out, command.Fail(command.ExitNotFound, "fleetbus stream ls", "%s: there is no such stream", what)
		}
		if errors.Is(err, nats.ErrNoResponders) {
			return out, command.Fail(command.ExitUnavailable, "fleetbus doctor", "%s: no node keeps streams now", what)
		}
		return out, fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	return out, nil
}

// streamInfo is a stream as programs get it.
type streamInfo struct {
	Name      string    `json:"name"`
	Subjects  []string  `json:"subjects"`
	Storage   string    `json:"storage"`
	Retention string    `json:"retention"`
	Replicas  int       `json:"replicas"`
	Leader    string    `json:"leader,omitempty"`
	Messages  uint64    `json:"messages"`
	Bytes     uint64    `json:"bytes"`
	FirstSeq  uint64    `json:"first_sequence"`
	LastSeq   uint64    `json:"last_sequence"`
	Consumers int       `json:"consumers"`
	MaxAge    float64   `json:"max_age_seconds"`
	MaxBytes  int64     `json:"max_bytes"`
	MaxMsgs   int64     `json:"max_msgs"`
	Created   time.Time `json:"created"`
	// Lagging are replicas that are not current.
	Lagging []string `json:"lagging"`
}

func infoOf(i *jetstream.StreamInfo) streamInfo {
	s := streamInfo{
		Name: i.Config.Name, Subjects: i.Config.Subjects, Storage: strings.ToLower(i.Config.Storage.String()),
		Retention: retentionWord(i.Config.Retention), Replicas: i.Config.Replicas,
		Messages: i.State.Msgs, Bytes: i.State.Bytes, FirstSeq: i.State.FirstSeq, LastSeq: i.State.LastSeq,
		Consumers: i.State.Consumers, MaxAge: i.Config.MaxAge.Seconds(),
		MaxBytes: max(i.Config.MaxBytes, 0), MaxMsgs: max(i.Config.MaxMsgs, 0), Created: i.Created.UTC(),
	}
	if c := i.Cluster; c != nil {
		s.Leader = c.Leader
		for _, r := range c.Replicas {
			if !r.Current {
				s.Lagging = append(s.Lagging, r.Name)
			}
		}
	}
	return s
}

// retentionWord is the word of --retention.
func retentionWord(r jetstream.RetentionPolicy) string {
	switch r {
	case jetstream.InterestPolicy:
		return "interest"
	case jetstream.WorkQueuePolicy:
		return "workqueue"
	}
	return "limits"
}

func newStreamList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the streams of the user's account",
		RunE: func(cmd *cobra.Command, _ []string) error {
			streams, err := WithStreams(cmd, a, "listing streams", func(ctx context.Context, js jetstream.JetStream) ([]streamInfo, error) {
				var all []streamInfo
				lister := js.ListStreams(ctx)
				for info := range lister.Info() {
					all = append(all, infoOf(info))
				}
				return all, lister.Err()
			})
			if err != nil {
				return err
			}
			slices.SortFunc(streams, func(x, y streamInfo) int { return strings.Compare(x.Name, y.Name) })
			return a.Show(command.List(streams,
				command.Col("NAME", func(s streamInfo) string { return s.Name }),
				command.Col("SUBJECTS", func(s streamInfo) string { return strings.Join(s.Subjects, ",") }),
				command.Col("STORAGE", func(s streamInfo) string { return s.Storage }),
				command.Col("REPLICAS", func(s streamInfo) string { return human.Int(int64(s.Replicas)) }),
				command.Col("LAGGING", func(s streamInfo) string { return strings.Join(s.Lagging, ",") }),
				command.Col("MESSAGES", func(s streamInfo) string { return fmt.Sprint(s.Messages) }),
				command.Col("STORED", func(s streamInfo) string { return human.Size(int64(s.Bytes)) }),
				command.Col("CONSUMERS", func(s streamInfo) string { return human.Int(int64(s.Consumers)) }),
			))
		},
	})
}

// streamNamed asks for one stream.
func streamNamed(a *command.App, cmd *cobra.Command, what, name string) (streamInfo, error) {
	return WithStreams(cmd, a, what, func(ctx context.Context, js jetstream.JetStream) (streamInfo, error) {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return streamInfo{}, err
		}
		return infoOf(s.CachedInfo()), nil
	})
}

func newStreamInfo(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "info NAME", Aliases: []string{"get", "show"}, Args: command.Takes("NAME"), Annotations: command.Reads(),
		Short: "Tell of one stream",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := streamNamed(a, cmd, fmt.Sprintf("asking for stream %q", args[0]), args[0])
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: s, Text: func(p *command.Page) {
				command.Fields(p, []command.Field{{"name", s.Name}, {"subjects", strings.Join(s.Subjects, ",")},
					{"storage", s.Storage}, {"retention", s.Retention},
					{"replicas", human.Int(int64(s.Replicas))}, {"leader", s.Leader}, {"lagging", strings.Join(s.Lagging, ",")},
					{"messages", fmt.Sprintf("%d (%d to %d) of %s", s.Messages, s.FirstSeq, s.LastSeq, human.Limit(s.MaxMsgs, human.Int))},
					{"stored", human.Size(int64(s.Bytes)) + " of " + human.Limit(s.MaxBytes, human.Size)},
					{"messages live", command.FormatLife(time.Duration(s.MaxAge * float64(time.Second)))},
					{"consumers", human.Int(int64(s.Consumers))}, {"created", human.Time(s.Created)}})
			}})
		},
	})
}

// removed is the result of removing something that is not the fleet's to agree on.
type removed struct {
	Name    string `json:"name"`
	Changed bool   `json:"changed"`
}

func newStreamRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove a stream and its messages",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing stream %q", name)
			s, err := streamNamed(a, cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("remove stream %s with %d messages (%s) and %s",
				name, s.Messages, human.Size(int64(s.Bytes)), human.Count(s.Consumers, "consumer"))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if _, err := WithStreams(cmd, a, what, func(ctx context.Context, js jetstream.JetStream) (struct{}, error) {
				return struct{}{}, js.DeleteStream(ctx, name)
			}); err != nil {
				return err
			}
			return a.Show(command.Report{Value: removed{name, true}, Text: func(p *command.Page) { p.Line("stream %s is removed", name) }})
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
