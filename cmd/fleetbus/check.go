package main

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/certificates"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/messages"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/nodes"
	"github.com/fleetbus/fleetbus/internal/check"
)

func newCheckCommand(a *command.App) *cobra.Command {
	var lag, pending struct{ warning, critical float64 }
	var ends, behind struct{ warning, critical time.Duration }
	listener := "metrics"
	ofFleet := func(judge func(admin.Status, []string) check.Result) func(*cobra.Command, []string) (check.Result, error) {
		return func(cmd *cobra.Command, args []string) (check.Result, error) {
			s, err := nodes.Status(a, cmd, "asking for the status")
			return judge(s, args), err
		}
	}
	health := checks(a, "health [livez|readyz|startupz]", "Ask the node on this machine whether it is ready, without credentials, for a probe", func(cmd *cobra.Command, args []string) (check.Result, error) {
		dir, err := a.DataDir()
		return check.Health(cmd.Context(), dir, listener, append(args, "readyz")[0]), err
	})
	health.Flags().StringVar(&listener, "listener", listener, "`name` of the node's listener of protocol metrics")
	stream := checks(a, "stream STREAM", "Whether the copies of a stream of the user's account have what they should", func(cmd *cobra.Command, args []string) (check.Result, error) {
		return messages.WithStreams(cmd, a, "checking a stream", func(ctx context.Context, js jetstream.JetStream) (r check.Result, err error) {
			s, err := js.Stream(ctx, args[0])
			if err != nil {
				return r, err
			}
			info, copies := s.CachedInfo(), []check.Copy{}
			if info.Cluster == nil {
				return check.Stream(args[0], "", info.State.Msgs, 1, nil, 0, 0), nil
			}
			for _, c := range info.Cluster.Replicas {
				copies = append(copies, check.Copy{Node: c.Name, Current: c.Current && !c.Offline, Lag: c.Lag})
			}
			return check.Stream(args[0], info.Cluster.Leader, info.State.Msgs, info.Config.Replicas, copies, lag.warning, lag.critical), nil
		})
	})
	stream.Flags().Float64Var(&lag.warning, "warning", 1000, "entries that a copy may lack")
	stream.Flags().Float64Var(&lag.critical, "critical", 100_000, "entries that a copy may lack")
	consumer := checks(a, "consumer STREAM CONSUMER", "Whether too much waits for a consumer of the user's account", func(cmd *cobra.Command, args []string) (check.Result, error) {
		return messages.WithStreams(cmd, a, "checking a consumer", func(ctx context.Context, js jetstream.JetStream) (r check.Result, err error) {
			c, err := js.Consumer(ctx, args[0], args[1])
			if err != nil {
				return r, err
			}
			info := c.CachedInfo()
			return check.Consumer(args[0], args[1], info.NumPending, uint64(info.NumAckPending), pending.warning, pending.critical), nil
		})
	})
	consumer.Flags().Float64Var(&pending.warning, "warning", 10_000, "messages that may wait")
	consumer.Flags().Float64Var(&pending.critical, "critical", 1_000_000, "messages that may wait")
	certificate := checks(a, "certificate", "Whether the certificates of nodes, and of --account, end soon", func(cmd *cobra.Command, _ []string) (r check.Result, err error) {
		var all []check.Expiry
		if a.Account == "" {
			s, err := nodes.Status(a, cmd, "asking for the status")
			return check.Certificates(check.Nodes(s), time.Now(), cmp.Or(ends.warning, 4*time.Hour), cmp.Or(ends.critical, time.Hour)), err
		}
		s, err := rollouts(a, cmd)
		for _, c := range s.Certificates {
			if !c.NotAfter.IsZero() {
				all = append(all, check.Expiry{Name: certName(c), NotAfter: c.NotAfter})
			}
		}
		return check.Certificates(all, time.Now(), cmp.Or(ends.warning, 240*time.Hour), cmp.Or(ends.critical, 72*time.Hour)), err
	})
	certificate.Flags().DurationVar(&ends.warning, "warning", 0, "how long each has to hold yet (default: 240h, and 4h those of nodes, which live for a day)")
	certificate.Flags().DurationVar(&ends.critical, "critical", 0, "how long each has to hold yet (default: 72h, and 1h those of nodes)")
	source := checks(a, "source [ACCOUNT/NAME]", "Whether sources of changes run, and how far they are behind", ofFleet(func(s admin.Status, args []string) check.Result {
		return check.Sources(s.Sources, append(args, "")[0], behind.warning, behind.critical)
	}))
	source.Flags().DurationVar(&behind.warning, "warning", 10*time.Second, "how long after its commit a change may be told")
	source.Flags().DurationVar(&behind.critical, "critical", time.Minute, "how long after its commit a change may be told")
	cmd := command.Noun("check", "Checks for Nagios and probes: one line, what was measured, and exit code 0 ok, 1 warning, 2 critical, 3 unknown",
		health, stream, consumer, certificate, source,
		checks(a, "cluster", "Whether a quorum of the nodes answers", ofFleet(func(s admin.Status, _ []string) check.Result { return check.Cluster(s) })),
		checks(a, "node [NODE]", "Whether a node answers, and reaches the others (default: the one that is asked)", ofFleet(func(s admin.Status, args []string) check.Result {
			return check.Node(s, append(args, "")[0])
		})),
		checks(a, "target", "Whether the targets of an account serve the certificates that they should", func(cmd *cobra.Command, _ []string) (check.Result, error) {
			s, err := rollouts(a, cmd)
			var all []check.Rollout
			for _, c := range s.Certificates {
				all = append(all, check.Rollout{Name: certName(c), Current: c.Current, Pending: c.Pending, Failed: c.Failed, Away: c.Away, Details: c.Details})
			}
			return check.Targets(all), err
		}))
	return certificates.OnManagers(a, cmd)
}

func certName(c certmanager.CertificateStatus) string {
	return strings.Join(append(c.Names, c.ID)[:1], "")
}

// rollouts asks the managers of the account's certificates.
func rollouts(a *command.App, cmd *cobra.Command) (certmanager.Status, error) {
	return certificates.Manage(cmd, a, "looking at certificates", func(ctx context.Context, c *certmanager.Client) (certmanager.Status, error) {
		return c.Status(ctx, certmanager.StatusRequest{})
	})
}

// checks makes a verb of check. What goes wrong while it looks is its result too: that
// nobody answers is critical, and anything else is unknown.
func checks(a *command.App, use, short string, do func(*cobra.Command, []string) (check.Result, error)) *cobra.Command {
	words := strings.Fields(use)
	return a.Output(&cobra.Command{
		Use: use, Args: command.Takes(words[1:]...), Annotations: command.Reads(), Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := do(cmd, args)
			if err != nil {
				f := command.Explain(cmd.Context(), err)
				r = check.Result{Name: words[0], State: check.Unknown, Text: f.Text, Lines: []string{}, Perf: []check.Perf{}}
				if f.Code == command.ExitUnavailable {
					r.State = check.Critical
				}
			}
			if err := a.Show(command.Report{Value: r, Text: func(p *command.Page) {
				for line := range strings.SplitSeq(r.String(), "\n") {
					p.Line("%s", line)
				}
			}}); err != nil || r.State == check.OK {
				return err
			}
			return &command.Failure{Code: command.ExitCode(r.State)} // it is said
		},
	})
}
