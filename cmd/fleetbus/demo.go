package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/demo"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newDemoCommand(a *app) *cobra.Command {
	keep := false
	cmd := &cobra.Command{
		Use: "demo", Args: takes(), Annotations: reads(),
		Short: "Show on this machine that the bus holds what it promises",
		Long: `Make a throwaway fleet of three nodes on loopback, in a temporary directory, and
try what the bus promises on it: who hears what, who is refused, what survives
a node that is killed. Every time is measured. Two of the nodes are processes,
and the third is embedded in the command as it would be in your own server.

Nothing is left behind. The exit code is 0 only if every step held.`,
		Example: `  fleetbus demo
  fleetbus demo --keep`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demonstrate(cmd.Context(), keep) },
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until it is interrupted, and say how to use it")
	return a.output(cmd)
}

// demonstrate runs the demonstration from the first node to the last file.
func (a *app) demonstrate(ctx context.Context, keep bool) error {
	a.fleet.timeout = demo.StepTimeout
	d, err := demo.New(ctx, demo.Options{
		Env: a.env, SourceTypes: sourceTypes(), CertManager: openCertManager,
		Connect: func(ctx context.Context, addr, creds, ca string, more ...nats.Option) (*nats.Conn, error) {
			return a.connect(ctx, endpoint{servers: []string{"tls://" + addr}, creds: creds, ca: ca}, more...)
		},
		Wait: a.progress, Tried: a.showStep,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := d.Close(); err != nil {
			a.hint("warning: %v", err)
		}
	}()
	result := d.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("running the demonstration: %w", ctx.Err())
	}
	if err := a.show(report{value: result, text: conclude(result, keep)}); err != nil {
		return err
	}
	if keep {
		a.showAccess(d.Access())
		<-ctx.Done()
	}
	return brokenPromises(result)
}

// brokenPromises is what the command ends with: nil if every step held.
func brokenPromises(r demo.Result) error {
	if r.Held {
		return nil
	}
	return fail(exitFailed, selfCommand()+" demo --keep leaves the nodes and their logs for a look",
		"running the demonstration: %d of %s did not hold", len(r.Steps)-r.HeldSteps(), human.Count(len(r.Steps), "step"))
}

// showStep prints a step when it is done, for people.
func (a *app) showStep(r demo.StepResult) {
	if a.format != formatTable {
		return
	}
	mark := "ok"
	if !r.Held {
		mark = "FAIL"
	}
	p := &page{a.stdout}
	p.line("  %-4s %-47s %7s   %s", mark, r.Name, human.Duration(seconds(r.Took)), r.Detail)
}

// conclude writes the last line of the text.
func conclude(r demo.Result, keep bool) func(p *page) {
	return func(p *page) {
		next := "   keep it running: " + selfCommand() + " demo --keep"
		if keep {
			next = ""
		}
		p.line("%d of %d held in %s.%s", r.HeldSteps(), len(r.Steps), human.Duration(seconds(r.Took)), next)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// showAccess says how to use the fleet of the demonstration. Where the data on
// stdout is for programs, it goes to stderr.
func (a *app) showAccess(to demo.Access) {
	p := &page{a.stdout}
	if a.format != formatTable {
		p = &page{a.stderr}
	}
	p.line("")
	if !to.Running {
		p.line("the fleet is not running; its logs are in %s until you interrupt this", to.Dir)
		return
	}
	n1, n3 := to.Nodes[0], to.Nodes[2]
	client := func(n *demo.Node) string {
		return fmt.Sprintf("nats --server tls://%s --creds %s --tlsca %s", n.Clients, to.Users[0].Creds, to.CA)
	}
	p.line("the fleet runs in %s until you interrupt it:", to.Dir)
	table(p, to.Nodes,
		column[*demo.Node]{"NODE", func(n *demo.Node) string { return n.Name }},
		column[*demo.Node]{"CLIENTS", func(n *demo.Node) string { return n.Clients }},
		column[*demo.Node]{"CLUSTER", func(n *demo.Node) string { return n.Cluster }},
		column[*demo.Node]{"LOG", func(n *demo.Node) string { return n.Log() }},
	)
	p.line("")
	files := []field{{"authority's certificate", to.CA}}
	for _, u := range to.Users {
		files = append(files, field{"credentials in account " + u.Account, u.Creds})
	}
	fields(p, append(files, field{"administrator's credentials", to.AdminCreds}))
	p.line("")
	p.line("listen on node %s, and publish on node %s:", n3.Name, n1.Name)
	p.line("  %s sub '>'", client(n3))
	p.line("  %s pub greeting hello", client(n1))
	p.line("see a node's certificate, and a stranger refused by the cluster:")
	p.line("  openssl s_client -connect %s </dev/null", n1.Cluster)
	if to.Served != "" {
		p.line("see the load balancer serving the certificate that was issued:")
		p.line("  curl --insecure --verbose --connect-to %s:443:%s https://%s/", to.Site, to.Served, to.Site)
	}
	p.line("ask the fleet:")
	p.line("  FLEETBUS_DATA_DIR=%s %s status", n1.Dir, selfCommand())
}

// selfCommand is what to type to run this program again.
func selfCommand() string {
	if self, err := os.Executable(); err == nil && strings.Contains(self, "go-build") {
		return "go run ./cmd/fleetbus"
	}
	return "fleetbus"
}
