package cert

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// spread is over how long all targets of a group look what they serve, and report:
	// what a thousand do at once, all wait for, and most of all those who do not serve
	// it yet. A wave waits for its targets, who know how many they are: they take
	// spreadEach for each.
	spread, spreadEach = time.Second, 2 * time.Millisecond
	// patience is how long a program may take until it serves what it was given.
	patience = 10 * time.Second
	// recheck is how often a program that is not this one is looked at again: it may
	// have been restarted with something else.
	recheck = 5 * time.Minute
	// probesAtOnce is how many certificates of such a program are looked at at once.
	probesAtOnce = 4
	// probeTime bounds one handshake.
	probeTime = 10 * time.Second
	// probeLabel stands for the asterisk of a wildcard, for lack of a host that is known.
	probeLabel = "fleetbus-probe"
)

// A failing certificate is one that was not seen as it should be.
type failing struct {
	attempts int
	next     time.Time
}

// keepDelivered gives the program what was installed and looks what it serves, until
// ctx ends.
func (s *Store) keepDelivered(ctx context.Context) {
	if s.o.Program != nil && !s.awaitWhole(ctx) {
		return
	}
	poke(s.told) // of what an earlier Run did not come to
	fails := map[certKey]failing{}
	var looks <-chan time.Time
	if s.o.Program != nil {
		tick := time.NewTicker(recheck)
		defer tick.Stop()
		looks = tick.C
	}
	for {
		look := false
		var retry <-chan time.Time
		var timer *time.Timer
		if len(fails) > 0 {
			next := time.Time{}
			for _, f := range fails {
				if next.IsZero() || f.next.Before(next) {
					next = f.next
				}
			}
			timer = time.NewTimer(time.Until(next))
			retry = timer.C
		}
		select {
		case <-ctx.Done():
		case <-looks:
			look = true
			s.tellAgain(func(certKey) bool { return true })
		case <-retry:
			now := time.Now()
			s.tellAgain(func(key certKey) bool { f, ok := fails[key]; return ok && !now.Before(f.next) })
		case <-s.told:
			s.gatherUntold(ctx)
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		s.deliver(ctx, fails, look)
	}
}

// gatherUntold waits until what is to be delivered is: what comes meanwhile may be more
// urgent.
func (s *Store) gatherUntold(ctx context.Context) {
	began, share := time.Now(), mathrand.Float64()
	for {
		due := began.Add(gatherReload + time.Duration(share*float64(s.spread())))
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.told:
			timer.Stop()
			continue
		}
		timer.Stop()
		return
	}
}

// spread is over how long the targets of a group deliver what this one is to deliver.
func (s *Store) spread() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Program != nil || len(s.untold) == 0 {
		return 0
	}
	over := spread
	for key := range s.untold {
		r, ok := s.groups[key.group].state.Record(key.group, key.id)
		if ok && r.Next != nil && r.Wave != nil && slices.Contains(r.Wave.Targets, s.o.Key.Name) {
			over = min(over, time.Duration(len(r.Wave.Targets))*spreadEach)
		}
	}
	return over
}

// awaitWhole waits until all groups are whole: a program that is given some of its
// certificates gives up the others. It reports whether they are, before ctx ended.
func (s *Store) awaitWhole(ctx context.Context) bool {
	for _, g := range s.groups {
		select {
		case <-ctx.Done():
			return false
		case <-g.whole:
		}
	}
	return true
}

// tellAgain delivers certificates again.
func (s *Store) tellAgain(which func(certKey) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.certs {
		if which(key) {
			s.untold[key] = true
		}
	}
}

