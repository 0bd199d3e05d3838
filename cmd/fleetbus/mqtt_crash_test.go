package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// sourcePause is how long a source waits between publications, on average; less
	// if there is time for what takes long.
	sourcePause, longPause = 150 * time.Millisecond, 60 * time.Millisecond
	// crashPatience is how long what goes wrong by a kill may take to be right again.
	crashPatience = 2 * time.Minute
)

// A crash is a fleet of three nodes with devices, of which nodes are killed.
type crash struct {
	t     *testing.T
	m     *host
	rng   *rand.Rand // of the goroutine of the test
	nodes []*crashNode
	tls   *tls.Config
	nc    *nats.Conn
	long  bool // there is time for what takes long

	devices sync.WaitGroup
	mu      sync.Mutex
	faults  []string
}

type crashNode struct {
	name, mqtt, amqp string
	*process
}

// TestKilledMQTT kills random nodes of three, again and again, while MQTT clients
// publish and read. Nothing that was acknowledged is lost, at QoS 2 nothing comes
// twice, no session is lost, what is retained is the last one, and a will comes
// once. FLEETBUS_KILLS is how often, FLEETBUS_SEED which ones.
func TestKilledMQTT(t *testing.T) {
	t.Parallel()
	kills, seed := fromEnv(t, "FLEETBUS_KILLS", 2), fromEnv(t, "FLEETBUS_SEED", int(time.Now().UnixNano()%1e6))
	if testing.Short() {
		kills = min(kills, 1)
	}
	t.Logf("%d kills, seed %d", kills, seed)
	c := newCrash(t, uint64(seed))
	c.long = kills > 10
	ctx, stop := context.WithCancel(t.Context())
	defer c.devices.Wait()
	defer stop()

	load, readers, watch := c.load(ctx), c.readers(ctx), c.watcher(ctx)
	c.until("the readers have subscribed", func() error {
		for _, r := range append(slices.Clone(readers), watch) {
			if ready, _, _ := r.state(); !ready {
				return fmt.Errorf("%s has not", r.id)
			}
		}
		return nil
	})
	ending, end := context.WithCancel(ctx)
	defer end()
	var sending sync.WaitGroup
	for _, s := range load {
		sending.Go(func() { s.send(ending) })
	}
	sending.Go(func() { c.roam(ending, readers) })
	wills := map[string]fate{}
	for i := range kills {
		c.kill(ctx, i, wills)
		c.keeps(ctx, i, load, false)
	}
	end()
	sending.Wait()
	for _, r := range readers {
		r.leave(0, false)
	}
	c.drain(load, readers, watch, wills)
	// What comes although it came before: a group waits for half a minute before it
	// tries another of its members.
	quiet := 3 * time.Second
	if c.long {
		quiet = 40 * time.Second
	}
	select {
	case <-time.After(quiet):
	case <-ctx.Done():
	}
	c.keeps(ctx, kills, load, true)
	v := c.judge(load, readers, watch, wills)
	t.Logf("%d kills, seed %d: %s", kills, seed, v)
	if v.wrong() {
		t.Fail()
		for _, n := range c.nodes {
			t.Logf("%s:\n%s", n.name, warnings(n.log.String()))
		}
	}
}

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// warnings are the lines of a log that tell of something wrong.
func warnings(log string) string {
	lines := slices.DeleteFunc(strings.Split(log, "\n"), func(l string) bool {
		return !regexp.MustCompile(`(?i)warn|error|panic|goroutine |an account is open`).MatchString(l)
	})
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// newCrash makes the fleet. more are settings of all nodes, as flags.
func newCrash(t *testing.T, seed uint64, more ...string) *crash {
	c := &crash{t: t, m: newHost(t), rng: rand.New(rand.NewPCG(seed, 0))}
	var addrs []string
	for i := range 3 {
		n := &crashNode{name: fmt.Sprintf("n%d", i+1), mqtt: loopback.Addr(t), amqp: loopback.Addr(t)}
		args := []string{"init"}
		if i > 0 {
			args = []string{"join", addrs[0], "--token", secret(c.m.must("token", "add", "node", "--data-dir", "n1"))}
		}
		args = c.m.node(n.name, append(append(args, "--listeners-mqtt-addr", n.mqtt, "--listeners-amqp-addr", n.amqp), more...)...)
		c.m.must(args...)
		addrs = append(addrs, args[slices.Index(args, "--listeners-nats-addr")+1])
		n.process = c.m.serve(n.name)
		c.nodes = append(c.nodes, n)
	}
	c.m.must("account", "add", "acme", "--data-dir", "n1")
	c.m.must("user", "add", "acme/device", "--data-dir", "n1", "--cert", "device")
	c.m.must("user", "add", "acme/check", "--data-dir", "n1", "--out", "check.creds")
	file := func(name string) string { return filepath.Join(c.m.dir, name) }
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must[[]byte](t)(os.ReadFile(file("device-ca.pem"))))
	c.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots,
		Certificates: []tls.Certificate{must[tls.Certificate](t)(tls.LoadX509KeyPair(file("device.crt"), file("device.key")))},
	}
	c.nc = must[*nats.Conn](t)(nats.Connect("tls://"+strings.Join(addrs, ",tls://"), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}),
		nats.UserCredentials(file("check.creds")), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})))
	t.Cleanup(c.nc.Close)
	c.until("the fleet is whole", func() error {
		if code, output := c.m.run("status", "--data-dir", "n1"); code != 0 || !strings.Contains(output, "ok: 3 of 3") {
			return errors.New(output)
		}
		return nil
	})
	return c
}

