package fleetbus

import (
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/broker"
)

// remotes are this node's links to sites and to other clusters.
func (s *Server) remotes() []admin.Remote {
	all := []admin.Remote{}
	for _, l := range s.broker.Links() {
		if l.Kind == broker.RouteLink {
			continue
		}
		account, _ := s.fleet.accountName(l.Account)
		all = append(all, admin.Remote{Kind: admin.EventKind(l.Kind), Name: l.Name, Account: account, RoundTrip: l.RoundTrip})
	}
	return all
}

// otherNodes names the fleet's nodes but this one.
func (s *Server) otherNodes() []string {
	var names []string
	for _, n := range s.fleet.directory.Nodes() {
		if n.Name != s.fleet.node {
			names = append(names, n.Name)
		}
	}
	return names
}
