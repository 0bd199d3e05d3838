package bench

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/natsload"
)

const (
	scaleTimeout = time.Hour
	// ScaleClients is how many clients are promised, and scaleMemory what they may cost
	// the node, in GiB.
	ScaleClients, scaleMemory = 50_000, 3.0
	// filesApart are files of a process beside those of clients.
	filesApart = 600
	// crowdMost is how many clients one process has.
	crowdMost = 12_500
	// crowdAtOnce is how many are on their way to a server for the first time, of all
	// processes, and returning those who are in the storm.
	crowdAtOnce, returning = 64, 512
	// enlisting is how many users are made at once.
	enlisting = 32
	// connectPatience and stormPatience bound the time until all are connected.
	connectPatience, stormPatience = 15 * time.Minute, 10 * time.Minute
	// toldSubject is what the role of machines hears.
	toldSubject = "machines.all"
	// healthyMost is how many clients of the other nodes are watched, or a tenth of all.
	healthyMost = 3000
)

// A scale measures very many clients.
type scale struct {
	*house
	clients, rounds int
	scalePlan
	loads []string
}

// A scalePlan is how nodes share clients. One node has all of them and two are there for
// the storm, unless a process of this machine may not open as many files.
type scalePlan struct {
	holding, others int // nodes
	healthy         int // clients of the others
}

func planScale(clients, files int) (p scalePlan, err error) {
	most := files - filesApart
	if most < 100 {
		return p, fmt.Errorf("a process may open %d files here, which is not enough for clients", files)
	}
	share := func(n int) int { return (n + most - 1) / most }
	p.holding, p.healthy = share(clients), min(healthyMost, max(1, clients/10))
	// The others have a majority, so that what is durable goes on.
	p.others = max(p.holding+1, share(clients+p.healthy))
	return p, nil
}

// openFiles lets this process, and those that it starts, open as many files as need be,
// if it may, and says how many they can.
func openFiles(need int) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("asking for the limit of open files: %w", err)
	}
	if want := uint64(need); limit.Cur < want {
		raised := syscall.Rlimit{Cur: want, Max: max(want, limit.Max)}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			limit = raised
		} else if limit.Cur < limit.Max {
			raised = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
			if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
				limit = raised
			}
		}
	}
	return int(min(limit.Cur, 1<<30)), nil
}

// Scale measures how many clients a node holds, how they are told something at once,
// beside bare servers of the engine, and how they come back when their node dies. It is
// as House is.
func Scale(ctx context.Context, o Options) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, scaleTimeout)
	defer cancel()
	s := &scale{house: &house{env: o.Env, progress: o.Progress, only: o.Only, mutual: true, alone: o.Alone, effort: effort{settling: 15 * time.Second}}, clients: o.Clients, rounds: 7}
	if o.Quick {
		s.effort.settling, s.rounds = time.Second, 2
	}
	files, err := openFiles(s.clients + filesApart)
	if err != nil {
		return Report{}, err
	}
	if s.scalePlan, err = planScale(s.clients, files); err != nil {
		return Report{}, err
	}
	if s.holding > 1 {
		s.progress("a process may open %d files here, so that %d nodes share the clients; for one node: ulimit -n %d, which takes the right to raise it", files, s.holding, s.clients+filesApart)
	}
	beside := fmt.Sprintf("%d of the peer", s.holding)
	if s.alone {
		beside = "none of a peer"
	}
	s.Conditions = append(s.Conditions,
		Condition{"files", fmt.Sprintf("a process may open %d", files)},
		Condition{"nodes", fmt.Sprintf("%d have the clients, %d others are there to come to; %s; each a process of its own, release build, default settings", s.holding, s.others, beside)},
		Condition{"clients", "raw NATS over TLS 1.3, each with a key, a JWT of 24 h, and a certificate and its key of its own, one subscription; the permissions of role machine, and at most 2 connections of each user, which ours counts; they come back as the client library does: at once to the next server, 2 s and up to 1 s by chance after a round, 2 s to connect and 2 s to log in"},
		Condition{"client side", fmt.Sprintf("processes of %d clients at most, on the same processors; %d under way at once as they connect first, %d in the storm; a server's certificate is verified once for all of a process", crowdMost, crowdAtOnce, returning)})
	report, err := s.measure(ctx, []part{{"measuring very many clients", s.measureScale}})
	report.Conditions = append(report.Conditions, Condition{"load", strings.Join(s.loads, "; ")})
	return report, err
}

// loaded notes how busy the machine is.
func (s *scale) loaded(when string) {
	text, err := os.ReadFile("/proc/loadavg")
	if words := strings.Fields(string(text)); err == nil && len(words) > 0 {
		s.loads = append(s.loads, when+" "+words[0])
	}
}

