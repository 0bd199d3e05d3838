package certmanager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
)

// startNode starts a node that manages the certificates of account acme, and returns a
// client of theirs.
func startNode(t *testing.T) (*fleetbustest.Server, *Client) {
	t.Helper()
	authority := newAuthority(t, time.Now)
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.CertManager = func(node string, key *cert.ManagerKey, log *slog.Logger) (fleetbus.Service, error) {
			return New(Options{
				Name: node, Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil },
				Issuers: map[string]OpenIssuer{"fake": authority.open}, Logger: log, Every: 100 * time.Millisecond, Answer: 400 * time.Millisecond,
			})
		}
	})
	nc, err := s.Connect(s.Founded().AdminCreds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c := NewAdminClient(nc, "acme")
	if _, err := c.UpdateConfig(within(t), []byte(fakeConfig)); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// dialAs connects as a user of a role, and tells what it is denied.
func dialAs(t *testing.T, s *fleetbustest.Server, name, role string) (nc *nats.Conn, denied <-chan error) {
	t.Helper()
	s.User(admin.UserRequest{Name: "acme/" + name, Role: role})
	errs := make(chan error, 100)
	return s.Dial("acme", name, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err })), errs
}

// TestRequestsByWayOfAStream has the engine publish what its author may not: no
// permission keeps what a stream republishes from managers.
func TestRequestsByWayOfAStream(t *testing.T) {
	s, c := startNode(t)
	ctx := within(t)
	made, err := c.Make(ctx, MakeRequest{Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	app, _ := dialAs(t, s, "app", identity.RoleClient)
	js, err := jetstream.New(app)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "DETOUR", Subjects: []string{"detour.>"}, MaxBytes: 1 << 20, RePublish: &jetstream.RePublish{Source: "detour.>", Destination: cert.APISubject(">")},
	})
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(RemoveRequest{ID: made.ID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "detour.rm", body); err != nil {
		t.Fatal(err)
	}

	// Managers answer in between, so that what was to be done is done.
	for range 20 {
		if _, err := c.Certificate(ctx, made.ID); err != nil {
			t.Fatalf("a user without a permission for that removed a certificate: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// TestReportsByWayOfAStream has the engine write a report in place of a target: it is a
// finding, and nothing else.
func TestReportsByWayOfAStream(t *testing.T) {
	s, c := startNode(t)
	s.ExpectError("ledger event not applied")
	ctx := within(t)
	made, err := c.Make(ctx, MakeRequest{Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	app, _ := dialAs(t, s, "app", identity.RoleClient)
	js := must(jetstream.New(app))(t)
	must(js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "DETOUR", Subjects: []string{"detour.>"}, MaxBytes: 1 << 20, RePublish: &jetstream.RePublish{Source: "detour.>", Destination: cert.ReportPrefix + ".report.>"},
	}))(t)
	body := must(json.Marshal(cert.Seen{Version: 1, Target: "lb-1", ID: made.ID, Generation: 1, Serial: made.Current.Serial, At: time.Now()}))(t)
	must(js.Publish(ctx, "detour.default.lb-1."+made.ID, body))(t)
	subject := cert.SeenSubject(made.Group, "lb-1", made.ID)
	await.Nil(t, "a finding", func() error {
		status, err := c.Status(ctx, StatusRequest{})
		if err != nil {
			return err
		}
		for _, f := range status.Findings {
			if f.Code == CodeRecord && f.Subject == subject {
				return nil
			}
		}
		return fmt.Errorf("there are %+v", status.Findings)
	})
}

// TestLedgerAndClients has a user who may do everything ask the engine for the ledger of
// certificates.
func TestLedgerAndClients(t *testing.T) {
	s, c := startNode(t)
	ctx := within(t)
	made, err := c.Make(ctx, MakeRequest{Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	app, denied := dialAs(t, s, "app", identity.RoleClient)
	requests := []string{
		"STREAM.DELETE.CERTS", "STREAM.PURGE.CERTS", "STREAM.UPDATE.CERTS", "STREAM.SNAPSHOT.CERTS", "STREAM.MSG.DELETE.CERTS", "STREAM.MSG.GET.CERTS",
		"STREAM.PEER.REMOVE.CERTS", "STREAM.LEADER.STEPDOWN.CERTS", "CONSUMER.LIST.CERTS", "CONSUMER.CREATE.CERTS.x", "CONSUMER.DURABLE.CREATE.CERTS.x",
		"CONSUMER.DELETE.CERTS.x", "CONSUMER.MSG.NEXT.CERTS.x", "CONSUMER.LEADER.STEPDOWN.CERTS.x", "DIRECT.GET.CERTS", "DIRECT.GET.CERTS." + cert.Prefix + ".config",
	}
	for _, request := range requests {
		requests = append(requests, strings.Replace(request, "."+cert.Stream, "."+cert.ReportStream, 1))
	}
	for _, request := range requests {
		if err := app.PublishRequest("$JS.API."+request, app.NewInbox(), nil); err != nil {
			t.Fatal(err)
		}
		if err := app.FlushTimeout(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-denied:
			if !strings.Contains(err.Error(), request) {
				t.Errorf("%s: %v", request, err)
			}
		case <-ctx.Done():
			t.Fatalf("%s is not denied", request)
		}
		if request == "STREAM.DELETE.CERTS" {
			if _, err := c.Certificate(ctx, made.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRecordsWrittenOver has somebody write over records more often than the ledger
// remembers: who starts anew finds them all the same.
func TestRecordsWrittenOver(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	made, err := w.client().Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	w.target(made.Group, "lb-1")
	await.Nil(t, "the target serves it", func() error {
		if _, ok := w.state.Seen(made.Group, "lb-1", made.ID); !ok {
			return errors.New("it did not say so")
		}
		return nil
	})
	subjects := []string{
		cert.CertSubject(made.Group, made.ID), cert.KeySubject(made.Group), cert.TargetSubject(made.Group, "lb-1"), cert.ConfigSubject,
		cert.SeenSubject(made.Group, "lb-1", made.ID),
	}
	for _, subject := range subjects {
		for range 40 {
			if err := w.nc.Publish(onBus(subject), []byte("none")); err != nil {
				t.Fatal(err)
			}
		}
	}
	await.Nil(t, "all records are there for who starts anew", func() error {
		state := cert.NewState([]cert.Signer{w.key.Signer()}, nil)
		f := w.ledgersOf(state, nil)
		stop := w.background(f.Run)
		defer stop()
		select {
		case <-f.CaughtUp():
		case <-within(t).Done():
			return errors.New("it does not catch up")
		}
		for subject, why := range state.Problems() {
			return fmt.Errorf("%s: %w", subject, why)
		}
		_, certificate := state.Record(made.Group, made.ID)
		_, key := state.GroupKey(made.Group)
		_, target := state.Target(made.Group, "lb-1")
		_, report := state.Seen(made.Group, "lb-1", made.ID)
		if _, config := state.Config(); !certificate || !key || !target || !config || !report {
			return fmt.Errorf("certificate %t, key %t, target %t, configuration %t, report %t", certificate, key, target, config, report)
		}
		return nil
	})
}

// TestForgedReports has others report in place of a target of the first wave, and in its
// own words of before: no wave ends or is taken back by it.
func TestForgedReports(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	stuck, other := w.target("web", "lb-0"), w.target("web", "lb-1")
	made, err := w.client().Make(within(t), MakeRequest{Group: "web", Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	subject := cert.SeenSubject("web", "lb-0", made.ID)
	await.Nil(t, "both serve it", func() error {
		_, ok := w.state.Seen("web", "lb-0", made.ID)
		if _, too := w.state.Seen("web", "lb-1", made.ID); !ok || !too {
			return errors.New("not yet")
		}
		return nil
	})
	before := w.state.Stored(subject)
	stuck.set(func() { stuck.mute = true })
	if _, err := w.client().Renew(within(t), RenewRequest{ID: made.ID}); err != nil {
		t.Fatal(err)
	}
	r := w.record("web", made.ID, "the first wave", func(r *cert.Record) bool { return r.Next != nil && r.Wave != nil })
	good := cert.Seen{Version: 1, Target: "lb-0", ID: made.ID, Generation: 2, Serial: r.Next.Serial, At: time.Now().Add(time.Hour).UTC()}
	bad := good
	bad.Error = "nginx: no"
	unsigned := func(seen cert.Seen) []byte {
		data, err := json.Marshal(seen)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, data := range map[string][]byte{
		"unsigned": unsigned(good), "unsigned and failing": unsigned(bad), "by another target": must(other.own().Sign(subject, good))(t),
		"failing, by another": must(other.own().Sign(subject, bad))(t), "of before": nil,
	} {
		if name == "of before" {
			// A newer one of its own is there, so that the old one is one that is replayed.
			again := cert.Seen{Version: 1, Target: "lb-0", ID: made.ID, Generation: 1, Serial: r.Current.Serial, At: time.Now().UTC()}
			newer := must(stuck.own().Sign(subject, again))(t)
			await.Nil(t, "a newer one", func() error { // managers write, too
				_, err := w.ledgers.Append(within(t), subject, w.state.Version(subject), newer)
				return err
			})
			await.Nil(t, "it is known", func() error {
				if !bytes.Equal(w.state.Stored(subject), newer) {
					return errors.New("not yet")
				}
				return nil
			})
			data = before
		}
		mine := w.state.Stored(subject)
		if err := w.nc.Publish(onBus(subject), data); err != nil {
			t.Fatal(err)
		}
		await.Nil(t, name+": it is restored", func() error {
			last, err := w.last(subject)
			if err != nil || !bytes.Equal(last, mine) {
				return fmt.Errorf("the last report is %q, %w", last, err)
			}
			return nil
		})
		if r, _ := w.state.Record("web", made.ID); r.Next == nil || r.Wave.Number != 1 || r.Withdrawn != 0 {
			t.Fatalf("%s: the wave ended: %+v", name, r)
		}
	}
	stuck.set(func() { stuck.mute = false })
	stuck.poke <- struct{}{}
	w.record("web", made.ID, "all have it", generation(2))
}

// TestFalseManager has somebody who has the role of a manager, and not the key, answer
// requests: nobody believes it, and it hears no secret.
func TestFalseManager(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	stranger := must(cert.NewManagerKey("acme", []byte(strings.Repeat("f", 32))))(t)
	const planted = "planted-secret"
	var mu sync.Mutex
	var heard []string
	answer := func(m *nats.Msg) {
		if !strings.HasPrefix(m.Reply, "_INBOX.") {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if opened, err := stranger.OpenMessage("conf.update", sealedIn(m.Data)); err == nil {
			heard = append(heard, string(opened))
		}
		heard = append(heard, string(m.Data))
		data, err := json.Marshal(publicKey{Public: stranger.Public()})
		if err != nil {
			t.Error(err)
		}
		r := reply{Reply: admin.Reply{Data: data}}
		_ = stranger.Answer(m, r)
		plain, _ := json.Marshal(r)
		_ = m.Respond(plain)
	}
	impostor := dial(t, w.url)
	must(impostor.Subscribe(cert.APISubject(">"), answer))(t) // beside the managers, and before them
	must(0, impostor.Flush())(t)
	w.run(w.options("m1"))
	text := strings.TrimSuffix(fakeConfig, "}") + `,"dns":[{"name":"d","provider":"rfc2136","settings":{"key":"` + planted + `"}}]}`
	for range 10 {
		if _, err := w.client().UpdateConfig(within(t), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if all, err := w.client().Certificates(within(t), ""); err != nil || len(all) != 0 {
			t.Fatalf("%+v %v", all, err)
		}
	}
	// Who does not know whom to believe confides in nobody.
	if _, err := NewClient(w.nc).UpdateConfig(within(t), []byte(text)); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(heard) == 0 || strings.Contains(strings.Join(heard, ""), planted) {
		t.Errorf("it heard %d requests, the secret among them", len(heard))
	}
}

func sealedIn(data []byte) cert.Sealed {
	var c confidence
	_ = json.Unmarshal(data, &c)
	return c.Sealed
}

// last is what the ledger has last of a subject.
func (w *world) last(subject string) ([]byte, error) {
	js, err := jetstream.New(w.nc)
	if err != nil {
		return nil, err
	}
	name, err := js.StreamNameBySubject(within(w.t), onBus(subject))
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(within(w.t), name)
	if err != nil {
		return nil, err
	}
	msg, err := stream.GetLastMsgForSubject(within(w.t), onBus(subject))
	if err != nil {
		return nil, err
	}
	return msg.Data, nil
}

// must is for calls whose failure ends the test.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