// deliver gives the program all certificates, if some of them are to be delivered, and
// looks what it serves of those. One that had some and shall have none is given none
// again when it is time to look: it may have left keys behind for who still read them.
func (s *Store) deliver(ctx context.Context, fails map[certKey]failing, look bool) {
	keys, all := s.takeUntold()
	if len(keys) == 0 {
		if look && s.emptied {
			if err := s.o.Program.Install(ctx, nil); err != nil && ctx.Err() == nil {
				s.log.Warn("certificates are not removed", "error", err)
			}
		}
		return
	}
	s.emptied = len(all) == 0
	var failed error
	if s.o.Program != nil {
		pairs, err := pairsOf(all)
		failed = errors.Join(err, s.o.Program.Install(ctx, pairs))
	}
	places := make(chan struct{}, probesAtOnce)
	if s.o.Program == nil {
		places = make(chan struct{}, 1) // handshakes of clients go first
	}
	holders := map[string][]*installed{}
	for _, i := range all {
		for _, name := range i.names {
			holders[name] = append(holders[name], i)
		}
	}
	var probes sync.WaitGroup
	for _, key := range keys {
		places <- struct{}{}
		probes.Go(func() {
			defer func() { <-places }()
			s.observe(ctx, key, holders, failed)
		})
	}
	probes.Wait()
	for _, key := range keys {
		if !s.failsAt(key) || ctx.Err() != nil {
			delete(fails, key)
			continue
		}
		f := fails[key]
		fails[key] = failing{f.attempts + 1, time.Now().Add(pauseOf(f.attempts))}
	}
}

// takeUntold returns what is to be delivered, and all that is served, what a client
// would get first coming first. Who shares a name with what is new is looked at too.
func (s *Store) takeUntold() (keys []certKey, all []*installed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for key := range s.untold {
		if c := s.certs[key]; c != nil && c.served != nil {
			for _, name := range c.served.names {
				names[name] = true
			}
		}
		keys = append(keys, key)
	}
	for key, c := range s.certs {
		if c.served == nil {
			continue
		}
		all = append(all, c.served)
		if !s.untold[key] && slices.ContainsFunc(c.served.names, func(name string) bool { return names[name] }) {
			keys = append(keys, key)
		}
	}
	clear(s.untold)
	slices.SortFunc(keys, func(a, b certKey) int { return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.id, b.id)) })
	slices.SortFunc(all, func(a, b *installed) int {
		return cmp.Or(prefer(a.candidate, b.candidate), cmp.Compare(a.group, b.group))
	})
	return keys, all
}

// pairsOf are the certificates for a program that is not this one.
func pairsOf(all []*installed) ([]Pair, error) {
	var errs []error
	ids := make(map[string]bool, len(all))
	pairs := make([]Pair, 0, len(all))
	for _, i := range all {
		p, err := i.pair()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if ids[p.ID] {
			p.ID = i.group + "." + p.ID // ids are of a group
		}
		ids[p.ID] = true
		pairs = append(pairs, p)
	}
	return pairs, errors.Join(errs...)
}

// observe shakes hands for every name of a certificate, and has what it sees reported.
func (s *Store) observe(ctx context.Context, key certKey, holders map[string][]*installed, failed error) {
	s.mu.Lock()
	c, exists := certificate{}, false
	if known := s.certs[key]; known != nil {
		c, exists = *known, true
	}
	s.mu.Unlock()
	if exists {
		seen := Seen{Version: version, Target: s.o.Key.Name, ID: key.id, Generation: c.wanted, Program: s.programName()}
		var wrong error
		if c.served != nil {
			if failed != nil { // there is nothing to be patient for
				if seen.Serial, wrong = s.probeOnce(ctx, c.served, holders); wrong != nil {
					wrong = failed
				}
			} else {
				seen.Serial, wrong = s.probeAll(ctx, c.served, holders)
			}
		}
		if ctx.Err() != nil {
			s.mu.Lock()
			s.untold[key] = true // for the next Run
			s.mu.Unlock()
			return
		}
		seen.Error = oneLine(cmp.Or(text(c.refused), text(wrong)))
		s.mu.Lock()
		now := s.certs[key]
		if now == nil || now.served != c.served && (now.served == nil || c.served == nil || now.served.tls != c.served.tls) {
			s.mu.Unlock()
			return // it changed meanwhile, and is looked at again
		}
		if seen.Error != "" && seen.Error != now.seen.Error && c.refused == nil {
			s.log.Error("certificate is not served", "group", key.group, "id", key.id, "error", seen.Error)
		}
		now.seen, now.misses = seen, wrong != nil
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.unwritten[key] = true
	s.mu.Unlock()
	poke(s.write)
}

// failsAt reports whether what was installed was not seen.
func (s *Store) failsAt(key certKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.certs[key]
	return c != nil && c.misses
}

func (s *Store) programName() string {
	if s.o.Program != nil {
		return s.o.Program.Name()
	}
	return "go"
}

// probeAll shakes hands for all names of a certificate, again for as long as the
// program may take, and returns the serial number that was seen and what is wrong with
// it. A name that others have too may be served by them, but not every name.
func (s *Store) probeAll(ctx context.Context, i *installed, holders map[string][]*installed) (string, error) {
	deadline := time.Now().Add(patience)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		serial, err := s.probeOnce(ctx, i, holders)
		if err == nil || s.o.Program == nil || ctx.Err() != nil || time.Now().Add(wait).After(deadline) {
			return serial, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return serial, err
		case <-timer.C:
		}
	}
}

