// Package demo shows on one machine that the bus holds what it promises: it makes a
// fleet of three nodes, tries one promise after the other, and measures.
package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// StepTimeout bounds one step of the demonstration. A step that holds takes
// ten seconds at most, an election among them.
const StepTimeout = time.Minute

// Options are what the demonstration takes from the program that it is part of. That
// program is started again for two of the nodes and for the load balancer.
type Options struct {
	// Env are the variables of these processes, as os.Environ returns them. Those
	// of a node of the user's own are left out.
	Env []string
	// SourceTypes and CertManager are those of the node inside this process.
	SourceTypes map[string]fleetbus.OpenSource
	CertManager fleetbus.OpenCertManager
	// Console is that of the node inside this process. Nil: there is none.
	Console fleetbus.Protocol
	// Connect connects to host:port over TLS, with a creds file, or none, and the
	// file of the authority.
	Connect func(ctx context.Context, addr, creds, ca string, more ...nats.Option) (*nats.Conn, error)
	// Wait is told what is being waited for, and returns what is called when it is
	// over. Default: nobody is told.
	Wait func(what string) (over func())
	// Tried is told of each step when it is done. Default: nobody is told.
	Tried func(StepResult)
}

// A Demo is a fleet and what the steps do with it, one after the other. New makes
// one. It is for one goroutine.
type Demo struct {
	*fleet
	api *admin.Client
	// clerk, guest and eve are creds files: two of one account, one of the other.
	clerk, guest, eve string
	// told is the message of three steps.
	told  greeting
	conns []*nats.Conn
	// apiConn is the administrator's connection, lb the load balancer; nil before there
	// is one.
	apiConn *nats.Conn
	lb      *balancer
}

// New makes a demonstration, which ends with ctx, and its temporary directory. The
// caller closes it.
func New(ctx context.Context, o Options) (*Demo, error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Demo{fleet: f}, nil
}

// Close ends every process, and removes every file. An error says that one could
// not be removed.
func (d *Demo) Close() error {
	d.fail(context.Canceled)
	d.lb.close()
	for _, nc := range d.conns {
		nc.Close()
	}
	return d.fleet.close()
}

// A step is one promise and the attempt to break it.
type step struct {
	name string
	// waiting says what a long step waits for.
	waiting string
	// vital steps are those without which the rest cannot be tried.
	vital bool
	try   func(context.Context) (finding measured, err error)
}

// measured is what a step that held has found out.
type measured struct {
	detail string
	// took is what was measured, if that is not the whole step.
	took time.Duration
}

// Result is the outcome of all steps.
type Result struct {
	Held  bool         `json:"held"`
	Took  float64      `json:"took_seconds"`
	Steps []StepResult `json:"steps"`
}

// StepResult is the outcome of one step.
type StepResult struct {
	Name string `json:"name"`
	Held bool   `json:"held"`
	// Took is what was measured.
	Took float64 `json:"took_seconds"`
	// Detail says what else was measured, or why the step did not hold.
	Detail string `json:"detail"`
}

// HeldSteps counts the steps that held.
func (r Result) HeldSteps() (n int) {
	for _, s := range r.Steps {
		if s.Held {
			n++
		}
	}
	return n
}

// Run tries every step, once. A fleet that breaks is a step that did not hold. It
// stops when the context of New is done, which the caller looks at: then the steps
// that were not tried are missing.
func (d *Demo) Run() Result {
	began := time.Now()
	result := d.given.tryAll(d.ctx, d.steps())
	result.Took = time.Since(began).Seconds()
	return result
}

// tryAll tries one step after the other.
func (o Options) tryAll(ctx context.Context, steps []step) Result {
	result := Result{Held: true}
	missing := ""
	for _, s := range steps {
		r := StepResult{Name: s.name, Detail: "not tried: it needs " + missing}
		if missing == "" {
			r = o.try(ctx, s)
		}
		if !r.Held && s.vital {
			missing = s.name
		}
		if errors.Is(context.Cause(ctx), context.Canceled) {
			break // interrupted
		}
		result.Held = result.Held && r.Held
		result.Steps = append(result.Steps, r)
		if o.Tried != nil {
			o.Tried(r)
		}
	}
	return result
}

// try tries one step.
func (o Options) try(ctx context.Context, s step) StepResult {
	ctx, cancel := context.WithTimeoutCause(ctx, StepTimeout, fmt.Errorf("it took more than %v", StepTimeout))
	defer cancel()
	over := func() {}
	if o.Wait != nil {
		over = o.Wait(s.waiting)
	}
	began := time.Now()
	found, err := s.try(ctx)
	if found.took == 0 {
		found.took = time.Since(began)
	}
	over()
	if err != nil {
		// A library may know only that its context is done.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		found.detail = err.Error()
	}
	return StepResult{Name: s.name, Held: err == nil, Took: found.took.Seconds(), Detail: found.detail}
}

// Access is how to use the fleet once its steps are done and before it is closed.
type Access struct {
	// Dir has the logs of all nodes. There is nothing but them unless Running.
	Dir     string
	Running bool
	Nodes   []*Node
	// CA is the file of the authority, AdminCreds those of the administrator, and Users
	// have one of each account.
	CA, AdminCreds string
	Users          []User
	// Site is the name of the certificate that the load balancer serves at Served,
	// host:port; empty if there is none.
	Site, Served string
	// Console is a login link to the console of ConsoleNode; empty if there is none.
	Console     string
	ConsoleNode *Node
}

// A User is a creds file of an account of the demonstration.
type User struct{ Account, Creds string }

// Access says how to use the fleet as it is now.
func (d *Demo) Access() Access {
	a := Access{Dir: d.dir, Running: d.eve != "" && d.ctx.Err() == nil, Nodes: d.nodes}
	if !a.Running {
		return a
	}
	a.CA, a.AdminCreds = d.founded.CA, d.founded.AdminCreds
	a.Users = []User{{account, d.clerk}, {otherAccount, d.eve}}
	if d.lb != nil && d.lb.process != nil {
		a.Site, a.Served = site, d.lb.serve
	}
	if link, err := d.embedded.LoginLink(identity.FleetName + "/admin"); err == nil {
		a.Console, a.ConsoleNode = link.URL, d.nodes[embeddedNode]
	}
	return a
}
