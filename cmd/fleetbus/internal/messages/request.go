package messages

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newRequestCommand(a *command.App) *cobra.Command {
	var headers []string
	cmd := &cobra.Command{
		Use: "request SUBJECT [DATA|-]", Args: command.Takes("SUBJECT", "[DATA|-]"), Annotations: command.Reads(),
		Short:   "Send a request and show its answer",
		Example: `  fleetbus request time.now --creds alice.creds --timeout 2s`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("requesting %q", args[0])
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
			msg, err := request(cmd.Context(), a, nc, &nats.Msg{Subject: args[0], Header: h, Data: data})
			if errors.Is(err, nats.ErrNoResponders) {
				return command.Fail(command.ExitUnavailable, fmt.Sprintf("fleetbus reply %s DATA", args[0]), "%s: nobody is subscribed to it", what)
			} else if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			return showMessage(a, newMessage(msg.Subject, msg.Reply, msg.Header, msg.Data), msg.Data, true)
		},
	}
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header of the request, as \"Name: value\"")
	return a.OnFleet(a.Output(cmd))
}

func request(ctx context.Context, a *command.App, nc *nats.Conn, msg *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	defer a.Progress("waiting for an answer")()
	return nc.RequestMsgWithContext(ctx, msg)
}
