package health

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/changes"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/joining"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/nodes"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newStatusCommand(a *command.App) *cobra.Command {
	check := false
	cmd := &cobra.Command{
		Use: "status", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show the fleet at a glance: the verdict, the problems, the nodes",
		Long: `Show the fleet at a glance: the verdict, the problems, the nodes. With --check it
fails unless a quorum of nodes answers, and their hubs, if they have any, are
connected: for a probe that must not restart anything, because a bus in trouble
is not mended so.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := nodes.Status(a, cmd, "asking for the status")
			if err != nil {
				return err
			}
			if err := a.Show(command.Report{Value: s, Text: func(p *command.Page) { statusPage(p, s) }}); err != nil {
				return err
			}
			if check && s.Answered < s.Quorum {
				return command.Fail(command.ExitFailed, "start more of the nodes", "checking the fleet: %d of %d nodes answer, and %d are a quorum", s.Answered, len(s.Nodes), s.Quorum)
			}
			if check {
				return checkHubs(s.Nodes)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "fail unless a quorum of nodes answers, and their hubs are connected")
	return a.OnFleet(a.Output(cmd))
}

func statusPage(p *command.Page, s admin.Status) {
	p.Line("%s", verdict(s))
	findings := slices.DeleteFunc(allFindings(s), func(f doctor.Finding) bool { return f.Severity < doctor.Warning })
	for _, f := range findings {
		p.Line("%s: %s: %s", f.Severity, f.Subject, f.Text)
		if f.Fix != "" {
			p.Line("  fix: %s", f.Fix)
		}
	}
	p.Line("")
	command.Fields(p, []command.Field{{"fleet", s.Fleet}, {"answered by", s.Node}, {"leader", s.Leader},
		{"ledger", fmt.Sprintf("event %d", s.Sequence)},
		{"accounts", human.Int(int64(s.Accounts))}, {"users", human.Int(int64(s.Users))}})
	p.Line("")
	nodes.Table(p, s.Nodes)
	hubTable(p, s.Nodes)
	joining.SiteStatus(p, s)
	if len(s.Regions) > 0 {
		p.Line("")
		joining.RegionTable(p, s.Regions)
	}
	if len(s.Sources) > 0 {
		p.Line("")
		changes.SourceTable(p, s.Sources)
	}
}

// verdict is the state of a fleet in one line. A fleet is ok while all its nodes
// are up, agree, and none has a problem.
func verdict(s admin.Status) string {
	up, all := 0, 0
	for _, n := range s.Nodes {
		switch n.State {
		case nodes.Removed:
			continue
		case nodes.Up:
			up++
		}
		all++
	}
	problems := 0
	for _, f := range allFindings(s) {
		if f.Severity >= doctor.Problem {
			problems++
		}
	}
	word := "ok"
	if up < all || s.Leader == "" || problems > 0 {
		word = "degraded"
	}
	line := fmt.Sprintf("%s: %d of %s up", word, up, human.Count(all, "node"))
	if s.Leader == "" {
		line += ", no leader: nothing durable can change"
	} else {
		line += ", survives " + human.Count(s.Survives, "failure")
	}
	if problems > 0 {
		line += ", " + human.Count(problems, "problem")
	}
	return line
}

// allFindings are those of the fleet and of every node, each once.
func allFindings(s admin.Status) []doctor.Finding {
	all := slices.Clone(s.Findings)
	for _, n := range s.Nodes {
		for _, f := range n.Findings {
			same := func(g doctor.Finding) bool { return f.Code == g.Code && f.Subject == g.Subject && f.Text == g.Text }
			if !slices.ContainsFunc(all, same) {
				all = append(all, f)
			}
		}
	}
	return all
}
