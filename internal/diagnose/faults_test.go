package diagnose_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/diagnose"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// found are the codes of results, those that others explain too.
func found(all []doctor.Result) (codes []string) {
	for _, r := range all {
		if r.Code != "" {
			codes = append(codes, r.Code)
		}
		codes = append(codes, found(r.Explains)...)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// list writes results for people.
func list(all []doctor.Result) (text string) {
	for _, r := range all {
		if r.Code != "" {
			text += fmt.Sprintf("\n%s %s %s: %s", r.State, r.Code, r.Subject, r.Evidence)
		}
		text += strings.ReplaceAll(list(r.Explains), "\n", "\n    ")
	}
	return text
}

// A patient is a fleet of a test.
type patient struct {
	t     *testing.T
	nodes []*fleetbustest.Server
	c     *admin.Client
}

// examine asks the fleet and judges it, as if it were so much later.
func (p patient) examine(later time.Duration) []doctor.Result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	f := diagnose.Gather(ctx, p.c)
	f.Now = f.Now.Add(later)
	return doctor.Fold(diagnose.Judge(f))
}

// shows waits until the doctor says all of codes.
func (p patient) shows(later time.Duration, codes ...string) []doctor.Result {
	p.t.Helper()
	var all []doctor.Result
	fleetbustest.Eventually(p.t, strings.Join(codes, ", "), func() error {
		all = p.examine(later)
		for _, code := range codes {
			if !slices.Contains(found(all), code) {
				return fmt.Errorf("no %s in %s", code, list(all))
			}
		}
		return nil
	})
	return all
}

// explained are what a result of that code explains.
func explained(all []doctor.Result, code string) (codes []string) {
	for _, r := range all {
		if r.Code == code {
			codes = append(codes, found(r.Explains)...)
		}
		codes = append(codes, explained(r.Explains, code)...)
	}
	return codes
}

// database is one that fails, or says where it stands.
type database struct {
	err      error
	progress change.Progress
}

func (d *database) Run(ctx context.Context, p *change.Publisher) error {
	if d.err != nil {
		return d.err
	}
	p.Report(d.progress)
	<-ctx.Done()
	return nil
}

// onDisk puts the data directories of nodes where they are not in memory, which would be
// a finding, and allows as many connections as the machine can have files.
func onDisk(t *testing.T) func(*fleetbus.Options) {
	return func(o *fleetbus.Options) {
		dir, err := os.MkdirTemp("/var/tmp", "fleetbus-*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		o.Dir, o.Limits.Connections = filepath.Join(dir, "data"), 1000
	}
}

// machines are what is true of the machine of the test, and no fault of the fleet.
func machines(all []doctor.Result) []doctor.Result {
	return slices.DeleteFunc(slices.Clone(all), func(r doctor.Result) bool {
		return slices.Contains([]string{"CLOCK-UNSYNCED", "FILES-LIMITED", "FILE-SYSTEM-VOLATILE", "DISK-LOW", "PROXY-OWN-NAME"}, r.Code)
	})
}

// TestFaultsOfFleet finds nothing on a fleet of three that is well, and then what is done
// to it. Idle consumers, users that expire and old backups are real; only the day after
// is not waited for.
func TestFaultsOfFleet(t *testing.T) {
	bases := map[string]*database{
		"failing": {err: &change.SetupError{Problem: "wal_level is replica", Fix: "ALTER SYSTEM SET wal_level = logical"}},
		"late":    {progress: change.Progress{Lag: time.Minute, Seen: time.Now()}},
		"hoards":  {progress: change.Progress{Retained: 2 << 30, Seen: time.Now()}},
		"warned":  {progress: change.Progress{Warning: "max_replication_slots is almost used: raise it", Seen: time.Now()}},
		"silent":  {progress: change.Progress{Seen: time.Now().Add(-time.Hour)}},
		"bound":   {progress: change.Progress{Seen: time.Now().Add(time.Hour)}},
	}
	// Clients reach node n3 by way of this door.
	door, err := net.Listen("tcp", loopback.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	nodes := fleetbustest.StartCluster(t, 3, onDisk(t), func(o *fleetbus.Options) {
		if o.Name == "n3" {
			o.Listeners[0].Advertise = door.Addr().String()
		}
	}, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.SourceTypes = map[string]fleetbus.OpenSource{"test": func(s admin.Source, _ string, _ *slog.Logger) (change.Source, error) { return bases[s.Name], nil }}
	})
	p := patient{t, nodes, nodes[0].Admin()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	step := func(name string, do func()) {
		t.Log(name)
		do()
	}
	for _, n := range nodes {
		n.ExpectError("source failed")
	}

	// The operator's keys are moved away, as they should be.
	offline := filepath.Join(nodes[0].Options.Dir, "offline")
	must(os.Rename(offline, offline+"-moved"))
	fleetbustest.Eventually(t, "a fleet that is well", func() error {
		if all := machines(p.examine(0)); len(found(all)) > 0 {
			return errors.New(list(all))
		}
		return nil
	})
	for range 3 { // and it stays so
		if all := machines(p.examine(0)); len(found(all)) > 0 {
			t.Errorf("found on a fleet that is well: %s", list(all))
		}
	}

	js, err := jetstream.New(nodes[0].Dial("acme", "app"))
	must(err)
	stream := func(c jetstream.StreamConfig) jetstream.Stream {
		t.Helper()
		s, err := js.CreateStream(ctx, c)
		must(err)
		return s
	}

	step("users", func() {
		public, _, err := identity.NewUserKey()
		must(err)
		_, err = p.c.AddUser(ctx, admin.UserRequest{Name: "acme/guest", Key: public, Expires: 2 * time.Hour})
		must(err)
		p.shows(2*time.Hour-time.Minute, "CREDENTIAL-ENDS")
		p.shows(3*time.Hour, "USER-UNUSED")
		_, err = p.c.RemoveUser(ctx, "acme/guest")
		must(err)
	})

	step("streams", func() {
		full := stream(jetstream.StreamConfig{Name: "FULL", Subjects: []string{"full"}, MaxMsgs: 100, Discard: jetstream.DiscardNew, Replicas: 3})
		for range 100 {
			_, err := js.Publish(ctx, "full", nil)
			must(err)
		}
		// The leaders of some are not the stream's.
		const idle = 8
		for i := range idle {
			_, err := full.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: fmt.Sprintf("nobody-%d", i), AckPolicy: jetstream.AckExplicitPolicy})
			must(err)
		}
		p.shows(0, "STREAM-NEAR-FULL")
		// This one goes by itself.
		_, err := full.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "passing", AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: time.Hour})
		must(err)
		if text := list(p.shows(25*time.Hour, "CONSUMER-IDLE")); strings.Count(text, "CONSUMER-IDLE") != idle {
			t.Errorf("of %d consumers that nobody reads by:\n%s", idle, text)
		}
		failing, err := full.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "failing", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxAckPending: 1000})
		must(err)
		fleetbustest.Eventually(t, "messages that are given again", func() error {
			batch, err := failing.Fetch(100, jetstream.FetchMaxWait(time.Second))
			if err != nil {
				return err
			}
			for range batch.Messages() { // it acknowledges nothing
			}
			if codes := found(p.examine(0)); !slices.Contains(codes, "CONSUMER-STUCK") {
				return fmt.Errorf("%v", codes)
			}
			return nil
		})
		must(js.DeleteStream(ctx, "FULL"))

		// A consumer may be led by another node than its stream.
		apart := stream(jetstream.StreamConfig{Name: "APART", Subjects: []string{"apart"}, Replicas: 3})
		_, err = js.Publish(ctx, "apart", nil)
		must(err)
		waiting, err := apart.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "waiting", AckPolicy: jetstream.AckExplicitPolicy})
		must(err)
		fleetbustest.Eventually(t, "a consumer that another leads", func() error {
			try, cancel := context.WithTimeout(ctx, time.Second) // without a leader there is no answer
			defer cancel()
			st, err := apart.Info(try)
			if err != nil {
				return err
			}
			c, err := waiting.Info(try)
			if err != nil {
				return err
			}
			if st.Cluster.Leader != "" && c.Cluster.Leader != "" && c.Cluster.Leader != st.Cluster.Leader {
				return nil
			}
			_, err = js.Conn().Request("$JS.API.CONSUMER.LEADER.STEPDOWN.APART.waiting", nil, time.Second)
			return errors.Join(errors.New("both are led by "+c.Cluster.Leader), err)
		})
		for _, r := range p.shows(25*time.Hour, "CONSUMER-IDLE") {
			if r.Code == "CONSUMER-IDLE" && r.Subject != "acme/APART waiting" {
				t.Errorf("idle is %s", r.Subject)
			}
		}
		must(js.DeleteStream(ctx, "APART"))
	})

	step("limits", func() {
		_, err := p.c.AddAccount(ctx, admin.AccountRequest{Name: "acme", Limits: identity.Limits{Streams: 10}})
		must(err)
		for i := range 9 {
			stream(jetstream.StreamConfig{Name: fmt.Sprint("S", i), Storage: jetstream.MemoryStorage})
		}
		p.shows(0, "LIMIT-NEAR", "STREAM-ONE-COPY")
		stream(jetstream.StreamConfig{Name: "S9", Storage: jetstream.MemoryStorage})
		p.shows(0, "LIMIT-REACHED")
		for i := range 10 {
			must(js.DeleteStream(ctx, fmt.Sprint("S", i)))
		}
		_, err = p.c.AddAccount(ctx, admin.AccountRequest{Name: "acme"})
		must(err)
	})

	step("backup", func() { p.shows(8*24*time.Hour, "BACKUP-OLD") })

	step("sources", func() {
		setup, err := p.c.SourceSetup(ctx)
		must(err)
		secret, err := identity.SealSecret(setup.SecretPublic, []byte("x"))
		must(err)
		for name := range bases {
			s := admin.Source{Account: "acme", Name: name, Type: "test", Secret: secret}
			if name == "bound" {
				s.Node = "n3"
			}
			_, err := p.c.AddSource(ctx, s)
			must(err)
		}
		all := p.shows(0, "SOURCE-FAILED", "SOURCE-LAG", "SOURCE-RETAINED", "SOURCE-SETTINGS", "SOURCE-SILENT", "SERVICE-FAILED")
		if codes := explained(all, "SOURCE-FAILED"); !slices.Contains(codes, "SERVICE-FAILED") {
			t.Errorf("a source that fails explains %v", codes)
		}
		for name := range bases {
			if name == "bound" {
				continue
			}
			_, err := p.c.RemoveSource(ctx, "acme/"+name)
			must(err)
		}
	})

	step("secrets", func() {
		must(os.Rename(offline+"-moved", offline))
		path := filepath.Join(nodes[1].Options.Dir, "authority.json")
		must(os.Chmod(path, 0o644))
		all := p.shows(0, "OFFLINE-KEYS-HERE", "SECRET-OPEN")
		if i := slices.IndexFunc(all, func(r doctor.Result) bool { return r.Code == "SECRET-OPEN" }); all[i].Node != "n2" {
			t.Errorf("of node %q, not n2", all[i].Node)
		}
		must(os.Chmod(path, 0o600))
	})

	step("address", func() {
		must(door.Close())
		all := p.shows(0, "ADDRESS-REFUSED")
		i := slices.IndexFunc(all, func(r doctor.Result) bool { return r.Code == "ADDRESS-REFUSED" })
		if i < 0 || all[i].Node != "n3" || !strings.Contains(all[i].Evidence, "n1, n2") {
			t.Errorf("%s", list(all))
		}
	})

	step("nodes", func() {
		stream(jetstream.StreamConfig{Name: "THREE", Subjects: []string{"three"}, Replicas: 3})
		alone := stream(jetstream.StreamConfig{Name: "ALONE", Subjects: []string{"alone"}, Placement: nil})
		on, _, _ := strings.Cut(alone.CachedInfo().Cluster.Leader, ".")
		// Whoever was asked stays, and so does the node that has no stream of its own.
		down := nodes[2]
		if on == "n2" {
			down = nodes[1]
		}
		down.Stop()
		all := p.shows(0, "NODE-DOWN", "NOT-ANSWERED", "STREAM-COPY-AWAY")
		for _, code := range []string{"NOT-ANSWERED", "STREAM-COPY-AWAY"} {
			if codes := explained(all, "NODE-DOWN"); !slices.Contains(codes, code) {
				t.Errorf("a node that is down explains %v, not %s", codes, code)
			}
		}
		if on != "n1" {
			if codes := explained(p.shows(0, "STREAM-NO-LEADER"), "NODE-DOWN"); !slices.Contains(codes, "STREAM-NO-LEADER") {
				t.Errorf("a node that is down explains %v, not its streams", codes)
			}
		}
		for _, r := range all {
			if r.Node == down.Options.Name && r.State == doctor.OK {
				t.Errorf("said of a node that does not answer: %+v", r)
			}
		}
		if down == nodes[2] {
			p.shows(0, "SOURCE-WAITING")
		}
		// Without a quorum streams have no leader, and that explains it.
		for _, n := range nodes[1:] {
			n.Stop()
		}
		all = p.shows(0, "NO-QUORUM")
		for _, r := range all {
			if r.Code == "STREAM-NO-LEADER" {
				t.Errorf("it stands by itself: %+v", r)
			}
		}
	})
}

