package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// measureStarts takes the time from the start of fresh nodes to the first
// durable message.
func (h *house) measureStarts(ctx context.Context) error {
	for _, each := range []struct {
		name  string
		nodes int
		limit float64
	}{
		{"fresh node, exec to first stored message", 1, 1},
		{"three fresh nodes, the same on 3 nodes", 3, 2},
	} {
		var seconds []float64
		for range h.effort.starts {
			took, err := h.firstMessage(ctx, each.nodes)
			if err != nil {
				return err
			}
			seconds = append(seconds, took.Seconds())
		}
		median := percentile(seconds, 0.5)
		h.Figures = append(h.Figures, Figure{Name: each.name, Unit: "s", Ours: median, Spread: []float64{seconds[0], seconds[len(seconds)-1]}}.atMost(each.limit))
	}
	h.Conditions = append(h.Conditions, Condition{"starts", fmt.Sprintf("median of %d, fastest and slowest as spread; homes made by init before; an account, a user and a stream made on the way", h.effort.starts)})
	return nil
}

// firstMessage is how long n fresh nodes take to store their first message.
func (h *house) firstMessage(ctx context.Context, n int) (time.Duration, error) {
	s, err := h.fleet(n)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	began := time.Now()
	if err := s.start(ctx); err != nil {
		return 0, err
	}
	if err := s.open(ctx); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// handshakes are how many clients a second connect, fewer than any node refuses.
const handshakes = 300

// measureIdle takes the memory of idle clients in a fresh node.
func (h *house) measureIdle(ctx context.Context) error {
	ours, err := h.startFleet(ctx, 1)
	if err != nil {
		return err
	}
	kib, err := h.idle(ctx, ours)
	ours.stop()
	if err != nil {
		return err
	}
	peer, err := h.startPeers(ctx, 1)
	if err != nil {
		return err
	}
	peerKiB, err := h.idle(ctx, peer)
	peer.stop()
	if err != nil {
		return err
	}
	f := Figure{Name: "idle TLS client, memory of the node", Unit: "KiB", Ours: kib, Peer: peerKiB}
	if peerKiB > 0 {
		f.Ratio = kib / peerKiB
	}
	h.Figures = append(h.Figures, f.atMost(50))
	h.Conditions = append(h.Conditions, Condition{"idle clients", fmt.Sprintf("resident memory of a fresh node with %d of them more than with the first %d, each after %v", h.effort.idle, h.effort.first, h.effort.settling)})
	return nil
}

// idle is the memory, in KiB, that one more idle client costs a fresh system of one
// node. The first few have it touch what all use.
func (h *house) idle(ctx context.Context, s *system) (float64, error) {
	pace := rate.NewLimiter(handshakes, 1)
	var clients []*nats.Conn
	defer func() {
		for _, nc := range clients {
			nc.Close()
		}
	}()
	with := func(more int) (float64, error) {
		for range more {
			if err := pace.Wait(ctx); err != nil {
				return 0, fmt.Errorf("connecting clients: %w", err)
			}
			nc, err := s.dial(ctx, s.urls, s.user)
			if err != nil {
				return 0, err
			}
			clients = append(clients, nc)
		}
		return s.resident(ctx, h.effort.settling)
	}
	before, err := with(h.effort.first)
	if err != nil {
		return 0, err
	}
	after, err := with(h.effort.idle)
	return (after - before) / float64(h.effort.idle), err
}

// resident is the memory of the first node's process, in KiB, after it has had
// some time to give back what it does not need.
func (s *system) resident(ctx context.Context, settling time.Duration) (float64, error) {
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(settling):
	}
	return memoryOf(s.children[0].cmd.Process.Pid)
}

// memoryOf is the resident memory of a process, in KiB.
func memoryOf(pid int) (float64, error) {
	path := filepath.Join("/proc", strconv.Itoa(pid), "status")
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading the memory of a process: %w", err)
	}
	for line := range bytes.Lines(status) {
		if words := bytes.Fields(line); len(words) == 3 && string(words[0]) == "VmRSS:" {
			return strconv.ParseFloat(string(words[1]), 64)
		}
	}
	return 0, fmt.Errorf("reading the memory of a process: %q does not have it", path)
}

// worked is the processor time of the first node until now, in seconds, where the kernel
// says it.
func (s *system) worked() (seconds float64, ok bool) {
	return workOf(s.children[0].cmd.Process.Pid)
}