func (s *Store) probeOnce(ctx context.Context, i *installed, holders map[string][]*installed) (string, error) {
	own, other := false, ""
	for _, name := range i.names {
		host := name
		if parent, ok := strings.CutPrefix(name, "*."); ok {
			host = probeLabel + "." + parent
		}
		serial, err := s.probe(ctx, host, i)
		switch {
		case err != nil:
			return "", fmt.Errorf("shaking hands for %q: %w", name, err)
		case sameSerial(serial, i.bundle.Serial):
			own = true
		case slices.ContainsFunc(holders[name], func(h *installed) bool { return sameSerial(serial, h.bundle.Serial) }):
			other = serial
		default:
			return bounded(serial), fmt.Errorf("%q is answered with serial %s, latest is %s", name, bounded(serial), i.bundle.Serial)
		}
	}
	if !own {
		return bounded(other), fmt.Errorf("all of its names are answered with serial %s, which is another certificate for them", bounded(other))
	}
	return i.bundle.Serial, nil
}

// probe shakes hands with the program.
func (s *Store) probe(ctx context.Context, host string, i *installed) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if s.o.Program != nil {
		return s.o.Program.Probe(ctx, host)
	}
	return s.handshake(ctx, host, i)
}

// handshake is a client that can use i, as this program would answer it.
func (s *Store) handshake(ctx context.Context, host string, i *installed) (string, error) {
	// A suite of TLS 1.2 says which kind of key the client takes.
	suites := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	switch i.tls.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		suites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	}
	near, far := net.Pipe()
	defer near.Close()
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		config := &tls.Config{GetCertificate: s.GetCertificate, SessionTicketsDisabled: true, MinVersion: tls.VersionTLS12}
		served <- tls.Server(at{far, host}, config).HandshakeContext(ctx)
	}()
	// What is presented is what this is about, whoever vouches for it.
	conn := tls.Client(near, &tls.Config{
		ServerName: host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: suites, CurvePreferences: []tls.CurveID{tls.CurveP256}, // the cheapest
	})
	err := conn.HandshakeContext(ctx)
	near.Close()
	if problem := <-served; err != nil {
		return "", cmp.Or(problem, err)
	}
	return serial(conn.ConnectionState().PeerCertificates[0]), nil
}

// at is a connection to an address, if that is one.
type at struct {
	net.Conn
	host string
}

func (a at) LocalAddr() net.Addr {
	if ip := net.ParseIP(a.host); ip != nil {
		return &net.TCPAddr{IP: ip}
	}
	return a.Conn.LocalAddr()
}

// maxError bounds the text of a report, in bytes.
const maxError = 300

// oneLine is text without line breaks, not too long for a report.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > maxError {
		text = strings.ToValidUTF8(text[:maxError], "") + "…"
	}
	return text
}

// bounded is a serial number, which has 20 bytes at most, as a program told it.
func bounded(serial string) string { return oneLine(serial[:min(len(serial), 64)]) }
