package fleetbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
)

// A Service is an ordinary client of the bus that happens to run inside the
// server. Run returns when ctx is done; when it returns an error before that, it
// is logged, is a finding, and Run is called again with backoff.
type Service interface {
	Run(ctx context.Context, nc *nats.Conn) error
}

// A Linker is a Service that links an account of this node to other nodes, by way of
// a central broker. A server in Hub mode has one for each account that is linked.
type Linker interface {
	Service
	doctor.Checker
	// Hub is how the link stands.
	Hub() admin.Hub
}

// hubs are how the links of this node stand: those in place of the mesh, and those beside it.
func (s *Server) hubs() []admin.Hub {
	all := []admin.Hub{}
	for _, b := range s.opts.Services {
		switch l := b.Service.(type) {
		case Linker:
			all = append(all, l.Hub())
		case interface{ Beside() admin.Hub }:
			all = append(all, l.Beside())
		}
	}
	return all
}

const (
	serviceBackoff    = 100 * time.Millisecond
	serviceBackoffMax = 30 * time.Second
)

// runService keeps a service running until ctx is done.
func (s *Server) runService(ctx context.Context, b ServiceBinding) {
	wait := serviceBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := s.runServiceOnce(ctx, b, wait)
		if ctx.Err() != nil {
			return
		}
		s.failures.set(b.Name, err)
		s.log.Error("service failed", "service", b.Name, "error", err)
		if time.Since(began) > serviceBackoffMax {
			wait = serviceBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, serviceBackoffMax)
	}
}

// runServiceOnce runs a service, which has recovered from an earlier failure when
// it lives longer than the pause after it was.
func (s *Server) runServiceOnce(ctx context.Context, b ServiceBinding, pause time.Duration) error {
	session, err := s.Session(ctx, b.Principal)
	if err != nil {
		return err
	}
	defer session.Close()
	recovered := time.AfterFunc(pause, func() { s.failures.set(b.Name, nil) })
	defer recovered.Stop()
	if err := b.Service.Run(ctx, session.Conn); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errServiceEnded
	}
	return nil
}