// until waits until nothing is wrong any more.
func (c *crash) until(what string, wrong func() error) {
	c.t.Helper()
	c.within(crashPatience, what, wrong)
}

func (c *crash) within(patience time.Duration, what string, wrong func() error) {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := wrong()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			for _, n := range c.nodes {
				c.t.Logf("%s:\n%s", n.name, warnings(n.log.String()))
			}
			c.t.Fatalf("waiting until %s: %v; faults until now: %q", what, err, c.faults)
		}
	}
}

// whole returns when every copy of every stream and consumer of MQTT is current.
func (c *crash) whole(ctx context.Context) {
	c.current(ctx, "MQTT5_MESSAGES", "MQTT5_SESSIONS", "MQTT5_RETAINED")
}

// current returns when every copy of these streams and their consumers is.
func (c *crash) current(ctx context.Context, streams ...string) {
	js := must[jetstream.JetStream](c.t)(jetstream.New(c.nc))
	judge := func(what string, of *jetstream.ClusterInfo) error {
		if of == nil || of.Leader == "" || len(of.Replicas) != len(c.nodes)-1 {
			return fmt.Errorf("%s has no leader, or copies are missing", what)
		}
		for _, r := range of.Replicas {
			if !r.Current || r.Offline || r.Lag > 100 {
				return fmt.Errorf("%s: the copy of %s is %d behind", what, r.Name, r.Lag)
			}
		}
		return nil
	}
	c.until("the copies are whole", func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		for _, name := range streams {
			s, err := js.Stream(ctx, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := judge(name, s.CachedInfo().Cluster); err != nil {
				return err
			}
			consumers := s.ListConsumers(ctx)
			for info := range consumers.Info() {
				if info.Config.Durable != "" {
					if err := judge(info.Name, info.Cluster); err != nil {
						return err
					}
				}
			}
			if err := consumers.Err(); err != nil {
				return err
			}
		}
		return nil
	})
}

// device makes a device that the nodes are tried by at random.
func (c *crash) device(id string, expiry uint32) *device {
	return &device{
		id: id, expiry: expiry, tls: c.tls, in: map[uint16]string{}, took: func(*packet.Publish) {}, settled: func(int, bool) {}, fault: c.fault,
		addrs: func() string { return c.nodes[rand.IntN(len(c.nodes))].mqtt },
	}
}

func (c *crash) fault(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, what)
}

func (c *crash) run(ctx context.Context, d *device) { c.devices.Go(func() { d.run(ctx) }) }

