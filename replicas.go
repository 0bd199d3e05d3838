package fleetbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/identity"
)

const (
	// replicasCheck is how often the leader looks for streams to copy.
	replicasCheck = time.Second
	// replicasAgain is how often it looks although the nodes are the same: a stream
	// may have been made while one of them was down.
	replicasAgain = time.Minute
	// replicasWanted is how many copies a stream gets as soon as there are as many
	// nodes.
	replicasWanted = 3
	// ReplicasKey is the metadata key of a stream that says how many copies its
	// owner wants: "auto", or a number that is then left alone.
	ReplicasKey = "fleetbus.replicas"
)

// keepReplicas gives every stream three copies once there are three nodes, if it
// was made when there were fewer, or if its metadata say auto. Only the leader's
// node does it, at once when the nodes have changed.
func (s *Server) keepReplicas(ctx context.Context) {
	tick := time.NewTicker(replicasCheck)
	defer tick.Stop()
	done, looked := "", time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var names []string
		for _, m := range s.broker.Members() {
			names = append(names, m.Name)
		}
		since := s.thirdNode()
		// Copies that are begun while a node goes away may never be finished.
		if len(s.broker.Routes()) < len(names)-1 {
			continue
		}
		if !s.broker.IsLeader() || len(names) < replicasWanted || since.IsZero() {
			done = ""
			continue
		}
		slices.Sort(names)
		if now := strings.Join(names, " "); now != done || time.Since(looked) > replicasAgain {
			if err := s.copyStreams(ctx, since); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("streams could not be copied yet", "error", err)
				}
				continue
			}
			done, looked = now, time.Now()
		}
	}
}

func (s *Server) copyStreams(ctx context.Context, since time.Time) error {
	var errs []error
	for _, a := range append(s.fleet.directory.Accounts(), s.fleet.ownAccounts()...) {
		if a.Name == identity.SystemName {
			continue // it has none
		}
		err := s.inAccount(a.Name, func(js jetstream.JetStream) error {
			return s.copyStreamsOf(ctx, js, a, since)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("copying the streams of account %q: %w", a.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) copyStreamsOf(ctx context.Context, js jetstream.JetStream, a identity.Account, since time.Time) error {
	list := js.ListStreams(ctx)
	for info := range list.Info() {
		wish := info.Config.Metadata[ReplicasKey]
		auto := wish == "auto" || wish == "" && info.Created.Before(since)
		if !auto || info.Config.Replicas >= replicasWanted {
			continue
		}
		config := info.Config
		config.Replicas = replicasWanted
		if _, err := js.UpdateStream(ctx, config); err != nil {
			return fmt.Errorf("copying stream %q: %w", config.Name, err)
		}
		s.log.Info("stream is copied to three nodes", "account", a.Name, "stream", config.Name)
	}
	return list.Err()
}

// thirdNode is a moment after the fleet came to have three nodes; zero before.
func (s *Server) thirdNode() time.Time {
	nodes := s.fleet.directory.Nodes()
	if len(nodes) < replicasWanted {
		return time.Time{}
	}
	joined := make([]time.Time, len(nodes))
	for i, n := range nodes {
		joined[i] = n.Joined
	}
	slices.SortFunc(joined, time.Time.Compare)
	return joined[replicasWanted-1].Add(time.Minute)
}
