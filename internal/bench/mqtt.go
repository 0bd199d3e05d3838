package bench

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/bareserver"
	"github.com/fleetbus/fleetbus/internal/mqttload"
)

// A mqttBroker is a system that speaks MQTT, over TLS.
type mqttBroker struct {
	*system
	mqttload.Broker
}

// MQTT measures the MQTT of this project's servers, of the engine's own and of
// mosquitto, where it is installed. It is as House is.
func MQTT(ctx context.Context, o Options) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, mqttTimeout)
	defer cancel()
	h := &house{env: o.Env, progress: o.Progress, only: o.Only, effort: effort{rounds: 5, idle: 2000, settling: 5 * time.Second}}
	if o.Quick {
		h.effort = effort{rounds: 1, idle: 100, settling: 500 * time.Millisecond}
	}
	h.Conditions = append(h.Conditions,
		Condition{"client", "the same for all: MQTT 3.1.1 over TLS 1.3, in one process; messages of 256 B"},
		Condition{"ours", "fleetbus serve, release build; clients show a certificate; it writes and syncs each message before it is acknowledged, unless it says lazy"},
		Condition{"nats-server", "its MQTT, built alike, not syncing each message unless it says synced"},
		Condition{"mosquitto", "Debian's, persistence on, which writes at intervals"},
		Condition{"mochi", "the library's newest release that can be had, in a program that does nothing else; for memory only"},
		Condition{"rounds", fmt.Sprintf("%d, each load on all in turn, after one to warm up; medians, and the quartiles of the ratios of rounds as spread", h.effort.rounds)})
	return h.measure(ctx, []part{
		{"measuring one node against its peers", h.measureOneMQTT},
		{"measuring three nodes against the engine's", h.measureThreeMQTT},
		{"measuring idle clients", h.measureIdleMQTT},
	})
}

// mqttFleet runs n nodes of ours.
func (h *house) mqttFleet(ctx context.Context, n int, flags ...string) (*mqttBroker, error) {
	s, addrs, config, err := h.listening(ctx, n, "mqtt", flags...)
	if err != nil {
		return nil, err
	}
	b := &mqttBroker{s, mqttload.Broker{Addrs: addrs, TLS: config}}
	return b, b.await(ctx)
}

// listening runs n nodes of ours with a listener of a protocol, and returns where each
// listens and the TLS settings of a user with a certificate.
func (h *house) listening(ctx context.Context, n int, protocol string, flags ...string) (s *system, addrs []string, config *tls.Config, err error) {
	if s, err = h.fleet(n); err != nil {
		return nil, nil, nil, err
	}
	if _, addrs, err = h.place(n); err != nil {
		return nil, nil, nil, err
	}
	for i := range s.lines {
		s.lines[i] = append(append(s.lines[i], "--listeners-"+protocol+"-addr", addrs[i]), flags...)
	}
	if err := s.run(ctx); err != nil {
		return nil, nil, nil, err
	}
	cert, err := s.device(ctx)
	if err != nil {
		s.stop()
		return nil, nil, nil, err
	}
	config = s.trust.Clone()
	config.Certificates = []tls.Certificate{cert}
	return s, addrs, config, nil
}

// device makes a user with a certificate.
func (s *system) device(ctx context.Context) (cert tls.Certificate, err error) {
	nc, err := s.dial(ctx, s.urls, admin.UserCredentials(s.admin))
	if err != nil {
		return cert, err
	}
	defer nc.Close()
	key, err := identity.NewKey()
	if err != nil {
		return cert, fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return cert, fmt.Errorf("requesting a certificate: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	reply, err := admin.New(nc).AddUser(ctx, admin.UserRequest{
		Name: benchAccount + "/device", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})),
	})
	if err != nil {
		return cert, fmt.Errorf("making a user: %w", err)
	}
	cert.PrivateKey = key
	for block, rest := pem.Decode([]byte(reply.Chain)); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert, nil
}