// A throng is clients of one system, in processes of their own.
type throng struct {
	of    *system
	total int
	all   []*swarm
}

// A swarm is one process of clients.
type swarm struct {
	child
	in     io.Closer
	latest atomic.Pointer[natsload.Status]
}

func (c *throng) stop() {
	for _, s := range c.all {
		s.in.Close()
	}
	for _, s := range c.all {
		s.child.stop()
	}
}

// status adds up what all processes say.
func (c *throng) status() natsload.Status {
	sum := natsload.Status{Failed: map[string]int{}, Connected: make([]int, len(c.of.urls))}
	for _, s := range c.all {
		one := s.latest.Load()
		if one == nil {
			continue
		}
		for i, n := range one.Connected {
			sum.Connected[i] += n
		}
		sum.Lost += one.Lost
		for reason, n := range one.Failed {
			sum.Failed[reason] += n
		}
		if one.Tag > sum.Tag {
			sum.Tag, sum.Heard, sum.Last = one.Tag, 0, 0
		}
		if one.Tag == sum.Tag {
			sum.Heard += one.Heard
			sum.Last = max(sum.Last, one.Last)
		}
	}
	return sum
}

// connected counts those that are connected to servers from first on.
func connected(s natsload.Status, first int) (n int) {
	for _, c := range s.Connected[first:] {
		n += c
	}
	return n
}