// A source is a device that publishes the numbers from 0 on.
type source struct {
	*device
	topic  string
	qos    packet.QoS
	retain bool
	window int
	pause  time.Duration // the longest between two publications

	mu      sync.Mutex
	numbers []byte // what became of each
	acked   time.Time
	outage  time.Duration // the longest time without an acknowledgement
}

const (
	wasSent = iota
	wasAcknowledged
	wasRefused
)

// load makes the sources. Some wait for each acknowledgement.
func (c *crash) load(ctx context.Context) (sources []*source) {
	for i, s := range []*source{
		{qos: 1, window: 1}, {qos: 1, window: 20}, {qos: 2, window: 1}, {qos: 2, window: 20}, {qos: 2, window: 20},
		{qos: 1, window: 1, retain: true}, {qos: 2, window: 1, retain: true},
	} {
		kind := "load"
		if s.retain {
			kind = "keep"
		}
		s.topic = fmt.Sprintf("%s/%d/q%d", kind, i, s.qos)
		if s.pause = 2 * sourcePause; c.long {
			s.pause = 2 * longPause
		}
		s.device = c.device(fmt.Sprintf("source-%d", i), 3600)
		s.slots, s.settled = make(chan struct{}, s.window), s.settle
		s.will = &packet.Will{Delay: 600, Message: packet.Message{Topic: []byte("will/never/" + s.id), QoS: 2}}
		c.run(ctx, s.device)
		sources = append(sources, s)
	}
	return sources
}

// send publishes until ctx is done.
func (s *source) send(ctx context.Context) {
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(s.pause)):
		}
		s.mu.Lock()
		s.numbers = append(s.numbers, wasSent)
		s.mu.Unlock()
		m := packet.Message{Topic: []byte(s.topic), Payload: []byte(strconv.Itoa(n)), QoS: s.qos, Retain: s.retain}
		if s.publish(ctx, n, m) != nil {
			s.mu.Lock()
			s.numbers = s.numbers[:n]
			s.mu.Unlock()
			return
		}
	}
}

func (s *source) settle(n int, no bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numbers[n] = wasAcknowledged
	if no {
		s.numbers[n] = wasRefused
	}
	now := time.Now()
	if !s.acked.IsZero() {
		s.outage = max(s.outage, now.Sub(s.acked))
	}
	s.acked = now
}

// last is the last number that was acknowledged, -1 if none was.
func (s *source) last() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	acked := -1
	for n, state := range s.numbers {
		if state == wasAcknowledged {
			acked = n
		}
	}
	return acked
}

// A reader is a device that notes what it is sent.
type reader struct {
	*device
	qos   packet.QoS
	group string

	mu    sync.Mutex
	times map[string]map[string]int // by topic and payload
	last  map[string]int            // by topic
	late  map[string]int            // how many came for the first time after a later one did
	how   map[string]string         // what came was delivered
}

func (c *crash) reader(id string, qos packet.QoS, filters ...string) *reader {
	r := &reader{device: c.device(id, 3600), qos: qos, times: map[string]map[string]int{}, last: map[string]int{}, late: map[string]int{}, how: map[string]string{}}
	for _, filter := range filters {
		r.subs = append(r.subs, packet.Subscription{Filter: filter, QoS: qos, RetainHandling: packet.RetainNever})
	}
	r.will = &packet.Will{Delay: 600, Message: packet.Message{Topic: []byte("will/never/" + r.id), QoS: 2}}
	r.took = r.note
	return r
}

// heard is how many messages of a topic came.
func (r *reader) heard(topic string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.times[topic])
}

