package fleetbus

import (
	"context"
	"errors"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/events"
)

// tellRefusal tells of somebody who was not let in, or not into p, for err.
func (s *Server) tellRefusal(c identity.Credentials, p identity.Principal, err error) {
	kind := admin.EventRefused
	if errors.Is(err, identity.ErrTooManyConnections) {
		kind = admin.EventLimit
	}
	account, name := p.Account, p.Name
	if name == "" {
		account, name = s.fleet.directory.Claimed(c, s.fleet.authority.Fleet())
	}
	ev := admin.Event{Kind: kind, Account: account, Listener: c.Listener, Address: c.Remote, Reason: operatorText(err)}
	if name != "" {
		ev.Principal = account + "/" + name
	}
	s.events.Tell(ev)
}

// tellStranger tells of somebody whom a listener did not even talk to.
func (s *Server) tellStranger(listener, remote string, err error) {
	s.events.Tell(admin.Event{Kind: admin.EventRefused, Listener: listener, Address: remote, Reason: err.Error()})
}

// watchLinks tells of links that come and go, until ctx is done.
func (s *Server) watchLinks(ctx context.Context) {
	tick := time.NewTicker(events.Told)
	defer tick.Stop()
	var known []broker.Link
	for {
		now := s.broker.Links()
		for _, ev := range events.Changed(known, now) {
			if ev.Kind == admin.EventLeaf {
				// The account of a link that went down may be gone, too.
				ev.Account, _ = s.fleet.accountName(ev.Account)
			}
			if ev.Kind == admin.EventRoute {
				ev.Peer = s.nodeNames([]string{ev.Peer})[0]
			}
			s.events.Tell(ev)
		}
		known = now
		s.meter.Led(s.broker.Leader())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
