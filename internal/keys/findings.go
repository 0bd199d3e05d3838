package keys

import (
	"fmt"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

// cutShown is how many of those who will be cut off a finding names.
const cutShown = 5

// Findings say whom the end of an old key cuts off. down are the nodes and regions that
// are.
func (r *Ring) Findings(now time.Time, down []string) (all []doctor.Finding) {
	for _, k := range r.List(now, down) {
		name, fix := k.Name, "renew what they have: fleetbus user renew ACCOUNT/NAME"
		switch k.Name {
		case RoleKey:
			name = k.Account + "/" + k.Role
		case identity.KeyRoutes:
			fix = "start it before; after it, join it anew: fleetbus join --replace"
		}
		for _, old := range k.Old {
			if len(old.Cut) == 0 {
				continue
			}
			shown := strings.Join(old.Cut[:min(len(old.Cut), cutShown)], ", ")
			if more := len(old.Cut) - cutShown; more > 0 {
				shown += fmt.Sprintf(" and %d more", more)
			}
			all = append(all, doctor.Finding{
				Code: "KEY-ENDS", Severity: doctor.Warning, Subject: name, Fix: fix,
				Text: fmt.Sprintf("the old key of %s ends at %s, and cuts off %s", name, old.Until.UTC().Format(time.RFC3339), shown),
			})
		}
	}
	return all
}

// Lacking are the keys of the fleet that this node does not have.
func (r *Ring) Lacking() (all []doctor.Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, err := range r.unknown {
		all = append(all, doctor.Finding{
			Code: "KEY-UNKNOWN", Severity: doctor.Problem, Subject: r.server, Fix: "join it anew: fleetbus join --replace",
			Text: fmt.Sprintf("node %s does not have key %s: %v", r.server, name, err),
		})
	}
	return all
}
