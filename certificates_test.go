package fleetbus_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/ledger"
)

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

// A registrar is a manager of certificates that makes the ledger and answers "ping",
// in two parts.
type registrar struct {
	node string
	key  *cert.ManagerKey
}

func (r *registrar) Run(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	l, err := cert.OpenLedger(ctx, js)
	if err != nil {
		return err
	}
	if _, err := cert.OpenReports(ctx, js); err != nil {
		return err
	}
	subject := cert.KeySubject("web")
	data, err := r.key.Sign(subject, cert.GroupKey{Version: 1, Group: "web", Revision: 1})
	if err != nil {
		return err
	}
	if _, err := l.Append(ctx, subject, 0, data); err != nil && !errors.Is(err, ledger.ErrConflict) && ctx.Err() == nil {
		return err
	}
	sub, err := nc.QueueSubscribe(cert.APISubject("ping"), "certmanager", func(msg *nats.Msg) {
		_ = msg.Respond([]byte(`{"data":"forged"}`))
		stranger, _ := cert.NewManagerKey("acme", make([]byte, 32))
		_ = stranger.Answer(msg, json.RawMessage(`{"data":"forged"}`))
		_ = r.key.Answer(&nats.Msg{Reply: msg.Reply, Sub: msg.Sub}, json.RawMessage(`{"data":"of another request"}`))
		_ = r.key.Answer(msg, json.RawMessage(`{"progress":"working"}`))
		_ = r.key.Answer(msg, json.RawMessage(`{"data":`+string(msg.Data)+`}`))
	})
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	<-ctx.Done()
	return nil
}

func withRegistrar(o *fleetbus.Options) {
	o.Accounts = []string{"acme", "other"}
	o.CertManager = func(node string, key *cert.ManagerKey, _ *slog.Logger) (fleetbus.Service, error) {
		return &registrar{node, key}, nil
	}
}

