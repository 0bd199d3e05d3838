package messages

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

// published is the result of pub.
type published struct {
	Subject string `json:"subject"`
	Count   int    `json:"count"`
	// Stream and Sequence of the last message, if a stream keeps it.
	Stream   string `json:"stream,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
}

func newPubCommand(a *command.App) *cobra.Command {
	var (
		n       int
		headers []string
		stored  bool
	)
	cmd := &cobra.Command{
		Use: "pub SUBJECT [DATA|-]", Args: command.Takes("SUBJECT", "[DATA|-]"), Annotations: command.Writes(),
		Short: "Publish a message",
		Example: `  fleetbus pub greeting hello --creds alice.creds
  fleetbus pub orders.new - --stream < order.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("publishing to %q", args[0])
			if n < 1 {
				return command.Fail(command.ExitUsage, "--count 1", "%s: %d messages are none", what, n)
			}
			h, err := parseHeaders(headers)
			if err != nil {
				return err
			}
			data, err := a.Payload(args[1:])
			if err != nil {
				return err
			}
			nc, err := a.AsUser(cmd.Context(), what)
			if err != nil {
				return err
			}
			defer nc.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
			defer cancel()
			done := published{Subject: args[0]}
			msg := &nats.Msg{Subject: args[0], Header: h, Data: data}
			if stored {
				err = store(ctx, nc, msg, n, &done)
			} else {
				err = publish(ctx, nc, msg, n, &done)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			return a.Show(command.Report{Value: done, Text: func(p *command.Page) {
				p.Line("published %s to %s%s", human.Count(done.Count, "message"), done.Subject, where(done))
			}})
		},
	}
	cmd.Flags().IntVar(&n, "count", 1, "publish it as often")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header of the message, as \"Name: value\"")
	cmd.Flags().BoolVar(&stored, "stream", false, "wait until a stream has stored it")
	return a.OnFleet(a.Output(cmd))
}

func where(p published) string {
	if p.Stream == "" {
		return ""
	}
	return fmt.Sprintf(", the last one is %d of stream %s", p.Sequence, p.Stream)
}

// publish sends msg n times and returns when the server has it.
func publish(ctx context.Context, nc *nats.Conn, msg *nats.Msg, n int, done *published) error {
	for ; done.Count < n; done.Count++ {
		if err := nc.PublishMsg(msg); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := nc.FlushWithContext(ctx); err != nil {
		return err
	}
	// The server tells of a refusal before it answers the flush.
	return command.Violation(nc, nil)
}

// store sends msg n times and returns when a stream has it.
func store(ctx context.Context, nc *nats.Conn, msg *nats.Msg, n int, done *published) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for ; done.Count < n; done.Count++ {
		ack, err := js.PublishMsg(ctx, msg)
		if err != nil {
			return err
		}
		done.Stream, done.Sequence = ack.Stream, ack.Sequence
	}
	return nil
}