// mqttPeers runs n bare servers of the engine.
func (h *house) mqttPeers(ctx context.Context, n int, sync string) (*mqttBroker, error) {
	dir, addrs, err := h.place(3 * n)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	authority, _, err := identity.NewAuthority(benchAccount, now)
	if err != nil {
		return nil, err
	}
	s := &system{name: "nats-server", dir: dir, env: slices.Clone(h.env)}
	b := &mqttBroker{s, mqttload.Broker{TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.ClientRoots()}}}
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("%q", "nats-route://"+addrs[3*i+1]))
	}
	for i := range n {
		node := filepath.Join(dir, fmt.Sprintf("n%d", i+1))
		if err := bareserver.WriteCertificates(authority, node, filepath.Base(node), "127.0.0.1", time.Hour, now); err != nil {
			return nil, err
		}
		config := fmt.Sprintf(`server_name: n%d
listen: %q
jetstream { store_dir: %q%s }
mqtt { listen: %q, tls { cert_file: %q, key_file: %q } }
`, i+1, addrs[3*i], node, sync, addrs[3*i+2], node+"-server.pem", node+".key")
		if n > 1 {
			config += fmt.Sprintf(`cluster {
  name: bench, listen: %q, routes: [%s]
  tls { cert_file: %q, key_file: %q, ca_file: %q, min_version: "1.3", verify: true, insecure: true }
}
`, addrs[3*i+1], strings.Join(routes, ", "), node+"-mesh.pem", node+".key", node+"-mesh-ca.pem")
		}
		if err := os.WriteFile(node+".conf", []byte(config), 0o600); err != nil {
			return nil, fmt.Errorf("writing settings: %w", err)
		}
		s.lines = append(s.lines, []string{h.peer, "-c", node + ".conf"})
		b.Addrs = append(b.Addrs, addrs[3*i+2])
	}
	if err := s.start(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return b, b.await(ctx)
}

// errMissing says that a peer is not installed.
var errMissing = errors.New("it is not installed")

// mosquitto runs the broker of that name.
func (h *house) mosquitto(ctx context.Context) (*mqttBroker, error) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		if program = "/usr/sbin/mosquitto"; !exists(program) {
			return nil, errMissing
		}
	}
	b, node, err := h.foreign("mosquitto")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(b.Addrs[0])
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`listener %s 127.0.0.1
allow_anonymous true
certfile %s
keyfile %s
persistence true
persistence_location %s/
max_queued_messages 0
max_inflight_messages 0
`, port, node+"-server.pem", node+".key", b.dir)
	if os.Geteuid() == 0 {
		config += "user root\n" // or it gives up the right to read its key
	}
	if err := os.WriteFile(node+".conf", []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("writing settings: %w", err)
	}
	return b, b.serve(ctx, program, "-c", node+".conf")
}

// mochi runs the broker of that name. Its program is a module of its own: nobody else
// links it.
func (h *house) mochi(ctx context.Context) (*mqttBroker, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/fleetbus/fleetbus")
	cmd.Env = slices.Clone(h.env)
	root, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("looking for the source tree: %w", err)
	}
	program := filepath.Join(h.dir, "mochi")
	if err := h.compile(ctx, filepath.Join(strings.TrimSpace(string(root)), ".ci", "mochi"), program, "."); err != nil {
		return nil, err
	}
	b, node, err := h.foreign("mochi")
	if err != nil {
		return nil, err
	}
	return b, b.serve(ctx, program, "-addr", b.Addrs[0], "-cert", node+"-server.pem", "-key", node+".key")
}

// foreign makes a home for one node of a broker that is no part of the engine. Its files
// begin with node.
func (h *house) foreign(name string) (b *mqttBroker, node string, err error) {
	dir, addrs, err := h.place(1)
	if err != nil {
		return nil, "", err
	}
	authority, _, err := identity.NewAuthority(benchAccount, time.Now())
	if err != nil {
		return nil, "", err
	}
	node = filepath.Join(dir, "n1")
	if err := bareserver.WriteCertificates(authority, node, filepath.Base(node), "127.0.0.1", time.Hour, time.Now()); err != nil {
		return nil, "", err
	}
	return &mqttBroker{
		&system{name: name, dir: dir, env: slices.Clone(h.env)},
		mqttload.Broker{Addrs: addrs, TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.ClientRoots()}},
	}, node, nil
}

// serve starts the broker's one node. On error nothing is left of it.
func (b *mqttBroker) serve(ctx context.Context, line ...string) error {
	b.lines = [][]string{line}
	if err := b.start(ctx); err != nil {
		b.stop()
		return err
	}
	return b.await(ctx)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// await returns when every node carries a message of QoS 1. On error nothing is
// left of the broker.
func (b *mqttBroker) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for i := range b.Addrs {
		err := b.eventually(ctx, "waiting for MQTT of "+b.name, dialTimeout, func(ctx context.Context) error {
			c, err := b.Connect(ctx, i, fmt.Sprintf("await-%d", i))
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Echo(fmt.Sprintf("await/%d", i))
		})
		if err != nil {
			b.stop()
			return err
		}
	}
	return nil
}