// workOf is the processor time of a process until now, as worked has it.
func workOf(pid int) (seconds float64, ok bool) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	const perSecond = 100                                          // the kernel's, for all who ask
	words := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // after the name, which may be anything
	if len(words) < 13 {
		return 0, false
	}
	user, err1 := strconv.ParseFloat(string(words[11]), 64)
	system, err2 := strconv.ParseFloat(string(words[12]), 64)
	return (user + system) / perSecond, errors.Join(err1, err2) == nil
}

// measureSessions takes what sessions cost in the process that opens them.
func (h *house) measureSessions(ctx context.Context) (err error) {
	dir, _, err := h.place(0)
	if err != nil {
		return err
	}
	srv, err := fleetbus.New(fleetbus.Options{Mode: fleetbus.Local, Dir: dir, Accounts: []string{benchAccount}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	select {
	case <-srv.Ready():
	case err := <-ended:
		ended <- nil
		return err
	}
	n := h.effort.sessions
	memory, goroutines := used()
	for i := range n {
		session, err := srv.Session(ctx, identity.Principal{Account: benchAccount, Name: "s" + strconv.Itoa(i)})
		if err != nil {
			return err
		}
		defer session.Close()
	}
	memoryAfter, goroutinesAfter := used()
	h.Figures = append(h.Figures,
		Figure{Name: "session in the process, memory", Unit: "KiB", Ours: (memoryAfter - memory) / 1024 / float64(n)}.atMost(90),
		Figure{Name: "session in the process, goroutines", Ours: float64(goroutinesAfter-goroutines) / float64(n)}.atMost(5))
	h.Conditions = append(h.Conditions, Condition{"sessions", fmt.Sprintf("heap and stacks with %d of them, after a collection, less those without; both ends", n)})
	return nil
}

// used is the memory of this process's heap and stacks, in bytes, and its
// goroutines.
func used() (memory float64, goroutines int) {
	// What a finalizer frees is collected by the second.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
}

// measureAdministration takes the time of denials, and counts what a renewal of
// certificates drops.
func (h *house) measureAdministration(ctx context.Context) error {
	s, err := h.startFleet(ctx, 3)
	if err != nil {
		return err
	}
	defer s.stop()
	nc, err := s.dial(ctx, s.urls[:1], admin.UserCredentials(s.admin))
	if err != nil {
		return err
	}
	defer nc.Close()
	api := admin.New(nc)
	return errors.Join(h.measureDenials(ctx, s, api), h.measureRenewals(ctx, s, api))
}

// measureDenials takes the time from a denial to the last closed connection of a
// user who has one to every node.
func (h *house) measureDenials(ctx context.Context, s *system, api *admin.Client) error {
	closed := make([]chan time.Time, h.effort.denied)
	for i := range closed {
		user, err := s.enlist(ctx, api, benchUser(i), identity.RoleClient)
		if err != nil {
			return err
		}
		closed[i] = make(chan time.Time, len(s.urls))
		for _, url := range s.urls {
			nc, err := s.dial(ctx, []string{url}, user, nats.ClosedHandler(func(*nats.Conn) { closed[i] <- time.Now() }))
			if err != nil {
				return err
			}
			defer nc.Close()
		}
	}
	var took []time.Duration
	for i := range closed {
		try, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		began := time.Now()
		spread, err := api.DenyUser(try, benchAccount+"/"+benchUser(i))
		if err != nil {
			return fmt.Errorf("denying a user: %w", err)
		}
		if len(spread.Missing) > 0 {
			return fmt.Errorf("denying a user: no answer from %q", spread.Missing)
		}
		var last time.Time
		for range s.urls {
			select {
			case last = <-closed[i]:
			case <-try.Done():
				return errors.New("denying a user: a connection was not closed")
			}
		}
		took = append(took, last.Sub(began))
	}
	h.Figures = append(h.Figures,
		Figure{Name: "denial to closed on 3 nodes, p50", Unit: "ms", Ours: milliseconds(percentile(took, 0.5))},
		Figure{Name: "denial to closed on 3 nodes, p99", Unit: "ms", Ours: milliseconds(percentile(took, 0.99))}.atMost(50))
	h.Conditions = append(h.Conditions, Condition{"denials", fmt.Sprintf("%d users, one after the other, each with a connection to every node; until the client sees the last close", h.effort.denied)})
	return nil
}

func benchUser(i int) string { return "u" + strconv.Itoa(i) }

// liveClients are connected while certificates are renewed; each is sent a
// message every livePause.
const (
	liveClients = 200
	livePause   = 100 * time.Millisecond
)

// measureRenewals counts what is lost when every certificate of every node is
// renewed.
func (h *house) measureRenewals(ctx context.Context, s *system, api *admin.Client) error {
	var dropped, received atomic.Int64
	var clients []*nats.Conn
	for i := range liveClients {
		nc, err := s.dial(ctx, s.urls[i%len(s.urls):][:1], s.user, nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				dropped.Add(1)
			}
		}))
		if err != nil {
			return err
		}
		defer nc.Close()
		clients = append(clients, nc)
	}
	var pairs []Pair
	for i, nc := range clients {
		// The neighbor is on another node, so that routes are watched too.
		p := Pair{Pub: clients[(i+1)%len(clients)], Sub: nc, Subject: "bench.live." + strconv.Itoa(i)}
		if _, err := p.listen(ctx, func() { received.Add(1) }); err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	stop, stopped := make(chan struct{}), make(chan int64)
	go func() { stopped <- trickle(pairs, stop) }()
	renewed := h.renew(ctx, s, api)
	close(stop)
	sent := <-stopped
	if renewed != nil {
		return renewed
	}
	arrive, cancel := context.WithTimeout(ctx, stalled)
	defer cancel()
	for received.Load() < sent && arrive.Err() == nil {
		select {
		case <-arrive.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	h.Figures = append(h.Figures,
		Figure{Name: "renewal of every certificate, clients dropped", Ours: float64(dropped.Load())}.aim("0", dropped.Load() == 0),
		Figure{Name: "renewal of every certificate, messages lost", Ours: float64(sent - received.Load())}.aim("0", received.Load() >= sent))
	h.Conditions = append(h.Conditions, Condition{"renewals", fmt.Sprintf("%d of all 3 nodes' certificates, under %d clients without reconnect, each sent a message every %v by a client of another node: %d messages", h.effort.renewals, liveClients, livePause, sent)})
	return nil
}

// trickle publishes on every pair, every livePause, until stop is closed, and
// returns how many messages it sent.
func trickle(pairs []Pair, stop <-chan struct{}) (sent int64) {
	tick := time.NewTicker(livePause)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return sent
		case <-tick.C:
			for _, p := range pairs {
				// What a dropped client does not send was lost as well.
				_ = p.Pub.Publish(p.Subject, nil)
				sent++
			}
		}
	}
}

