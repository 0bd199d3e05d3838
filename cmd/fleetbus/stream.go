package main

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

	"github.com/fleetbus/fleetbus/internal/human"
)

func newStreamCommand(a *app) *cobra.Command {
	return a.onFleet(noun("stream", "Streams, which keep messages, of the user's account",
		newStreamAdd(a), newStreamList(a), newStreamInfo(a), newStreamRemove(a)))
}

// withStreams does something with the streams of the user's account.
func withStreams[T any](cmd *cobra.Command, a *app, what string, do func(context.Context, jetstream.JetStream) (T, error)) (out T, err error) {
	nc, err := a.asUser(cmd.Context(), what)
	if err != nil {
		return out, err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.fleet.timeout)
	defer cancel()
	defer a.progress(what)()
	js, err := jetstream.New(nc)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	if out, err = do(ctx, js); err != nil {
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return out, fail(exitNotFound, "fleetbus stream ls", "%s: there is no such stream", what)
		}
		if errors.Is(err, nats.ErrNoResponders) {
			return out, fail(exitUnavailable, "fleetbus doctor", "%s: no node keeps streams now", what)
		}
		return out, fmt.Errorf("%s: %w", what, violation(nc, err))
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

func newStreamList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: takes(), Annotations: reads(),
		Short: "List the streams of the user's account",
		RunE: func(cmd *cobra.Command, _ []string) error {
			streams, err := withStreams(cmd, a, "listing streams", func(ctx context.Context, js jetstream.JetStream) ([]streamInfo, error) {
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
			return a.show(list(streams,
				column[streamInfo]{"NAME", func(s streamInfo) string { return s.Name }},
				column[streamInfo]{"SUBJECTS", func(s streamInfo) string { return strings.Join(s.Subjects, ",") }},
				column[streamInfo]{"STORAGE", func(s streamInfo) string { return s.Storage }},
				column[streamInfo]{"REPLICAS", func(s streamInfo) string { return human.Int(int64(s.Replicas)) }},
				column[streamInfo]{"LAGGING", func(s streamInfo) string { return strings.Join(s.Lagging, ",") }},
				column[streamInfo]{"MESSAGES", func(s streamInfo) string { return fmt.Sprint(s.Messages) }},
				column[streamInfo]{"STORED", func(s streamInfo) string { return human.Size(int64(s.Bytes)) }},
				column[streamInfo]{"CONSUMERS", func(s streamInfo) string { return human.Int(int64(s.Consumers)) }},
			))
		},
	})
}

// stream asks for one stream.
func (a *app) stream(cmd *cobra.Command, what, name string) (streamInfo, error) {
	return withStreams(cmd, a, what, func(ctx context.Context, js jetstream.JetStream) (streamInfo, error) {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return streamInfo{}, err
		}
		return infoOf(s.CachedInfo()), nil
	})
}

func newStreamInfo(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "info NAME", Aliases: []string{"get", "show"}, Args: takes("NAME"), Annotations: reads(),
		Short: "Tell of one stream",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.stream(cmd, fmt.Sprintf("asking for stream %q", args[0]), args[0])
			if err != nil {
				return err
			}
			return a.show(report{value: s, text: func(p *page) {
				fields(p, []field{{"name", s.Name}, {"subjects", strings.Join(s.Subjects, ",")},
					{"storage", s.Storage}, {"retention", s.Retention},
					{"replicas", human.Int(int64(s.Replicas))}, {"leader", s.Leader}, {"lagging", strings.Join(s.Lagging, ",")},
					{"messages", fmt.Sprintf("%d (%d to %d) of %s", s.Messages, s.FirstSeq, s.LastSeq, human.Limit(s.MaxMsgs, human.Int))},
					{"stored", human.Size(int64(s.Bytes)) + " of " + human.Limit(s.MaxBytes, human.Size)},
					{"messages live", formatLife(time.Duration(s.MaxAge * float64(time.Second)))},
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

func newStreamRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: takes("NAME"), Annotations: writes(),
		Short: "Remove a stream and its messages",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing stream %q", name)
			s, err := a.stream(cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("remove stream %s with %d messages (%s) and %s",
				name, s.Messages, human.Size(int64(s.Bytes)), human.Count(s.Consumers, "consumer"))
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if _, err := withStreams(cmd, a, what, func(ctx context.Context, js jetstream.JetStream) (struct{}, error) {
				return struct{}{}, js.DeleteStream(ctx, name)
			}); err != nil {
				return err
			}
			return a.show(report{value: removed{name, true}, text: func(p *page) { p.line("stream %s is removed", name) }})
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}