// A mqttTrial is a load and what is to come of it.
type mqttTrial struct {
	name, unit string
	do         func(context.Context, *mqttload.Broker) (float64, error)
	on         []int // indexes of brokers; the first is ours
	aim        func(f Figure, peer string) Figure
	// messages are how many there are in a load whose work is measured too; 0: it is not.
	messages float64
}

// compare does the trials in turns, and adds their figures.
func (h *house) compare(ctx context.Context, brokers []*mqttBroker, trials []mqttTrial) error {
	values, work := make([][][]float64, len(trials)), make([][][]float64, len(trials))
	for i := range trials {
		values[i], work[i] = make([][]float64, len(brokers)), make([][]float64, len(brokers))
	}
	for round := range 1 + h.effort.rounds {
		for i, t := range trials {
			for turn := range t.on {
				which := t.on[(round+turn)%len(t.on)]
				try, cancel := context.WithTimeout(ctx, time.Minute)
				before, _ := brokers[which].worked()
				got, err := t.do(try, &brokers[which].Broker)
				cancel()
				if err != nil {
					return fmt.Errorf("%s of %s, round %d: %w", t.name, brokers[which].name, round, err)
				}
				if after, ok := brokers[which].worked(); ok && round > 0 && t.messages > 0 {
					work[i][which] = append(work[i][which], (after-before)*1e6/t.messages)
				}
				if round > 0 {
					values[i][which] = append(values[i][which], got)
				}
			}
		}
	}
	for i, t := range trials {
		for _, peer := range t.on[1:] {
			f := versus(t.name+", "+brokers[t.on[0]].name+" / "+brokers[peer].name, t.unit, values[i][t.on[0]], values[i][peer])
			h.Figures = append(h.Figures, t.aim(f, brokers[peer].name))
			if ours, theirs := work[i][t.on[0]], work[i][peer]; len(ours) > 0 && len(theirs) > 0 {
				h.Figures = append(h.Figures, versus(t.name+", processor time of the broker, "+brokers[t.on[0]].name+" / "+brokers[peer].name, "µs a message", ours, theirs))
			}
		}
	}
	return nil
}

func (h *house) measureOneMQTT(ctx context.Context) error {
	var brokers []*mqttBroker
	defer func() {
		for _, b := range brokers {
			b.stop()
		}
	}()
	add := func(name string, b *mqttBroker, err error) error {
		if err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		b.name = name
		brokers = append(brokers, b)
		return nil
	}
	ours, err := h.mqttFleet(ctx, 1)
	if err := add("ours", ours, err); err != nil {
		return err
	}
	lazy, err := h.mqttFleet(ctx, 1, "--mqtt-lazy-sync")
	if err := add("ours, lazy", lazy, err); err != nil {
		return err
	}
	peer, err := h.mqttPeers(ctx, 1, "")
	if err := add("nats-server", peer, err); err != nil {
		return err
	}
	quick, slow, all := []int{0, 2}, []int{1, 2}, []int{0, 2}
	mosquitto, err := h.mosquitto(ctx)
	if errors.Is(err, errMissing) {
		h.progress("mosquitto is not installed, and not measured")
	} else if err := add("mosquitto", mosquitto, err); err != nil {
		return err
	} else {
		quick, slow, all = append(quick, 3), append(slow, 3), append(all, 3)
	}
	atLeast := func(least map[string]float64) func(Figure, string) Figure {
		return func(f Figure, peer string) Figure {
			return f.aim("ratio "+Significant(least[peer])+" or more", f.Ratio >= least[peer])
		}
	}
	aimless := func(f Figure, _ string) Figure { return f }
	same := map[string]float64{"mosquitto": 1, "nats-server": 1}
	const many = 100_000
	return h.compare(ctx, brokers, []mqttTrial{
		{"QoS 0, one to one", "messages/s", mqttload.Load{QoS: 0, Receivers: 1, N: many, Ahead: 10_000}.Carry, quick, atLeast(map[string]float64{"mosquitto": 2, "nats-server": 0.8}), many},
		{"QoS 0, fan-out to 50", "deliveries/s", mqttload.Load{QoS: 0, Receivers: 50, N: 3000, Ahead: 200}.Carry, quick, atLeast(map[string]float64{"mosquitto": 4, "nats-server": 0.8}), 0},
		{"QoS 1", "messages/s", mqttload.Load{QoS: 1, Receivers: 1, N: 20_000, Ahead: 500}.Carry, slow, atLeast(same), 0},
		{"QoS 2", "messages/s", mqttload.Load{QoS: 2, Receivers: 1, N: 3000, Ahead: 15}.Carry, slow, atLeast(same), 0},
		{"QoS 1", "messages/s", mqttload.Load{QoS: 1, Receivers: 1, N: 4000, Ahead: 500}.Carry, all, aimless, 0},
		{"QoS 2", "messages/s", mqttload.Load{QoS: 2, Receivers: 1, N: 500, Ahead: 15}.Carry, all, aimless, 0},
	})
}

