package fleetbus

import (
	"context"
	"time"

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
		all = append(all, admin.Remote{Kind: admin.EventKind(l.Kind), Name: l.Name, Account: account, RoundTrip: l.RoundTrip, Bytes: l.Bytes})
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

// nodeLinks are this node's views of the others.
func (s *Server) nodeLinks() []admin.Link {
	all := s.links.List(s.otherNodes())
	for _, l := range s.broker.Links() {
		for i := range all {
			if name := s.nodeNames([]string{l.Name})[0]; l.Kind == broker.RouteLink && name == all[i].Node {
				all[i].Bytes += l.Bytes
			}
		}
	}
	return all
}

// listLinks tells how the nodes see their links, without asking any.
func (s *Server) listLinks(context.Context, struct{}) (any, error) {
	return admin.LinkViews{Node: s.fleet.node, Views: s.links.Views(s.fleet.node, s.otherNodes(), time.Now())}, nil
}

// answered reports whether all have answered who can: those that are left are not heard
// any more.
func (s *Server) answered(left map[string]bool) bool {
	for name := range left {
		if !s.links.Lost(name) {
			return false
		}
	}
	return true
}
