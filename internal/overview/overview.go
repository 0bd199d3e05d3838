// Package overview says what is wrong with a fleet as a whole, by what is known of all its
// nodes and sites. It decides, and asks nobody.
package overview

import (
	"fmt"
	"slices"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
)

// Findings are what only the whole of a fleet shows.
func Findings(status admin.Status) []doctor.Finding {
	return slices.Concat(nodes(status), sites(status.Sites))
}

func nodes(status admin.Status) (all []doctor.Finding) {
	for _, n := range status.Nodes {
		if n.State == "down" {
			all = append(all, doctor.Finding{
				Code: "NODE-DOWN", Severity: doctor.Problem, Subject: n.Name, Text: fmt.Sprintf("node %s does not answer", n.Name),
				Fix: "start it, or remove it for good: fleetbus node rm " + n.Name,
			})
		}
		if skew := n.Clock.Abs(); n.State == "up" && skew > 2*time.Second {
			all = append(all, doctor.Finding{
				Code: "CLOCK-SKEW", Severity: doctor.Warning, Subject: n.Name, Text: fmt.Sprintf("the clock of node %s is off by %v", n.Name, skew.Round(time.Second)),
				Fix: "synchronize its clock",
			})
		}
	}
	if status.Leader == "" {
		all = append(all, doctor.Finding{
			Code: "NO-QUORUM", Severity: doctor.Problem, Subject: status.Fleet, Text: "no leader: nothing durable can be written",
			Fix: "start more of the nodes; if they are lost for good: fleetbus rescue",
		})
	}
	inPlace := func(h admin.Hub) bool { return h.Links == nil } // of the mesh, and not beside it
	switch hub := len(status.Nodes) == 1 && (slices.ContainsFunc(status.Nodes[0].Hubs, inPlace) || status.Nodes[0].Uplink != nil); {
	case hub: // the others are fleets of their own
	case len(status.Nodes) == 1:
		all = append(all, doctor.Finding{
			Code: "ONE-NODE", Severity: doctor.Info, Subject: status.Fleet, Text: "one node survives no failure",
			Fix: "add two: fleetbus token add node",
		})
	case len(status.Nodes) == 2:
		all = append(all, doctor.Finding{
			Code: "TWO-NODES", Severity: doctor.Warning, Subject: status.Fleet, Text: "two voters survive no failure: when either is away nothing durable can be written",
			Fix: "add a third: fleetbus token add node",
		})
	}
	return all
}

// sites are the sites that are not linked.
func sites(all []admin.Site) (findings []doctor.Finding) {
	for _, site := range all {
		if site.State == admin.SiteAway {
			full := site.Account + "/" + site.Name
			findings = append(findings, doctor.Finding{
				Code: "SITE-AWAY", Severity: doctor.Warning, Subject: full, Text: fmt.Sprintf("site %s is not linked, and does not know of the newest denials", full),
				Fix: fmt.Sprintf("look at fleetbus status there; if it is gone for good: fleetbus leaf rm %s %s", site.Account, site.Name),
			})
		}
	}
	return findings
}
