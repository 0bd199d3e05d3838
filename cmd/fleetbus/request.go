package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

func newRequestCommand(a *app) *cobra.Command {
	var headers []string
	cmd := &cobra.Command{
		Use: "request SUBJECT [DATA|-]", Args: takes("SUBJECT", "[DATA|-]"), Annotations: reads(),
		Short:   "Send a request and show its answer",
		Example: `  fleetbus request time.now --creds alice.creds --timeout 2s`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("requesting %q", args[0])
			h, err := parseHeaders(headers)
			if err != nil {
				return err
			}
			data, err := a.payload(args[1:])
			if err != nil {
				return err
			}
			nc, err := a.asUser(cmd.Context(), what)
			if err != nil {
				return err
			}
			defer nc.Close()
			msg, err := a.request(cmd.Context(), nc, &nats.Msg{Subject: args[0], Header: h, Data: data})
			if errors.Is(err, nats.ErrNoResponders) {
				return fail(exitUnavailable, fmt.Sprintf("fleetbus reply %s DATA", args[0]), "%s: nobody is subscribed to it", what)
			} else if err != nil {
				return fmt.Errorf("%s: %w", what, violation(nc, err))
			}
			return a.showMessage(newMessage(msg.Subject, msg.Reply, msg.Header, msg.Data), msg.Data, true)
		},
	}
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header of the request, as \"Name: value\"")
	return a.onFleet(a.output(cmd))
}

func (a *app) request(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, a.fleet.timeout)
	defer cancel()
	defer a.progress("waiting for an answer")()
	return nc.RequestMsgWithContext(ctx, msg)
}