// TestFaultsOfSettings has one node that is set up as nodes should not be.
func TestFaultsOfSettings(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Limits.Connections = 1 << 30
		o.Store.LazySync, o.TLS.SkipHostnameVerification = true, true
		o.Store.MaxMemory = 1 << 50
		o.Listeners[0].Plaintext = false
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "plain", Addr: loopback.Addr(t), Protocol: quiet{}, Plaintext: true})
	})
	p := patient{t, []*fleetbustest.Server{s}, s.Admin()}
	p.shows(0, "ONE-NODE", "LAZY-SYNC", "HOSTNAMES-UNVERIFIED", "PLAINTEXT-LISTENER", "FILES-LIMITED", "MEMORY-OVERSTATED", "OFFLINE-KEYS-HERE")

	// Somebody who has a node writes into the audit.
	everything := identity.Rule{Allow: []string{">"}}
	session, err := s.Session(t.Context(), identity.Principal{Account: identity.FleetName, Name: "mallory", Permissions: identity.Permissions{Publish: everything, Subscribe: everything}})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	js, err := jetstream.New(session.Conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), audit.Prefix+".mallory", []byte("a lie")); err != nil {
		t.Fatal(err)
	}
	p.shows(0, "AUDIT-BROKEN")

	// Who is no administrator is told that, and nothing else.
	nc := s.Dial("other", "client")
	f := diagnose.Gather(t.Context(), admin.New(nc))
	if f.StatusErr == nil {
		t.Fatal("a client was told how the fleet is")
	}
	for _, r := range diagnose.Judge(f) {
		if r.State != doctor.Unknown {
			t.Errorf("said without having asked: %+v", r)
		}
	}
}

// quiet is a protocol that says nothing.
type quiet struct{}

func (quiet) Serve(ctx context.Context, _ net.Listener, _ fleetbus.Login) error {
	<-ctx.Done()
	return nil
}
