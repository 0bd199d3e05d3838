package messages

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newSubCommand(a *command.App) *cobra.Command {
	var n int
	var stream string
	cmd := &cobra.Command{
		Use: "sub SUBJECT", Args: command.Takes("SUBJECT"), Annotations: command.Reads(),
		Short: "Show messages as they come",
		Example: `  fleetbus sub 'orders.>' --creds alice.creds
  fleetbus sub 'orders.>' --stream ORDERS --count 10 -o jsonl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("subscribing to %q", args[0])
			if n < 0 {
				return command.Fail(command.ExitUsage, "--count 1", "%s: %d messages are none", what, n)
			}
			gap := "messages that came in between were missed"
			if stream != "" {
				gap = "the stream goes on where it was"
			}
			nc, err := a.AsUser(cmd.Context(), what, a.Staying(gap)...)
			if err != nil {
				return err
			}
			defer nc.Close()
			if stream == "" {
				err = receive(cmd.Context(), a, nc, args[0], n)
			} else {
				err = replay(cmd.Context(), a, nc, stream, args[0], n)
			}
			if n == 0 && cmd.Context().Err() != nil {
				return nil // to interrupt it is the only way to end it
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&n, "count", 0, "end after as many messages (default: when interrupted)")
	cmd.Flags().StringVar(&stream, "stream", "", "begin with the messages that the `stream` of that name holds")
	return a.OnFleet(a.Output(cmd))
}

// receive shows n messages, or without end if n is 0.
func receive(ctx context.Context, a *command.App, nc *nats.Conn, subject string, n int) error {
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		return err
	}
	if err := subscribed(ctx, a, nc, subject); err != nil {
		return err
	}
	for i := 0; n == 0 || i < n; i++ {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if err := showMessage(a, newMessage(msg.Subject, msg.Reply, msg.Header, msg.Data), msg.Data, false); err != nil {
			return err
		}
	}
	return nil
}

// subscribed says so once the server knows of the subscription.
func subscribed(ctx context.Context, a *command.App, nc *nats.Conn, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	if err := nc.FlushWithContext(ctx); err != nil {
		return err
	}
	if err := command.Violation(nc, nil); err != nil {
		return err
	}
	a.Hint("subscribed to %s", subject)
	return nil
}

// replay shows n messages of a stream from its first on, or without end.
func replay(ctx context.Context, a *command.App, nc *nats.Conn, stream, subject string, n int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	setup, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	consumer, err := js.OrderedConsumer(setup, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	for i := 0; n == 0 || i < n; i++ {
		msg, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) && ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return err
		}
		m := newMessage(msg.Subject(), "", msg.Headers(), msg.Data())
		if meta, err := msg.Metadata(); err == nil {
			m.Stream, m.Sequence, m.Stored = meta.Stream, meta.Sequence.Stream, meta.Timestamp
		}
		if err := showMessage(a, m, msg.Data(), false); err != nil {
			return err
		}
	}
	return nil
}
