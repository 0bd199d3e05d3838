// Package bench measures: how a fleet carries a load, and what this project
// promises of speed and size, beside its peers.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// houseTimeout bounds all of House, mqttTimeout all of MQTT, and certTimeout all of
// Certificates.
const (
	houseTimeout = 20 * time.Minute
	mqttTimeout  = 30 * time.Minute
	certTimeout  = 10 * time.Minute
)

// Options are how to measure.
type Options struct {
	// Env are variables as os.Environ returns them, for the programs that are run.
	Env []string
	// Progress is told what is being measured, in a few words.
	Progress func(format string, args ...any)
	// Quick does everything once, which is not enough for figures to rely on.
	Quick bool
	// Only measures what has this in its name; empty is everything.
	Only string
	// Clients are how many Scale has, and Alone that it has no peer.
	Clients int
	Alone   bool
}

// A Report is what was measured.
type Report struct {
	Figures    []Figure    `json:"figures"`
	Conditions []Condition `json:"conditions"`
}

// ErrNotBuilt says that a server could not be built: there is no Go, or not the
// source tree.
var ErrNotBuilt = errors.New("building a server")

// A house measures what this project promises, against bare servers of the
// engine's own make where it can.
type house struct {
	env      []string
	progress func(format string, args ...any)
	only     string
	// dir is for the data of all nodes, and for the two binaries.
	dir            string
	fleetbus, peer string
	alone          bool // there is no peer to build
	mutual         bool // the peer verifies the certificates of its clients
	effort         effort
	Report
}

// An effort is how often things are done.
type effort struct {
	rounds                            int
	messages, echoes, stored, awaited int // in a round
	starts                            int
	first, idle, sessions             int           // first: idle clients that are not counted
	settling                          time.Duration // of the memory of a process
	denied, renewals                  int
}

func fullEffort() effort {
	return effort{rounds: 31, messages: 100_000, echoes: 1000, stored: 5000, awaited: 1000,
		starts: 9, first: 200, idle: 2000, settling: 5 * time.Second, sessions: 1000, denied: 100, renewals: 5}
}

func quickEffort() effort {
	return effort{rounds: 1, messages: 20_000, echoes: 200, stored: 500, awaited: 50,
		starts: 1, first: 10, idle: 100, settling: 500 * time.Millisecond, sessions: 100, denied: 5, renewals: 1}
}

// House measures this project's servers beside bare ones of the engine, three
// of each, and what else is promised of speed and size. It needs Go and the
// source tree; a target that is missed is no error. What was measured before an
// error is in the report.
func House(ctx context.Context, o Options) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, houseTimeout)
	defer cancel()
	h := &house{env: o.Env, progress: o.Progress, only: o.Only, effort: fullEffort()}
	if o.Quick {
		h.effort = quickEffort()
	}
	return h.measure(ctx, []part{
		{"measuring the cluster against its peer", h.measureBus},
		{"starting fresh nodes", h.measureStarts},
		{"measuring idle clients", h.measureIdle},
		{"measuring sessions", h.measureSessions},
		{"denying users and renewing certificates", h.measureAdministration},
		{"measuring the binary", h.measureBinary},
	})
}

// A part is something to measure.
type part struct {
	what string
	do   func(context.Context) error
}

// measure builds the servers and does each part.
func (h *house) measure(ctx context.Context, parts []part) (_ Report, err error) {
	began := time.Now()
	if h.dir, err = os.MkdirTemp("", "fleetbus-bench-"); err != nil {
		return Report{}, fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(h.dir)) }()
	h.progress("building servers")
	if err := h.build(ctx); err != nil {
		return Report{}, err
	}
	var errs []error
	for _, part := range parts {
		if !strings.Contains(part.what, h.only) {
			continue
		}
		h.progress("%s", part.what)
		if err := part.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.what, err))
		}
	}
	h.Conditions = append(h.Conditions, Machine(),
		Condition{"disk", "under " + h.dir},
		Condition{"took", time.Since(began).Round(time.Second).String()})
	return h.Report, errors.Join(errs...)
}