func (r *reader) note(m *packet.Publish) {
	topic, what := string(m.Topic), string(m.Payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	times := r.times[topic]
	if times == nil {
		times = map[string]int{}
		r.times[topic] = times
		r.last[topic] = -1
	}
	times[what]++
	r.how[topic+" "+what] += fmt.Sprintf(" [%s visit %d to %s: id %d QoS %d dup %v]", time.Now().Format("05.000"), r.visits, r.conn.RemoteAddr(), m.ID, m.QoS, m.Dup)
	if times[what] > 1 {
		return
	}
	if n, err := strconv.Atoi(what); err == nil {
		if n < r.last[topic] {
			r.late[topic]++
		}
		r.last[topic] = max(r.last[topic], n)
	}
}

// reads reports whether r is to be sent what comes on topic.
func (r *reader) reads(topic string) bool {
	keep := strings.HasPrefix(topic, "keep/")
	switch {
	case strings.HasPrefix(r.id, "all-"):
		return true
	case strings.HasPrefix(r.id, "narrow-"):
		return !keep || strings.HasSuffix(topic, "/q2")
	default:
		return !keep
	}
}

// disorder is how many came for the first time after a later one did.
func (r *reader) disorder(topic string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.late[topic]
}

// had is how often r was sent that.
func (r *reader) had(topic, what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.times[topic][what]
}

func (r *reader) latest(topic string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[topic]
}

// readers makes those who read all that the sources publish: alone and in groups,
// at both levels, one with little room, and one that is slow.
func (c *crash) readers(ctx context.Context) (readers []*reader) {
	for _, qos := range []packet.QoS{1, 2} {
		all := c.reader(fmt.Sprintf("all-%d", qos), qos, "load/#", "keep/#")
		roamer := c.reader(fmt.Sprintf("roamer-%d", qos), qos, "load/#")
		narrow := c.reader(fmt.Sprintf("narrow-%d", qos), qos, "load/+/+", "+/+/q2")
		narrow.receive, narrow.slow = 4, 5*time.Millisecond
		readers = append(readers, all, roamer, narrow)
		for i := range 3 {
			group := fmt.Sprintf("group-%d", qos)
			member := c.reader(fmt.Sprintf("%s-%d", group, i), qos, "$share/"+group+"/load/#")
			member.group = group
			readers = append(readers, member)
		}
	}
	for _, r := range readers {
		c.run(ctx, r.device)
	}
	return readers
}

// watcher makes who reads the wills.
func (c *crash) watcher(ctx context.Context) *reader {
	w := c.reader("watcher", 2, "will/#")
	c.run(ctx, w.device)
	return w
}

// roam has readers be away for a while.
func (c *crash) roam(ctx context.Context, readers []*reader) {
	for i := 0; ; i++ {
		r := readers[rand.IntN(len(readers))]
		away := rand.N(6 * time.Second)
		if c.long && i%8 == 7 { // the stream is cleaned meanwhile
			r, away = readers[1+6*rand.IntN(2)], 80*time.Second
		}
		r.leave(away, rand.IntN(3) == 0)
		select {
		case <-ctx.Done():
			return
		case <-time.After(away + rand.N(3*time.Second)):
		}
	}
}

// fate is what is to become of a will.
type fate int

const (
	mustCome fate = iota
	mustNotCome
	mayCome
)

// kill kills a node and starts it again. Clients with wills are at all of them.
func (c *crash) kill(ctx context.Context, round int, wills map[string]fate) {
	c.whole(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type mortal struct {
		*device
		node int
		gone chan struct{}
	}
	var mortals []*mortal
	for i, n := range c.nodes {
		for _, delay := range []uint32{0, 2} {
			d := c.device(fmt.Sprintf("mortal-%d-%s-%d", round, n.name, delay), 300*delay)
			d.addrs = func() string { return n.mqtt }
			d.will = &packet.Will{Delay: delay, Message: packet.Message{Topic: []byte("will/" + d.id), Payload: []byte("died"), QoS: 2}}
			m := &mortal{d, i, make(chan struct{})}
			c.devices.Go(func() {
				defer close(m.gone)
				_ = d.visit(ctx) // until the node dies, or ctx is done
			})
			mortals = append(mortals, m)
		}
	}
	c.until("the clients with wills are connected", func() error {
		for _, m := range mortals {
			select {
			case <-m.gone: // its node had no time for it
				continue
			default:
			}
			if ready, _, _ := m.state(); !ready {
				return fmt.Errorf("%s is not", m.id)
			}
		}
		return nil
	})
	c.wait(ctx, time.Duration(c.rng.Int64N(int64(3*time.Second))))
	victim := c.rng.IntN(len(c.nodes))
	for _, m := range mortals {
		ready, _, _ := m.state()
		switch {
		case !ready:
			wills[m.id] = mayCome
		case m.node == victim:
			wills[m.id] = mustCome
		default:
			wills[m.id] = mustNotCome
		}
	}
	n := c.nodes[victim]
	n.kill()
	for _, m := range mortals {
		if m.node != victim {
			if ready, _, _ := m.state(); !ready {
				wills[m.id] = mayCome
			}
			m.leave(0, true)
		}
	}
	down := time.Duration(c.rng.Int64N(int64(4 * time.Second)))
	if c.rng.IntN(4) == 0 && c.long {
		down += 12 * time.Second // the others do for it what is to be done
	}
	c.wait(ctx, down)
	n.process = c.m.serve(n.name)
	c.t.Logf("round %d: %s was killed, and was down for %v", round, n.name, down.Round(time.Millisecond))
}

func (c *crash) wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// keeps checks that the retained messages are the last that were acknowledged. While
// there are more, a newer one may come instead, as one that is just published.
func (c *crash) keeps(ctx context.Context, round int, sources []*source, quiet bool) {
	c.whole(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for _, n := range c.nodes {
		r := c.reader(fmt.Sprintf("new-%d-%s", round, n.name), 0, "keep/#")
		r.will, r.expiry, r.subs[0].RetainHandling = nil, 0, packet.RetainAlways
		r.addrs = func() string { return n.mqtt }
		least := map[string]int{}
		for _, s := range sources {
			if s.retain {
				least[s.topic] = s.last()
			}
		}
		r.took = func(m *packet.Publish) {
			if m.Retain || !quiet {
				r.note(m)
			}
		}
		c.run(ctx, r.device)
		c.until("what is retained has come", func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			for topic, n := range least {
				if _, ok := r.last[topic]; !ok && n >= 0 {
					return fmt.Errorf("nothing on %s", topic)
				}
			}
			return nil
		})
		for topic, n := range least {
			if got := r.latest(topic); got < n {
				c.fault(fmt.Sprintf("%d was acknowledged on %s, and %d is retained", n, topic, got))
			}
		}
	}
}

// drain returns when all that was acknowledged has come, or nothing more comes.
func (c *crash) drain(sources []*source, readers []*reader, watch *reader, wills map[string]fate) {
	total, since := 0, time.Now()
	c.within(10*crashPatience, "all has come", func() error { // a slow disk makes slow readers
		var under []string
		for _, s := range sources {
			if _, out, _ := s.state(); out > 0 {
				under = append(under, s.String())
			}
		}
		n := 0
		for _, r := range append(slices.Clone(readers), watch) {
			ready, _, in := r.state()
			if !ready || in > 0 {
				under = append(under, r.String())
			}
			r.mu.Lock()
			for _, times := range r.times {
				n += len(times)
			}
			r.mu.Unlock()
		}
		if n != total {
			total, since = n, time.Now()
		}
		quiet := time.Since(since)
		switch {
		case len(under) > 0 && quiet < crashPatience/2:
			return fmt.Errorf("%q have something under way", under)
		case len(under) > 0:
			c.fault(fmt.Sprintf("nothing comes, and there are %q", under))
		case quiet < 45*time.Second && c.judge(sources, readers, watch, wills).missing():
			return errors.New("something is missing")
		}
		return nil
	})
}

// A tally is what a run shows, by QoS.
type tally struct {
	published, acknowledged, refused, came [3]int // came: although refused
	// Of deliveries.
	lost, twice [3]int
	// disorder is how many came after a later one, of sources that wait for each
	// acknowledgement; overtaken, of those that do not.
	disorder, overtaken [3]int

	wills, willsLost, willsWrong int
	visits                       int
	outage                       time.Duration
	faults                       []string
	examples                     []string
}

// example keeps the first few.
func (v *tally) example(format string, args ...any) {
	if len(v.examples) < 20 {
		v.examples = append(v.examples, fmt.Sprintf(format, args...))
	}
}

// missing reports whether something may still come.
func (v *tally) missing() bool { return v.lost != [3]int{} || v.willsLost > 0 }

func (v *tally) wrong() bool {
	return v.missing() || v.twice[2] > 0 || v.disorder != [3]int{} || v.willsWrong > 0 || len(v.faults) > 0
}

func (v *tally) String() string {
	return fmt.Sprintf("lost after acknowledgement, QoS 1 and 2: %d, %d; twice at QoS 2: %d (at QoS 1: %d); out of order: %d, %d (overtaken on the way: %d, %d); "+
		"wills: %d, lost %d, wrong %d; published: %d, %d; acknowledged: %d, %d; refused: %d, %d, of which %d, %d came; connections: %d; longest outage: %v; faults: %q, %q",
		v.lost[1], v.lost[2], v.twice[2], v.twice[1], v.disorder[1], v.disorder[2], v.overtaken[1], v.overtaken[2],
		v.wills, v.willsLost, v.willsWrong, v.published[1], v.published[2], v.acknowledged[1], v.acknowledged[2], v.refused[1], v.refused[2], v.came[1], v.came[2],
		v.visits, v.outage.Round(time.Millisecond), v.faults, v.examples)
}

// judge compares what was acknowledged with what came.
func (c *crash) judge(sources []*source, readers []*reader, watch *reader, wills map[string]fate) *tally {
	v := new(tally)
	c.mu.Lock()
	v.faults = slices.Clone(c.faults)
	c.mu.Unlock()
	groups := map[string][]*reader{}
	for _, r := range readers {
		name := r.group
		if name == "" {
			name = r.id
		}
		groups[name] = append(groups[name], r)
		v.visits += r.visited()
	}
	for _, s := range sources {
		v.visits += s.visited()
		s.mu.Lock()
		numbers := slices.Clone(s.numbers)
		v.outage = max(v.outage, s.outage)
		s.mu.Unlock()
		for n, what := range numbers {
			v.published[s.qos]++
			switch what {
			case wasAcknowledged:
				v.acknowledged[s.qos]++
			case wasRefused:
				v.refused[s.qos]++
				if readers[0].had(s.topic, strconv.Itoa(n)) > 0 {
					v.came[s.qos]++
				}
			}
		}
		for _, members := range groups {
			if !members[0].reads(s.topic) {
				continue
			}
			qos := min(s.qos, members[0].qos)
			first, last, none := -1, -1, 0
			for n, what := range numbers {
				times := 0
				for _, r := range members {
					times += r.had(s.topic, strconv.Itoa(n))
				}
				if times == 0 && what == wasAcknowledged {
					v.lost[qos]++
					if none++; first < 0 {
						first = n
					}
					last = n
				}
				v.twice[qos] += max(0, times-1)
				if qos == 2 && times > 1 {
					how := ""
					for _, r := range members {
						r.mu.Lock()
						how += r.how[s.topic+" "+strconv.Itoa(n)]
						r.mu.Unlock()
					}
					v.example("%s has %d of %s %d times:%s", members[0].id, n, s.topic, times, how)
				}
			}
			if none > 0 {
				v.example("%s lacks %d of %s, from %d to %d of %d", members[0].id, none, s.topic, first, last, len(numbers))
			}
			if len(members) > 1 { // they share, and have no order
				continue
			}
			if s.window == 1 {
				v.disorder[qos] += members[0].disorder(s.topic)
			} else {
				v.overtaken[qos] += members[0].disorder(s.topic)
			}
		}
	}
	for id, what := range wills {
		times := watch.had("will/"+id, "died")
		v.wills += times
		switch {
		case times == 0 && what == mustCome:
			v.willsLost++
			v.example("no will of %s", id)
		case times > 1 || times == 1 && what == mustNotCome:
			v.willsWrong++
			v.example("the will of %s came %d times", id, times)
		}
	}
	watch.mu.Lock()
	defer watch.mu.Unlock()
	for topic := range watch.times {
		if strings.HasPrefix(topic, "will/never/") {
			v.faults = append(v.faults, "there came "+topic)
		}
	}
	return v
}