// failures are those of a status, as text.
func failures(s natsload.Status) string {
	var all []string
	for reason, n := range s.Failed {
		all = append(all, fmt.Sprintf("%d× %s", n, reason))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// attract starts clients of a system: those of the members in a file from first on, which
// begin at homes.
func (s *scale) attract(ctx context.Context, of *system, path string, first, count int, homes []int) (*throng, error) {
	c := &throng{of: of, total: count}
	var servers []string
	for _, url := range of.urls {
		servers = append(servers, strings.TrimPrefix(url, "tls://"))
	}
	processes := (count + crowdMost - 1) / crowdMost
	for i := range processes {
		from := i * count / processes
		config := natsload.Config{
			Members: path, First: first + from, Count: (i+1)*count/processes - from, Trust: string(of.trustPEM), Servers: servers, Homes: homes,
			// Addresses on loopback are anybody's; each has ports of its own.
			From:    []net.IP{net.IPv4(127, 1, byte(first>>16), byte(2*i+1)), net.IPv4(127, 1, byte(first>>16), byte(2*i+2))},
			Subject: "machines.>", AtOnce: max(1, crowdAtOnce/processes), Returning: max(1, returning/processes),
		}
		one, err := s.swarm(ctx, config)
		if err != nil {
			c.stop()
			return nil, err
		}
		c.all = append(c.all, one)
	}
	return c, nil
}

// swarm starts a process of clients.
func (s *scale) swarm(ctx context.Context, config natsload.Config) (*swarm, error) {
	const what = "starting clients"
	one := &swarm{child: child{ended: make(chan struct{})}}
	one.cmd = exec.CommandContext(ctx, s.fleetbus, "bench", "clients")
	one.cmd.Env = s.env
	one.cmd.Stderr = os.Stderr
	in, err1 := one.cmd.StdinPipe()
	out, err2 := one.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	one.in = in
	if err := one.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	go func() {
		defer close(one.ended)
		for decoder := json.NewDecoder(out); ; {
			status := &natsload.Status{}
			if decoder.Decode(status) != nil {
				break // it ended, and is waited for
			}
			one.latest.Store(status)
		}
		_ = one.cmd.Wait() // it was stopped
	}()
	if err := json.NewEncoder(in).Encode(config); err != nil {
		one.child.stop()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return one, nil
}

// await waits until done says so of the clients' status, and tells of it now and then.
func (s *scale) await(ctx context.Context, c *throng, what string, patience time.Duration, first int, done func(natsload.Status) bool) (natsload.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	began, told := time.Now(), time.Now()
	for {
		now := c.status()
		if done(now) {
			return now, nil
		}
		for _, one := range c.all {
			select {
			case <-one.ended:
				return now, fmt.Errorf("%s: a process of clients ended", what)
			default:
			}
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			s.progress("%s: %d of %d after %d s; %s", what, connected(now, first), c.total, int(time.Since(began).Seconds()), failures(now))
		}
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("%s: %d of %d in %v; %s", what, connected(now, first), c.total, time.Since(began).Round(time.Second), failures(now))
		case <-tick.C:
		}
	}
}

// usage is the memory, in KiB, and the processor time, in seconds, of processes.
func usage(children []*child) (kib, seconds float64, err error) {
	for _, c := range children {
		k, err := memoryOf(c.cmd.Process.Pid)
		if err != nil {
			return 0, 0, err
		}
		t, _ := workOf(c.cmd.Process.Pid)
		kib, seconds = kib+k, seconds+t
	}
	return kib, seconds, nil
}

func (c *throng) children() (all []*child) {
	for _, s := range c.all {
		all = append(all, &s.child)
	}
	return all
}

// A held is what it took to hold clients.
type held struct {
	seconds            float64 // until all were connected
	before, after      float64 // memory of the nodes, in KiB
	worked, clientWork float64 // processor time for a login, in ms, of both sides
	clientKiB          float64
}

// hold connects clients to the first nodes of a system, and takes what they cost.
func (s *scale) hold(ctx context.Context, of *system, path string) (*throng, held, error) {
	var got held
	nodes := of.children[:s.holding]
	if err := pause(ctx, s.effort.settling); err != nil {
		return nil, got, err
	}
	before, worked, err := usage(nodes)
	if err != nil {
		return nil, got, err
	}
	homes := make([]int, s.holding)
	for i := range homes {
		homes[i] = i
	}
	s.loaded(of.name + " connecting")
	began := time.Now()
	c, err := s.attract(ctx, of, path, 0, s.clients, homes)
	if err != nil {
		return nil, got, err
	}
	if _, err := s.await(ctx, c, "connecting to "+of.name, connectPatience, 0, func(now natsload.Status) bool { return connected(now, 0) == s.clients }); err != nil {
		c.stop()
		return nil, got, err
	}
	got.seconds = time.Since(began).Seconds()
	s.loaded(of.name + " connected")
	err = pause(ctx, s.effort.settling)
	if err == nil {
		var after, work, kib, client float64
		after, work, err = usage(nodes)
		if err == nil {
			kib, client, err = usage(c.children())
		}
		each := 1000 / float64(s.clients)
		got = held{got.seconds, before, after, (work - worked) * each, client * each, kib}
	}
	if err != nil {
		c.stop()
	}
	return c, got, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// tell publishes something to all clients, and returns how long it took until the last
// had it, in ms.
func (s *scale) tell(ctx context.Context, c *throng, nc *nats.Conn, tag string) (float64, error) {
	began := time.Now()
	if err := nc.Publish(toldSubject, []byte(tag)); err != nil {
		return 0, fmt.Errorf("publishing to all: %w", err)
	}
	if err := nc.Flush(); err != nil {
		return 0, fmt.Errorf("publishing to all: %w", err)
	}
	now, err := s.await(ctx, c, "telling all of "+c.of.name, time.Minute, 0, func(now natsload.Status) bool { return now.Tag == tag && now.Heard >= c.total })
	return milliseconds(time.Unix(0, now.Last).Sub(began)), err
}

func (s *scale) measureScale(ctx context.Context) error {
	ours, err := s.fleet(s.holding + s.others)
	if err != nil {
		return err
	}
	defer ours.stop()
	if err := errors.Join(ours.start(ctx), ours.open(ctx)); err != nil {
		return err
	}
	members := filepath.Join(s.dir, "members")
	if err := s.enlistAll(ctx, ours, members); err != nil {
		return err
	}
	clients, mine, err := s.hold(ctx, ours, members)
	if err != nil {
		return err
	}
	defer clients.stop()
	if err := s.accountInfo(ctx, ours); err != nil {
		return err
	}
	if s.alone {
		s.holdFigures(mine, held{})
	} else if err := s.measurePeer(ctx, ours, clients, mine); err != nil {
		return err
	}
	return s.storm(ctx, ours, clients, members)
}

// measurePeer holds as many clients with bare servers, and tells all clients of both
// something, in turns.
func (s *scale) measurePeer(ctx context.Context, ours *system, clients *throng, mine held) error {
	peer, err := s.peers(s.holding)
	if err != nil {
		return err
	}
	defer peer.stop()
	members := filepath.Join(s.dir, "peer-members")
	if err := s.enlistPeers(ctx, peer, members); err != nil {
		return err
	}
	if err := errors.Join(peer.start(ctx), peer.open(ctx)); err != nil {
		return err
	}
	other, theirs, err := s.hold(ctx, peer, members)
	if err != nil {
		return err
	}
	defer other.stop()
	s.holdFigures(mine, theirs)
	var took [2][]float64
	var conns [2]*nats.Conn
	for i, of := range []*system{ours, peer} {
		if conns[i], err = of.dial(ctx, of.urls[:1], of.user); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	s.loaded("telling all")
	for round := range 1 + s.rounds {
		for i, c := range []*throng{clients, other} {
			ms, err := s.tell(ctx, c, conns[i], fmt.Sprintf("%06d", round))
			if err != nil {
				return err
			}
			if round > 0 { // the first is to warm up
				took[i] = append(took[i], ms)
			}
		}
	}
	f := versus(fmt.Sprintf("broadcast to %d, published to last received", s.clients), "ms", took[0], took[1])
	s.Figures = append(s.Figures, f.atMost(2000), Figure{Name: "  the slowest of them", Unit: "ms", Ours: slices.Max(took[0]), Peer: slices.Max(took[1])})
	return nil
}

// holdFigures are what it takes to hold clients.
func (s *scale) holdFigures(mine, theirs held) {
	node := "one node"
	if s.holding > 1 {
		node = fmt.Sprintf("%d nodes together", s.holding)
	}
	versus := func(name, unit string, ours, peer float64) Figure {
		f := Figure{Name: name, Unit: unit, Ours: ours, Peer: peer}
		if peer > 0 {
			f.Ratio = ours / peer
		}
		return f
	}
	const gib = 1 << 20
	n := float64(s.clients)
	s.Figures = append(s.Figures,
		versus(fmt.Sprintf("%d clients held by %s, memory", s.clients, node), "GiB", mine.after/gib, theirs.after/gib).atMost(scaleMemory*n/ScaleClients),
		versus("  of it for each client", "KiB", (mine.after-mine.before)/n, (theirs.after-theirs.before)/n),
		versus("  memory of the client side", "GiB", mine.clientKiB/gib, theirs.clientKiB/gib),
		versus("until all were connected", "s", mine.seconds, theirs.seconds),
		versus("processor time of a login, the node's", "ms", mine.worked, theirs.worked),
		versus("processor time of a login, the client side's", "ms", mine.clientWork, theirs.clientWork))
}

// accountInfo takes how long the fleet needs to tell of the account.
func (s *scale) accountInfo(ctx context.Context, of *system) error {
	nc, err := of.dial(ctx, of.urls, admin.UserCredentials(of.admin))
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	began := time.Now()
	info, err := admin.New(nc).Account(ctx, benchAccount)
	took := time.Since(began)
	if err == nil && (info.Connections < s.clients || len(info.Errors) > 0) {
		err = fmt.Errorf("it tells of %d connections, %v", info.Connections, info.Errors)
	}
	if err != nil {
		return fmt.Errorf("asking for the account: %w", err)
	}
	s.Figures = append(s.Figures, Figure{Name: fmt.Sprintf("account info with %d connections", info.Connections), Unit: "ms", Ours: milliseconds(took)})
	return nil
}

// storm kills the nodes that have the clients, and takes the time until the others have
// them, who have some of their own.
func (s *scale) storm(ctx context.Context, of *system, clients *throng, path string) error {
	homes := make([]int, s.others)
	for i := range homes {
		homes[i] = s.holding + i
	}
	healthy, err := s.attract(ctx, of, path, s.clients, s.healthy, homes)
	if err != nil {
		return err
	}
	defer healthy.stop()
	here := func(n int) func(natsload.Status) bool {
		return func(now natsload.Status) bool { return connected(now, s.holding) == n }
	}
	if _, err := s.await(ctx, healthy, "connecting to the other nodes", connectPatience, s.holding, here(s.healthy)); err != nil {
		return err
	}
	before := healthy.status().Lost
	s.loaded("before the storm")
	began := time.Now()
	for _, c := range of.children[:s.holding] {
		c.stop()
	}
	now, err := s.await(ctx, clients, "coming back", stormPatience, s.holding, here(s.clients))
	took := time.Since(began)
	s.loaded("after the storm")
	if err != nil {
		return err
	}
	lost := healthy.status().Lost - before
	attempts := 0
	for _, n := range now.Failed {
		attempts += n
	}
	s.Figures = append(s.Figures,
		Figure{Name: fmt.Sprintf("storm: %d clients of %d killed to %d others, all back", s.clients, s.holding, s.others), Unit: "s", Ours: took.Seconds()}.atMost(120),
		Figure{Name: "  attempts of each client", Ours: 1 + float64(attempts)/float64(s.clients)},
		Figure{Name: fmt.Sprintf("storm: %d healthy clients, disconnected", s.healthy), Ours: float64(lost)}.aim("0", lost == 0))
	s.Conditions = append(s.Conditions, Condition{"failed attempts", failures(now)})
	return nil
}

// A candidate is a member that is not one yet.
type candidate struct {
	member natsload.Member
	public string
	csr    *x509.CertificateRequest
}

func newCandidate() (c candidate, err error) {
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return c, err
	}
	key, err := identity.NewKey()
	if err != nil {
		return c, fmt.Errorf("making a key: %w", err)
	}
	if c.csr, err = identity.NewCSR(key); err != nil {
		return c, err
	}
	c.public, c.member.Seed = public, seed
	c.member.Key, err = x509.MarshalPKCS8PrivateKey(key)
	return c, err
}

// certified is a member with that certificate, in PEM.
func (c candidate) certified(token, chain string) natsload.Member {
	c.member.JWT = token
	for block, rest := pem.Decode([]byte(chain)); block != nil; block, rest = pem.Decode(rest) {
		c.member.Chain = append(c.member.Chain, block.Bytes)
	}
	return c.member
}

func machine(i int) string { return "m" + strconv.Itoa(i) }

// deviceRole is the role of machines, with a number of connections for each user, which
// nodes have to count.
const deviceRole = "device"

func machineRole() identity.Role {
	roles := identity.BuiltinRoles()
	return roles[slices.IndexFunc(roles, func(r identity.Role) bool { return r.Name == identity.RoleMachine })]
}

// enlistAll makes a user of each client by the API, as user add does.
func (s *scale) enlistAll(ctx context.Context, of *system, path string) error {
	nc, err := of.dial(ctx, of.urls, admin.UserCredentials(of.admin))
	if err != nil {
		return err
	}
	defer nc.Close()
	role := identity.Role{Name: deviceRole, Permissions: machineRole().Permissions, Limits: identity.Limits{Connections: 2}, Expires: 24 * time.Hour}
	if _, err := admin.New(nc).AddRole(ctx, role); err != nil {
		return fmt.Errorf("making a role: %w", err)
	}
	api, members := admin.New(nc), make([]natsload.Member, s.clients+s.healthy)
	took := make([]time.Duration, len(members))
	s.loaded("making users")
	_, worked, err := usage(of.children)
	if err != nil {
		return err
	}
	began := time.Now()
	err = s.each(ctx, "making users", len(members), enlisting, func(ctx context.Context, i int) error {
		c, err := newCandidate()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		began := time.Now()
		reply, err := api.AddUser(ctx, admin.UserRequest{
			Name: benchAccount + "/" + machine(i), Role: deviceRole, Key: c.public,
			CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.csr.Raw})),
		})
		if err != nil {
			return fmt.Errorf("making user %d: %w", i, err)
		}
		took[i], members[i] = time.Since(began), c.certified(reply.JWT, reply.Chain)
		return nil
	})
	if err != nil {
		return err
	}
	all := time.Since(began)
	_, work, err := usage(of.children)
	if err != nil {
		return err
	}
	early, late := slices.Clone(took[:len(took)/10]), slices.Clone(took[len(took)-len(took)/10:])
	s.Figures = append(s.Figures,
		Figure{Name: fmt.Sprintf("users made by the API, %d at once", enlisting), Unit: "/s", Ours: float64(len(members)) / all.Seconds()},
		Figure{Name: "  processor time of one, of all nodes together", Unit: "ms", Ours: (work - worked) * 1000 / float64(len(members))},
		Figure{Name: "  the last tenth of them against the first, p50", Unit: "ms", Ours: milliseconds(percentile(late, 0.5)), Peer: milliseconds(percentile(early, 0.5))})
	return natsload.WriteMembers(path, members)
}

// enlistPeers makes users of bare servers, which know none by name.
func (s *scale) enlistPeers(ctx context.Context, of *system, path string) error {
	members := make([]natsload.Member, s.clients)
	role, now := machineRole(), time.Now()
	err := s.each(ctx, "making users of the peer", len(members), 2, func(_ context.Context, i int) error {
		c, err := newCandidate()
		if err != nil {
			return err
		}
		token, err := of.authority.UserJWT(of.account, role, machine(i), c.public, now.Add(24*time.Hour))
		if err != nil {
			return err
		}
		chain, err := of.authority.SignUser(c.csr, benchAccount, machine(i), 24*time.Hour, now)
		members[i] = c.certified(token, string(chain))
		return err
	})
	if err != nil {
		return err
	}
	return natsload.WriteMembers(path, members)
}

// each does something n times, some at once, until one fails.
func (s *scale) each(ctx context.Context, what string, n, atOnce int, do func(context.Context, int) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				if i > 0 && i%5000 == 0 {
					s.progress("%s: %d of %d", what, i, n)
				}
				if err := do(ctx, i); err != nil {
					fail(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}