func (h *house) measureThreeMQTT(ctx context.Context) error {
	ours, err := h.mqttFleet(ctx, 3)
	if err != nil {
		return err
	}
	defer ours.stop()
	ours.name = "ours"
	synced, err := h.mqttPeers(ctx, 3, ", sync_interval: always")
	if err != nil {
		return err
	}
	defer synced.stop()
	synced.name = "nats-server, synced"
	peer, err := h.mqttPeers(ctx, 3, "")
	if err != nil {
		return err
	}
	defer peer.stop()
	peer.name = "nats-server"
	lazy, err := h.mqttFleet(ctx, 3, "--store-lazy-sync")
	if err != nil {
		return err
	}
	defer lazy.stop()
	lazy.name = "ours, lazy"
	sooner := func(f Figure, _ string) Figure { return f.aim("ratio 1.1 or less", f.Ratio <= 1.1) }
	l := mqttload.Load{QoS: 1, N: 300}
	return h.compare(ctx, []*mqttBroker{ours, synced, peer, lazy}, []mqttTrial{
		{"QoS 1 across three nodes, p50", "ms", l.Echoes, []int{0, 1}, sooner, 0},
		{"QoS 1 across three nodes, p50", "ms", l.Echoes, []int{3, 2}, sooner, 0},
	})
}

// measureIdleMQTT takes the memory of idle clients with one subscription.
func (h *house) measureIdleMQTT(ctx context.Context) error {
	var ours float64
	for _, broker := range []struct {
		name  string
		start func(context.Context) (*mqttBroker, error)
	}{
		{"ours", func(ctx context.Context) (*mqttBroker, error) { return h.mqttFleet(ctx, 1) }},
		{"nats-server", func(ctx context.Context) (*mqttBroker, error) { return h.mqttPeers(ctx, 1, "") }},
		{"mosquitto", h.mosquitto},
		{"mochi", h.mochi},
	} {
		b, err := broker.start(ctx)
		if errors.Is(err, errMissing) {
			continue
		}
		if err != nil {
			return fmt.Errorf("starting %s: %w", broker.name, err)
		}
		kib, err := h.idleMQTT(ctx, b)
		b.stop()
		if err != nil {
			return fmt.Errorf("measuring %s: %w", broker.name, err)
		}
		if broker.name == "ours" {
			ours = kib
			continue
		}
		f := Figure{Name: "idle client with one subscription, memory of the node, ours / " + broker.name, Unit: "KiB", Ours: ours, Peer: kib, Ratio: ours / kib}
		h.Figures = append(h.Figures, f.atMost(60))
	}
	h.Conditions = append(h.Conditions, Condition{"idle clients", fmt.Sprintf("resident memory of a fresh node with %d of them less that without, each after %v", h.effort.idle, h.effort.settling)})
	return nil
}

func (h *house) idleMQTT(ctx context.Context, b *mqttBroker) (float64, error) {
	before, err := b.resident(ctx, h.effort.settling)
	if err != nil {
		return 0, err
	}
	pace := rate.NewLimiter(handshakes, 1)
	for i := range h.effort.idle {
		if err := pace.Wait(ctx); err != nil {
			return 0, fmt.Errorf("connecting clients: %w", err)
		}
		c, err := b.Connect(ctx, 0, fmt.Sprintf("idle-%d", i))
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if err := c.Subscribe(0, fmt.Sprintf("idle/%d", i)); err != nil {
			return 0, err
		}
	}
	after, err := b.resident(ctx, h.effort.settling)
	return (after - before) / float64(h.effort.idle), err
}