// renew renews the certificates of all nodes, one second apart, and checks that
// new clients see new ones.
func (h *house) renew(ctx context.Context, s *system, api *admin.Client) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	before, err := s.served(ctx)
	if err != nil {
		return err
	}
	for range h.effort.renewals {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		all, err := api.RenewNodes(ctx, "")
		if err != nil {
			return fmt.Errorf("renewing the certificates: %w", err)
		}
		if len(all) != len(s.urls) || slices.ContainsFunc(all, func(r admin.Renewed) bool { return r.Error != "" }) {
			return fmt.Errorf("renewing the certificates: not of every node: %v", all)
		}
		after, err := s.served(ctx)
		if err != nil {
			return err
		}
		for i := range after {
			if after[i].Equal(before[i]) {
				return fmt.Errorf("renewing the certificates: node %d shows the old one", i+1)
			}
		}
		before = after
	}
	return nil
}

// served are the certificates that the nodes show to new clients.
func (s *system) served(ctx context.Context) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, url := range s.urls {
		nc, err := s.dial(ctx, []string{url}, s.user)
		if err != nil {
			return nil, err
		}
		state, err := nc.TLSConnectionState()
		nc.Close()
		if err != nil {
			return nil, fmt.Errorf("looking at a certificate: %w", err)
		}
		all = append(all, state.PeerCertificates[0])
	}
	return all, nil
}

// measureBinary weighs the program.
func (h *house) measureBinary(context.Context) error {
	const megabyte = 1e6
	var sizes [2]float64
	for i, path := range []string{h.fleetbus, h.peer} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("weighing a binary: %w", err)
		}
		sizes[i] = float64(info.Size()) / megabyte
	}
	h.Figures = append(h.Figures, Figure{Name: "binary, stripped", Unit: "MB", Ours: sizes[0], Peer: sizes[1], Ratio: sizes[0] / sizes[1]}.atMost(30))
	return nil
}
