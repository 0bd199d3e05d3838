package command

import (
	"fmt"
	"strings"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/human"
)

// OnNodes says on how many nodes a change has acted.
func OnNodes(s admin.Spread) string {
	return fmt.Sprintf("%d of %d nodes", len(s.Nodes), len(s.Nodes)+len(s.Missing))
}

// ShowSpread prints what has been done and on how many nodes. value is s, or
// holds it; said is the sentence up to "on 3 of 3 nodes".
func (a *App) ShowSpread(value any, s admin.Spread, said string) error {
	err := a.Show(Report{Value: value, Text: func(p *Page) {
		same := ""
		if !s.Changed {
			same = ", nothing changed"
		}
		p.Line("%s on %s (%s%s)", said, OnNodes(s), human.Duration(s.Took), same)
	}})
	if err != nil {
		return err
	}
	return Missing(s)
}

// Missing is the failure of a change that has not acted everywhere.
func Missing(s admin.Spread) error {
	if len(s.Missing) == 0 {
		return nil
	}
	return Fail(ExitPartial, "fleetbus status; a node that comes back catches up by itself",
		"reaching every node: no answer from %s", strings.Join(s.Missing, ", "))
}
