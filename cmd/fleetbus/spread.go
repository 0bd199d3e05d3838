package main

import (
	"fmt"
	"strings"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/human"
)

// nodes says on how many nodes a change has acted.
func nodes(s admin.Spread) string {
	return fmt.Sprintf("%d of %d nodes", len(s.Nodes), len(s.Nodes)+len(s.Missing))
}

// showSpread prints what has been done and on how many nodes. value is s, or
// holds it; said is the sentence up to "on 3 of 3 nodes".
func (a *app) showSpread(value any, s admin.Spread, said string) error {
	err := a.show(report{value: value, text: func(p *page) {
		same := ""
		if !s.Changed {
			same = ", nothing changed"
		}
		p.line("%s on %s (%s%s)", said, nodes(s), human.Duration(s.Took), same)
	}})
	if err != nil {
		return err
	}
	return missing(s)
}

// missing is the failure of a change that has not acted everywhere.
func missing(s admin.Spread) error {
	if len(s.Missing) == 0 {
		return nil
	}
	return fail(exitPartial, "fleetbus status; a node that comes back catches up by itself",
		"reaching every node: no answer from %s", strings.Join(s.Missing, ", "))
}
