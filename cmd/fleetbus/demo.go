package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/human"
)

// demoStepTimeout bounds one step of the demonstration. A step that holds takes
// ten seconds at most, an election among them.
const demoStepTimeout = time.Minute

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
	a.fleet.timeout = demoStepTimeout
	d, err := newDemo(ctx, a)
	if err != nil {
		return err
	}
	defer d.close()
	began := time.Now()
	result := a.tryAll(d.ctx, d.steps())
	result.Took = time.Since(began).Seconds()
	// A failure of the fleet ends d.ctx too, and is no interrupt.
	if ctx.Err() != nil {
		return fmt.Errorf("running the demonstration: %w", ctx.Err())
	}
	if err := a.show(report{value: result, text: result.conclude(keep)}); err != nil {
		return err
	}
	if keep {
		a.showDemo(d)
		<-ctx.Done()
	}
	return result.failure()
}

// A demoStep is one promise and the attempt to break it.
type demoStep struct {
	name string
	// waiting says what a long step waits for.
	waiting string
	// vital steps are those without which the rest cannot be tried.
	vital bool
	try   func(context.Context) (finding demoFinding, err error)
}

// A demoFinding is what a step that held has measured.
type demoFinding struct {
	detail string
	// took is what was measured, if that is not the whole step.
	took time.Duration
}

// demoResult is the outcome of all steps.
type demoResult struct {
	Held  bool             `json:"held"`
	Took  float64          `json:"took_seconds"`
	Steps []demoStepResult `json:"steps"`
}

// demoStepResult is the outcome of one step.
type demoStepResult struct {
	Name string `json:"name"`
	Held bool   `json:"held"`
	// Took is what was measured.
	Took float64 `json:"took_seconds"`
	// Detail says what else was measured, or why the step did not hold.
	Detail string `json:"detail"`
}

// held counts the steps that held.
func (r demoResult) held() (n int) {
	for _, s := range r.Steps {
		if s.Held {
			n++
		}
	}
	return n
}

// failure is what the command ends with: nil if every step held.
func (r demoResult) failure() error {
	if r.Held {
		return nil
	}
	return fail(exitFailed, selfCommand()+" demo --keep leaves the nodes and their logs for a look",
		"running the demonstration: %d of %s did not hold", len(r.Steps)-r.held(), human.Count(len(r.Steps), "step"))
}

// conclude writes the last line of the text.
func (r demoResult) conclude(keep bool) func(p *page) {
	return func(p *page) {
		next := "   keep it running: " + selfCommand() + " demo --keep"
		if keep {
			next = ""
		}
		p.line("%d of %d held in %s.%s", r.held(), len(r.Steps), human.Duration(seconds(r.Took)), next)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// tryAll tries one step after the other and, for people, prints each when it is
// done.
func (a *app) tryAll(ctx context.Context, steps []demoStep) demoResult {
	result := demoResult{Held: true}
	missing := ""
	for _, s := range steps {
		r := demoStepResult{Name: s.name, Detail: "not tried: it needs " + missing}
		if missing == "" {
			r = a.try(ctx, s)
		}
		if !r.Held && s.vital {
			missing = s.name
		}
		if errors.Is(context.Cause(ctx), context.Canceled) {
			break // interrupted
		}
		result.Held = result.Held && r.Held
		result.Steps = append(result.Steps, r)
		if a.format == formatTable {
			r.line(&page{a.stdout})
		}
	}
	return result
}

// line is a step for people.
func (r demoStepResult) line(p *page) {
	mark := "ok"
	if !r.Held {
		mark = "FAIL"
	}
	p.line("  %-4s %-47s %7s   %s", mark, r.Name, human.Duration(seconds(r.Took)), r.Detail)
}

// try tries one step.
func (a *app) try(ctx context.Context, s demoStep) demoStepResult {
	ctx, cancel := context.WithTimeoutCause(ctx, demoStepTimeout, fmt.Errorf("it took more than %v", demoStepTimeout))
	defer cancel()
	stop := a.progress(s.waiting)
	began := time.Now()
	found, err := s.try(ctx)
	if found.took == 0 {
		found.took = time.Since(began)
	}
	stop()
	if err != nil {
		// A library may know only that its context is done.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		found.detail = err.Error()
	}
	return demoStepResult{Name: s.name, Held: err == nil, Took: found.took.Seconds(), Detail: found.detail}
}

// showDemo says how to use the fleet of the demonstration. Where the data on
// stdout is for programs, it goes to stderr.
func (a *app) showDemo(d *demo) {
	p := &page{a.stdout}
	if a.format != formatTable {
		p = &page{a.stderr}
	}
	p.line("")
	if d.eve == "" || d.ctx.Err() != nil {
		p.line("the fleet is not running; its logs are in %s until you interrupt this", d.dir)
		return
	}
	n1, n3 := d.nodes[0], d.nodes[2]
	client := func(n *demoNode) string {
		return fmt.Sprintf("nats --server tls://%s --creds %s --tlsca %s", n.clients, d.clerk, d.founded.CA)
	}
	p.line("the fleet runs in %s until you interrupt it:", d.dir)
	table(p, d.nodes,
		column[*demoNode]{"NODE", func(n *demoNode) string { return n.name }},
		column[*demoNode]{"CLIENTS", func(n *demoNode) string { return n.clients }},
		column[*demoNode]{"CLUSTER", func(n *demoNode) string { return n.cluster }},
		column[*demoNode]{"LOG", func(n *demoNode) string { return n.log() }},
	)
	p.line("")
	fields(p, []field{
		{"authority's certificate", d.founded.CA},
		{"credentials in account " + demoAccount, d.clerk},
		{"credentials in account " + demoOtherAccount, d.eve},
		{"administrator's credentials", d.founded.AdminCreds},
	})
	p.line("")
	p.line("listen on node %s, and publish on node %s:", n3.name, n1.name)
	p.line("  %s sub '>'", client(n3))
	p.line("  %s pub greeting hello", client(n1))
	p.line("see a node's certificate, and a stranger refused by the cluster:")
	p.line("  openssl s_client -connect %s </dev/null", n1.cluster)
	if d.lb != nil && d.lb.process != nil {
		p.line("see the load balancer serving the certificate that was issued:")
		p.line("  curl --insecure --verbose --connect-to %s:443:%s https://%s/", demoName, d.lb.serve, demoName)
	}
	p.line("ask the fleet:")
	p.line("  FLEETBUS_DATA_DIR=%s %s status", n1.dir, selfCommand())
}

// selfCommand is what to type to run this program again.
func selfCommand() string {
	if self, err := os.Executable(); err == nil && strings.Contains(self, "go-build") {
		return "go run ./cmd/fleetbus"
	}
	return "fleetbus"
}
