package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/human"
	"github.com/fleetbus/fleetbus/internal/localcheck"
)

func newDoctorCommand(a *app) *cobra.Command {
	var offline, strict bool
	cmd := &cobra.Command{
		Use: "doctor", Args: takes(), Annotations: reads(),
		Short: "Say what is wrong with the fleet and this machine, and what to do",
		Long: `Say what is wrong with the fleet and this machine, the worst first, and what to
do about it. The exit code is 1 if there is a problem.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var checkers []doctor.Checker
			if dir, err := a.dataDir(); err == nil {
				checkers = localcheck.Checkers(dir)
			}
			if !offline {
				checkers = append(checkers, doctor.CheckerFunc(func(context.Context) []doctor.Finding { return a.fleetFindings(cmd) }))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.fleet.timeout)
			defer cancel()
			findings := doctor.Run(ctx, checkers...)
			if err := a.show(report{value: findings, text: func(p *page) { findingsPage(p, findings) }}); err != nil {
				return err
			}
			worst := doctor.Problem
			if strict {
				worst = doctor.Warning
			}
			n := 0
			for _, f := range findings {
				if f.Severity >= worst {
					n++
				}
			}
			if n > 0 {
				return fail(exitFailed, "", "checking the fleet: %s to mend", human.Count(n, "finding"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "look at this machine only")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 on a warning too")
	return a.onFleet(a.output(cmd))
}

// fleetFindings are what the fleet says of itself. That it cannot be asked is a
// finding too.
func (a *app) fleetFindings(cmd *cobra.Command) []doctor.Finding {
	s, err := a.status(cmd, "asking the fleet")
	if err != nil {
		f := explain(cmd.Context(), err)
		return []doctor.Finding{{Code: "FLEET-UNREACHABLE", Severity: doctor.Problem, Subject: "fleet", Text: f.text, Fix: f.fix}}
	}
	return allFindings(s)
}

func findingsPage(p *page, findings []doctor.Finding) {
	if len(findings) == 0 {
		p.line("ok: nothing found")
		return
	}
	for _, f := range findings {
		p.line("%s: %s: %s (%s)", f.Severity, f.Subject, f.Text, f.Code)
		if f.Fix != "" {
			p.line("  fix: %s", f.Fix)
		}
	}
	p.line("%s", summary(findings))
}

func summary(findings []doctor.Finding) string {
	n := map[doctor.Severity]int{}
	for _, f := range findings {
		n[f.Severity]++
	}
	return fmt.Sprintf("%s, %s, %d to know", human.Count(n[doctor.Problem], "problem"), human.Count(n[doctor.Warning], "warning"), n[doctor.Info])
}
