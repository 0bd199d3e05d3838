package health

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/diagnose"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newDoctorCommand(a *command.App) *cobra.Command {
	var offline, strict, all bool
	cmd := &cobra.Command{
		Use: "doctor", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Say what is wrong with the fleet and this machine, and what to do",
		Long: `Look at this machine, and ask every node about its own and how it reaches the
others; then say, by groups, what is wrong, what was measured, and what to do.
What another finding explains stands below it. What nobody answered is unknown.

The exit code is 1 if there is a failure; with --strict a warning suffices.
fleetbus explain CODE says more of a finding.`,
		Example: `  fleetbus doctor
  fleetbus doctor --offline
  fleetbus doctor -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			results := examine(cmd, a, offline)
			if err := a.Show(command.Report{Value: results, Text: func(p *command.Page) { resultsPage(p, results, all) }}); err != nil {
				return err
			}
			n, noun := doctor.Count(results, doctor.Fail), "failure"
			if strict {
				n, noun = n+doctor.Count(results, doctor.Warn), "finding"
			}
			if n > 0 {
				return command.Fail(command.ExitFailed, "", "checking the fleet: %s to mend", human.Count(n, noun))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "look at this machine only")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 on a warning too")
	cmd.Flags().BoolVar(&all, "all", false, "list what is well too, with what was measured")
	return a.OnFleet(a.Output(cmd))
}

// examine looks at everything, and folds what it found.
func examine(cmd *cobra.Command, a *command.App, offline bool) []doctor.Result {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	var found []doctor.Result
	var exams []admin.Examination
	if !offline {
		facts, err := command.Administer(cmd, a, "asking the fleet", func(ctx context.Context, c *admin.Client) (diagnose.Facts, error) {
			f := diagnose.Gather(ctx, c)
			return f, f.StatusErr
		})
		if err != nil {
			facts.StatusErr = err
			f := command.Explain(cmd.Context(), err)
			found = append(found, doctor.Result{Group: "cluster", Check: "nodes", State: doctor.Fail, Code: "FLEET-UNREACHABLE", Subject: "fleet", Evidence: f.Text, Fix: f.Fix})
		}
		found = append(found, diagnose.Judge(facts)...)
		exams = facts.Exams
	}
	if dir, err := a.DataDir(); err == nil {
		h := lookHere(a, dir)
		found = append(found, h.settings()...)
		// A node that answered has looked at its machine itself.
		examined := h.running.Node != "" && slices.ContainsFunc(exams, func(e admin.Examination) bool { return e.Node == h.running.Node })
		if !examined && (offline || h.node()) {
			found = append(found, h.machine(ctx)...)
		}
	}
	found = doctor.Fold(found)
	doctor.SortResults(found, explain.Groups())
	return found
}

// glyph is the sign of a state.
func glyph(s doctor.State) string {
	switch s {
	case doctor.OK:
		return "✓"
	case doctor.Warn:
		return "!"
	case doctor.Fail:
		return "✗"
	case doctor.Unknown:
		return "?"
	}
	return "-"
}

// resultsPage lays results out by groups. What is well is counted, unless all is wanted.
func resultsPage(p *command.Page, results []doctor.Result, all bool) {
	for _, group := range explain.Groups() {
		mine := slices.DeleteFunc(slices.Clone(results), func(r doctor.Result) bool { return r.Group != group })
		if len(mine) == 0 {
			continue
		}
		worst := doctor.Worst(mine)
		if worst == doctor.Skipped && doctor.Count(mine, doctor.OK) > 0 {
			worst = doctor.OK
		}
		p.Line("%s %-12s  %-7s  %s", glyph(worst), group, worst, counted(mine))
		for _, r := range mine {
			// Of what is well, what has a code is worth knowing.
			if all || r.State != doctor.Skipped && (r.State != doctor.OK || r.Code != "") {
				resultLines(p, r, "  ")
			}
		}
	}
	p.Line("")
	p.Line("%s", counted(results))
	var failed []string
	for _, r := range results {
		if doctor.Count([]doctor.Result{r}, doctor.Fail) > 0 {
			failed = append(failed, r.Code+" "+r.Subject)
		}
	}
	if len(failed) > 0 {
		p.Line("mend first: %s", strings.Join(failed[:min(len(failed), 5)], "; "))
	}
	if doctor.Count(results, doctor.Fail)+doctor.Count(results, doctor.Warn) > 0 {
		p.Line("fleetbus explain CODE says more of a finding")
	}
}

func resultLines(p *command.Page, r doctor.Result, indent string) {
	p.Line("%s%s %s: %s: %s (%s)", indent, glyph(r.State), r.State, r.Subject, r.Evidence, cmp.Or(r.Code, r.Check))
	if r.Fix != "" && r.State != doctor.Unknown {
		p.Line("%s  fix: %s", indent, r.Fix)
	}
	if len(r.Explains) > 0 {
		p.Line("%s  it explains:", indent)
		for _, e := range r.Explains {
			resultLines(p, e, indent+"    ")
		}
	}
}

// counted says how many results there are of each state.
func counted(results []doctor.Result) string {
	var parts []string
	for _, s := range []struct {
		state doctor.State
		word  string
	}{{doctor.Fail, "failure"}, {doctor.Warn, "warning"}} {
		if n := doctor.Count(results, s.state); n > 0 {
			parts = append(parts, human.Count(n, s.word))
		}
	}
	for _, s := range []doctor.State{doctor.Unknown, doctor.Skipped, doctor.OK} {
		if n := doctor.Count(results, s); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(parts, ", ")
}

// newExplainCommand makes the command that says more of a code.
func newExplainCommand(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "explain [CODE]", Args: command.Takes("[CODE]"), Annotations: command.Reads(),
		Short:   "Explain the code of a finding, or list all codes",
		Example: "  fleetbus explain CLOCK-SKEW",
		ValidArgsFunction: func(*cobra.Command, []string, string) (codes []string, _ cobra.ShellCompDirective) {
			for _, c := range explain.All() {
				codes = append(codes, c.Code)
			}
			return codes, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.Show(command.List(explain.All(),
					command.Col("CODE", func(c explain.Code) string { return c.Code }),
					command.Col("GROUP", func(c explain.Code) string { return c.Group }),
					command.Col("CHECK", func(c explain.Code) string { return c.Check }),
					command.Col("MEANS", func(c explain.Code) string { return c.Means })))
			}
			c, ok := explain.Of(args[0])
			if !ok {
				fix := "fleetbus explain"
				if near := explain.Nearest(args[0]); len(near) > 0 {
					fix += " " + strings.Join(near, ", or fleetbus explain ")
				}
				return command.Fail(command.ExitNotFound, fix, "explaining %q: there is no such code", args[0])
			}
			return a.Show(command.Report{Value: c, Text: func(p *command.Page) {
				p.Line("%s, in group %s", c.Code, c.Group)
				p.Line("")
				command.Fields(p, []command.Field{{"it means", c.Means}, {"it matters", c.Matters}, {"measured", c.Measured}, {"to mend it", c.Fix}})
			}})
		},
	})
}