// TestCertRequests has administrators reach the managers of an account's
// certificates, which run on every node from the first request on.
func TestCertRequests(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3, withRegistrar)
	nc, err := nodes[1].Connect(nodes[1].Founded().AdminCreds)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ask := func(r admin.CertRequest) (parts []string, refusal *admin.Error) {
		t.Helper()
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		if err := nc.PublishRequest(admin.RequestSubject(nc, "cert"), inbox, body); err != nil {
			t.Fatal(err)
		}
		for {
			msg, err := sub.NextMsg(30 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var reply admin.Reply
			if json.Unmarshal(msg.Data, &reply) == nil && reply.Error != nil {
				return parts, reply.Error
			}
			parts = append(parts, string(msg.Data))
			var step admin.CertProgress
			if json.Unmarshal(msg.Data, &step) != nil || step.Progress == nil {
				return parts, nil
			}
		}
	}
	parts, refusal := ask(admin.CertRequest{Account: "acme", Verb: "ping", Data: json.RawMessage(`{"a":1}`)})
	if refusal != nil || len(parts) != 2 || parts[0] != `{"progress":"working"}` || parts[1] != `{"data":{"a":1}}` {
		t.Errorf("%q %v", parts, refusal)
	}
	for _, bad := range []admin.CertRequest{
		{Account: "none", Verb: "ping"}, {Account: "acme", Verb: "a..b"}, {Account: "acme", Verb: "a.*"}, {Account: "acme", Verb: ""}, {Account: identity.FleetName, Verb: "ping"},
	} {
		if _, refusal := ask(bad); refusal == nil {
			t.Errorf("%+v was answered", bad)
		}
	}
	// The key of the managers is the same everywhere, and another in another account.
	ctx := limited(t, 60*time.Second)
	text, err := nodes[0].Admin().CertManagerKey(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	again, err := nodes[2].Admin().CertManagerKey(ctx, "acme")
	if err != nil || again != text {
		t.Errorf("another key on another node: %v", err)
	}
	if other, err := nodes[0].Admin().CertManagerKey(ctx, "other"); err != nil || other == text {
		t.Errorf("the same key in another account: %v", err)
	}
	if _, err := cert.ParseManagerKey(text); err != nil {
		t.Error(err)
	}
}

// TestTarget enrolls a target: it may follow its account's certificates and say what
// it serves, and nothing else.
func TestTarget(t *testing.T) {
	s := fleetbustest.Start(t, withRegistrar)
	ctx := limited(t, 60*time.Second)
	key := must(s.Admin().CertManagerKey(ctx, "acme"))(t)
	manager := must(cert.ParseManagerKey(key))(t)
	token := must(s.Admin().AddToken(ctx, admin.TokenRequest{Kind: identity.KindTarget, Account: "acme", Name: "lb1"}))(t)
	client := must(enroll.Dial(ctx, enroll.Join{Host: s.Addr("nats").String(), Token: token.Text, Timeout: 10 * time.Second}))(t)
	user := must(nkeys.CreateUser())(t)
	reply := must(client.User(ctx, enroll.UserRequest{Key: must(user.PublicKey())(t)}))(t)
	client.Close()
	if reply.Signer != string(manager.Signer()) {
		t.Errorf("the target trusts %q, not %q", reply.Signer, manager.Signer())
	}

	// A manager makes the ledger.
	s.User(admin.UserRequest{Name: "acme/ops", Role: identity.RoleCertManager})
	l := must(cert.OpenLedger(ctx, must(jetstream.New(s.Dial("acme", "ops")))(t)))(t)
	data := must(manager.Sign(cert.KeySubject("web"), cert.GroupKey{Version: 1, Group: "web", Revision: 1}))(t)
	if _, err := l.Append(ctx, cert.KeySubject("web"), 0, data); err != nil && !errors.Is(err, ledger.ErrConflict) { // or that of the node was faster
		t.Fatal(err)
	}

	var mu sync.Mutex
	var denied []string
	nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()),
		nats.UserJWT(func() (string, error) { return reply.JWT, nil }, func(nonce []byte) ([]byte, error) { return user.Sign(nonce) }),
		nats.CustomInboxPrefix(identity.Inbox("lb1")),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			denied = append(denied, err.Error())
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	const reads = "$FLEETBUS.cert.read."
	its := must(cert.OpenLedger(ctx, must(jetstream.NewWithAPIPrefix(nc, reads+"lb1"))(t)))(t)
	state := cert.NewState([]cert.Signer{cert.Signer(reply.Signer)}, nil)
	f := must(ledger.NewFollower(state, ledger.FollowOptions{Filter: []string{"g.>"}}))(t)
	run, stop := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() { followed <- f.Run(run, its) }()
	select {
	case <-f.CaughtUp():
	case <-ctx.Done():
		t.Fatal("the target cannot follow the ledger")
	}
	if _, ok := state.GroupKey("web"); !ok {
		t.Error("the target did not see the group's key")
	}
	must(0, nc.Publish(cert.ReportPrefix+"."+cert.SeenSubject("web", "lb1", "id"), nil))(t)
	must(must(cert.OpenReports(ctx, must(jetstream.NewWithAPIPrefix(nc, reads+"lb1"))(t)))(t).Append(ctx, cert.SeenSubject("web", "lb1", "other"), 0, []byte(`{"target":"lb1","id":"other"}`)))(t)
	if err := nc.Publish(cert.EnrollSubject("lb1"), nil); err != nil {
		t.Fatal(err)
	}
	flush := func() {
		t.Helper()
		if err := nc.FlushTimeout(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	mu.Lock()
	if len(denied) != 0 {
		t.Errorf("a target may not %q", denied)
	}
	mu.Unlock()
	refused := func(subject string, try func() error) {
		t.Helper()
		mu.Lock()
		denied = nil
		mu.Unlock()
		if err := try(); err != nil {
			t.Fatal(err)
		}
		flush()
		fleetbustest.Eventually(t, "a refusal of "+subject, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(denied) == 0 || !strings.Contains(denied[0], subject) {
				return errors.New(strings.Join(denied, "; "))
			}
			return nil
		})
	}
	for _, subject := range []string{
		cert.Prefix + "." + cert.CertSubject("web", "id"), cert.ReportPrefix + "." + cert.SeenSubject("web", "lb2", "id"), cert.EnrollSubject("lb2"),
		cert.Prefix + ".seen.web.lb1.id", "$JS.API.STREAM.DELETE.CERTREPORTS", "$JS.API.CONSUMER.CREATE.CERTREPORTS.x", "$JS.API.STREAM.MSG.GET.CERTREPORTS",
		cert.APISubject("mk"), cert.Prefix + ".config", "orders.new", "$JS.API.STREAM.DELETE.CERTS", "$JS.API.STREAM.PURGE.CERTS",
		"$JS.API.STREAM.UPDATE.CERTS", "$JS.API.CONSUMER.CREATE.CERTS.x", "$JS.API.CONSUMER.MSG.NEXT.CERTS.x", "$JS.API.STREAM.MSG.GET.CERTS", "$JS.API.STREAM.INFO.CERTS",
		"$JS.API.DIRECT.GET.CERTS", reads + "lb2.STREAM.INFO.CERTS", "admin.status",
	} {
		refused(subject, func() error { return nc.Publish(subject, []byte(`{}`)) })
	}
	for _, subject := range []string{"orders.>", cert.Prefix + ".>", ">", "_INBOX.>", "_INBOX.lb2.>", "_INBOX.*.x", reads + ">", cert.ReportPrefix + ".>"} {
		refused(subject, func() error {
			_, err := nc.SubscribeSync(subject)
			return err
		})
	}
	stop()
	if err := <-followed; err != nil {
		t.Error(err)
	}

	// What it asks to be written elsewhere, or may not read, the engine is not asked for.
	app := s.Dial("acme", "app")
	elsewhere := must(app.SubscribeSync("orders.>"))(t)
	must(0, app.Flush())(t)
	last := func(subject string) string { return `{"last_by_subj":"` + subject + `"}` }
	const records, reports = cert.Prefix + ".", cert.ReportPrefix + "."
	mine, others := reports+cert.SeenSubject("web", "lb1", "id"), reports+cert.SeenSubject("web", "lb2", "id")
	all := records + cert.CertSubject("web", "*")
	consumer := func(config string) string {
		return `{"stream_name":"CERTS","config":{"deliver_policy":"all","ack_policy":"none",` + config + `}}`
	}
	of := func(subjects string) string { return `"filter_subjects":["` + subjects + `"]` }
	for call, body := range map[string]string{
		"STREAM.MSG.GET.CERTREPORTS": last(mine), "STREAM.INFO.CERTS": "", "STREAM.INFO.CERTREPORTS": "",
		"CONSUMER.CREATE.CERTS.one": consumer(of(all)), "CONSUMER.CREATE.CERTREPORTS.one": consumer(of(mine)),
	} {
		must(0, nc.PublishRequest(reads+"lb1."+call, "orders.new", []byte(body)))(t)
		must(0, nc.PublishRequest(reads+"lb1."+call, "_INBOX.lb1x.y", []byte(body)))(t)
		must(0, nc.Publish(reads+"lb1."+call, []byte(body)))(t)
	}
	ask := func(call, body string) string {
		t.Helper()
		return string(must(nc.Request(reads+"lb1."+call, []byte(body), 10*time.Second))(t).Data)
	}
	for call, bodies := range map[string][]string{
		"STREAM.MSG.GET.CERTS":              {last(mine), last(records + cert.ConfigSubject), last(records + "seen.web.lb2.id"), `{"seq":1}`, `{}`, `x`, "", `{"seq":1,"next_by_subj":">"}`},
		"STREAM.MSG.GET.CERTREPORTS":        {last(others), last(all), last(reports + "report.web.lb1"), `{"seq":1}`, `{"seq":1,"next_by_subj":">"}`},
		"CONSUMER.CREATE.CERTS.two":         {consumer(`"x":1`), consumer(of(">")), consumer(of(records + "config")), consumer(of(mine)), consumer(of(all) + `,"filter_subject":">"`), `x`, ""},
		"CONSUMER.CREATE.CERTREPORTS.two":   {consumer(`"x":1`), consumer(of(">")), consumer(of(all)), consumer(of(others)), consumer(of(reports + "report.>")), consumer(of(reports + "report.web.*.id"))},
		"CONSUMER.CREATE.CERTS.two." + all:  {consumer(of(all))},
		"CONSUMER.DURABLE.CREATE.CERTS.two": {""}, "CONSUMER.DELETE.CERTS.one": {""}, "CONSUMER.LIST.CERTS": {""}, "STREAM.DELETE.CERTS": {""}, "STREAM.MSG.DELETE.CERTS": {`{"seq":1}`},
		"STREAM.DELETE.CERTREPORTS": {""}, "STREAM.PURGE.CERTREPORTS": {""}, "CONSUMER.DELETE.CERTREPORTS.one": {""}, "STREAM.MSG.DELETE.CERTREPORTS": {`{"seq":1}`},
		"STREAM.INFO.OTHER": {""}, "STREAM.LIST": {""}, "INFO": {""}, "CONSUMER.MSG.NEXT.OTHER.two": {""}, "CONSUMER.MSG.NEXT.CERTS.a.b": {""}, "STREAM.PURGE.CERTS": {""},
	} {
		for _, body := range bodies {
			if answer := ask(call, body); !strings.Contains(answer, `"code":403`) {
				t.Errorf("%s %s: %s", call, body, answer)
			}
		}
	}
	// A consumer that is to deliver elsewhere does not: it is one that is pulled from.
	if answer := ask("CONSUMER.CREATE.CERTS.push", consumer(of(all)+`,"deliver_subject":"orders.pushed"`)); !strings.Contains(answer, `"name":"push"`) || strings.Contains(answer, "deliver_subject") {
		t.Error(answer)
	}
	fleetbustest.Eventually(t, "the report is read that was just made", func() error {
		if answer := ask("STREAM.MSG.GET.CERTREPORTS", last(mine)); !strings.Contains(answer, `"message"`) {
			return errors.New(answer)
		}
		return nil
	})
	must(0, app.Publish("orders.last", nil))(t)
	if msg := must(elsewhere.NextMsg(10 * time.Second))(t); msg.Subject != "orders.last" {
		t.Errorf("a target wrote %q to %q", msg.Data, msg.Subject)
	}
}
