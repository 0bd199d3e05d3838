package messages

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/document"
)

// errorHeader is the header of an answer that says why there is none.
const errorHeader = "Fleetbus-Error"

func newReplyCommand(a *command.App) *cobra.Command {
	var script string
	var n int
	cmd := &cobra.Command{
		Use: "reply SUBJECT [DATA|-]", Args: command.Takes("SUBJECT", "[DATA|-]"), Annotations: command.Prints(),
		Short: "Answer requests",
		Long: `Answer requests with the same data, or with what a shell command prints. The
command gets the request's data on stdin and its subject as $FLEETBUS_SUBJECT.`,
		Example: `  fleetbus reply greeting hello --creds bob.creds
  fleetbus reply time.now --command date`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("answering %q", args[0])
			if (script == "") == (len(args) == 1) {
				return command.Fail(command.ExitUsage, "fleetbus reply SUBJECT DATA", "%s: give either DATA or --command", what)
			}
			data, err := a.Payload(args[1:])
			if err != nil {
				return err
			}
			answer := func(context.Context, *nats.Msg) ([]byte, error) { return data, nil }
			if script != "" {
				answer = func(ctx context.Context, msg *nats.Msg) ([]byte, error) { return runScript(ctx, a, script, msg) }
			}
			nc, err := a.AsUser(cmd.Context(), what, a.Staying("requests that came in between were missed")...)
			if err != nil {
				return err
			}
			defer nc.Close()
			err = answerAll(cmd.Context(), a, nc, args[0], n, answer)
			if n == 0 && cmd.Context().Err() != nil {
				return nil // to interrupt it is the only way to end it
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&script, "command", "", "answer with the output of this shell `command`")
	cmd.Flags().IntVar(&n, "count", 0, "end after as many requests (default: when interrupted)")
	return a.OnFleet(cmd)
}

// answerAll answers n requests one after the other, or without end if n is 0.
func answerAll(ctx context.Context, a *command.App, nc *nats.Conn, subject string, n int, answer func(context.Context, *nats.Msg) ([]byte, error)) error {
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		return err
	}
	if err := subscribed(ctx, a, nc, subject); err != nil {
		return err
	}
	for i := 0; n == 0 || i < n; {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if msg.Reply == "" {
			continue // nobody waits
		}
		i++
		out := nats.NewMsg(msg.Reply)
		if out.Data, err = answer(ctx, msg); err != nil {
			a.Hint("answering %q: %v", msg.Subject, err)
			out.Header.Set(errorHeader, document.Escape(err.Error()))
		}
		if err := msg.RespondMsg(out); err != nil {
			return err
		}
	}
	flush, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	return nc.FlushWithContext(flush)
}

// runScript runs a command of this user's on a request. The request is only its
// input: no part of it is seen by the shell.
func runScript(ctx context.Context, a *command.App, script string, msg *nats.Msg) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Env = append(append([]string(nil), a.Env...), "FLEETBUS_SUBJECT="+msg.Subject)
	cmd.Stdin = bytes.NewReader(msg.Data)
	cmd.Stderr = a.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running the command: %w", err)
	}
	return out, nil
}
