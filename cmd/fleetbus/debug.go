package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newDebugCommand(a *command.App) *cobra.Command {
	r, seconds, out := admin.ProfileRequest{Kind: admin.ProfileCPU}, 10, ""
	cmd := &cobra.Command{
		Use: "profile NODE", Args: command.Takes("NODE"), Annotations: command.Prints(),
		Short: "Have a node take a profile of itself, for \"go tool pprof\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			const what = "taking a profile"
			if r.Node = args[0]; r.Kind == admin.ProfileCPU {
				r.Duration = time.Duration(seconds) * time.Second
			}
			p, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Profile, error) { return c.Profile(ctx, r) })
			if err == nil && out == "" && a.Terminal(a.Stdout) {
				return command.Fail(command.ExitUsage, "--out FILE", "%s: a profile is nothing to be read on a terminal", what)
			}
			switch {
			case err != nil:
				return err
			case out == "":
				return a.Print(p.Data)
			}
			return command.SecretFile{Path: out, Data: p.Data, Mode: 0o600}.Write(true)
		},
	}
	cmd.Flags().Var(&command.Choice{Value: (*string)(&r.Kind), Words: []string{"cpu", "heap", "allocs", "goroutine"}}, "kind", "what of: cpu, heap, allocs, goroutine")
	cmd.Flags().IntVar(&seconds, "seconds", seconds, "how long the processors are watched, 25 at most")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (default: standard output)")
	return a.OnFleet(command.Noun("debug", "What developers ask a node for", cmd))
}
