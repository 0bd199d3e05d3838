//go:build !lean

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/certificates"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/console"
	"github.com/fleetbus/fleetbus/internal/demo"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newDemoCommand(a *command.App) *cobra.Command {
	keep := false
	cmd := &cobra.Command{
		Use: "demo", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show on this machine that the bus holds what it promises",
		Long: `Make a throwaway fleet of three nodes on loopback, in a temporary directory, and
try what the bus promises on it: who hears what, who is refused, what survives
a node that is killed. Every time is measured. Two of the nodes are processes,
and the third is embedded in the command as it would be in your own server.

Nothing is left behind. The exit code is 0 only if every step held.`,
		Example: `  fleetbus demo
  fleetbus demo --keep`,
		RunE: func(cmd *cobra.Command, _ []string) error { return demonstrate(cmd.Context(), a, keep) },
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until it is interrupted, and say how to use it")
	return a.Output(cmd)
}

// demonstrate runs the demonstration from the first node to the last file.
func demonstrate(ctx context.Context, a *command.App, keep bool) error {
	a.Fleet.Timeout = demo.StepTimeout
	d, err := demo.New(ctx, demo.Options{
		Env: a.Env, SourceTypes: boot.SourceTypes(), CertManager: certificates.OpenManager, Console: &console.Protocol{},
		Connect: func(ctx context.Context, addr, creds, ca string, more ...nats.Option) (*nats.Conn, error) {
			return a.Connect(ctx, command.Endpoint{Servers: []string{"tls://" + addr}, Creds: creds, CA: ca}, more...)
		},
		Wait: a.Progress, Tried: func(r demo.StepResult) { showStep(a, r) },
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := d.Close(); err != nil {
			a.Hint("warning: %v", err)
		}
	}()
	result := d.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("running the demonstration: %w", ctx.Err())
	}
	if err := a.Show(command.Report{Value: result, Text: conclude(result, keep)}); err != nil {
		return err
	}
	if keep {
		showAccess(a, d.Access())
		<-ctx.Done()
	}
	return brokenPromises(result)
}

// brokenPromises is what the command ends with: nil if every step held.
func brokenPromises(r demo.Result) error {
	if r.Held {
		return nil
	}
	return command.Fail(command.ExitFailed, selfCommand()+" demo --keep leaves the nodes and their logs for a look",
		"running the demonstration: %d of %s did not hold", len(r.Steps)-r.HeldSteps(), human.Count(len(r.Steps), "step"))
}

// showStep prints a step when it is done, for people.
func showStep(a *command.App, r demo.StepResult) {
	if a.Format != command.FormatTable {
		return
	}
	mark := "ok"
	if !r.Held {
		mark = "FAIL"
	}
	p := command.NewPage(a.Stdout)
	p.Line("  %-4s %-47s %7s   %s", mark, r.Name, human.Duration(seconds(r.Took)), r.Detail)
}

// conclude writes the last line of the text.
func conclude(r demo.Result, keep bool) func(p *command.Page) {
	return func(p *command.Page) {
		next := "   keep it running: " + selfCommand() + " demo --keep"
		if keep {
			next = ""
		}
		p.Line("%d of %d held in %s.%s", r.HeldSteps(), len(r.Steps), human.Duration(seconds(r.Took)), next)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// showAccess says how to use the fleet of the demonstration. Where the data on
// stdout is for programs, it goes to stderr.
func showAccess(a *command.App, to demo.Access) {
	p := command.NewPage(a.Stdout)
	if a.Format != command.FormatTable {
		p = command.NewPage(a.Stderr)
	}
	p.Line("")
	if !to.Running {
		p.Line("the fleet is not running; its logs are in %s until you interrupt this", to.Dir)
		return
	}
	n1, n3 := to.Nodes[0], to.Nodes[2]
	client := func(n *demo.Node) string {
		return fmt.Sprintf("nats --server tls://%s --creds %s --tlsca %s", n.Clients, to.Users[0].Creds, to.CA)
	}
	p.Line("the fleet runs in %s until you interrupt it:", to.Dir)
	command.Table(p, to.Nodes,
		command.Col("NODE", func(n *demo.Node) string { return n.Name }),
		command.Col("CLIENTS", func(n *demo.Node) string { return n.Clients }),
		command.Col("CLUSTER", func(n *demo.Node) string { return n.Cluster }),
		command.Col("LOG", func(n *demo.Node) string { return n.Log() }),
	)
	p.Line("")
	files := []command.Field{{"authority's certificate", to.CA}}
	for _, u := range to.Users {
		files = append(files, command.Field{"credentials in account " + u.Account, u.Creds})
	}
	command.Fields(p, append(files, command.Field{"administrator's credentials", to.AdminCreds}))
	p.Line("")
	p.Line("listen on node %s, and publish on node %s:", n3.Name, n1.Name)
	p.Line("  %s sub '>'", client(n3))
	p.Line("  %s pub greeting hello", client(n1))
	p.Line("see a node's certificate, and a stranger refused by the cluster:")
	p.Line("  openssl s_client -connect %s </dev/null", n1.Cluster)
	if to.Served != "" {
		p.Line("see the load balancer serving the certificate that was issued:")
		p.Line("  curl --insecure --verbose --connect-to %s:443:%s https://%s/", to.Site, to.Served, to.Site)
	}
	if to.Console != "" {
		p.Line("see the fleet live, in a browser, which asks whether you trust this fleet's own authority; the link is good once, for ten minutes:")
		p.Line("  %s", to.Console)
		p.Line("another link:")
		p.Line("  FLEETBUS_DATA_DIR=%s %s console login", to.ConsoleNode.Dir, selfCommand())
	}
	p.Line("ask the fleet:")
	p.Line("  FLEETBUS_DATA_DIR=%s %s status", n1.Dir, selfCommand())
}

// selfCommand is what to type to run this program again.
func selfCommand() string {
	if self, err := os.Executable(); err == nil && strings.Contains(self, "go-build") {
		return "go run ./cmd/fleetbus"
	}
	return "fleetbus"
}
