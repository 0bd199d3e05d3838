package signed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/signing"
)

func limited(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// demand sets what an account demands.
func demand(t testing.TB, s *fleetbustest.Server, account, signing string) {
	t.Helper()
	if _, err := s.Admin().AddAccount(limited(t, 30*time.Second), admin.AccountRequest{Name: account, Signing: signing}); err != nil {
		t.Fatal(err)
	}
}

// signerOf is the signer of a creds file.
func signerOf(t testing.TB, creds string) *signing.Signer {
	t.Helper()
	file, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	s, err := signing.FromCreds(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// connect connects to a node, with an inbox that every role may read.
func connect(t testing.TB, s *fleetbustest.Server, creds, name string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := s.Connect(creds, append(opts, nats.CustomInboxPrefix(identity.Inbox(name)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// ready waits until somebody verifies for the account of nc.
func ready(t testing.TB, nc *nats.Conn, s *signing.Signer) {
	t.Helper()
	fleetbustest.Eventually(t, "signatures are verified", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return s.Send(ctx, nc, &nats.Msg{Subject: "ready"})
	})
}

// raw hands the node that verifies a message as somebody else has seen it.
func raw(t testing.TB, nc *nats.Conn, subject, text string, body []byte) error {
	t.Helper()
	msg := &nats.Msg{Subject: signing.Prefix + subject, Data: body, Header: nats.Header{signing.ConfirmHeader: {"1"}}}
	if text != "" {
		msg.Header.Set(signing.Header, text)
	}
	answer, err := nc.RequestMsgWithContext(limited(t, 10*time.Second), msg)
	if err != nil {
		return err
	}
	return signing.Refused(answer)
}

func want(t testing.TB, what string, got, wanted error) {
	t.Helper()
	if !errors.Is(got, wanted) || wanted == nil && got != nil {
		t.Errorf("%s: got %v, want %v", what, got, wanted)
	}
}

// TestRequired publishes signed and unsigned on three nodes.
func TestRequired(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	s := nodes[0]
	demand(t, s, "acme", "required")
	demand(t, s, "beta", "required")
	alice := s.MoreCreds("acme", "alice")
	signer := signerOf(t, alice)
	violations := make(chan error, 16)
	nc := connect(t, s, alice, "alice", nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	ready(t, nc, signer)
	readers := nodes[2].MoreCreds("acme", "bob")
	reader := connect(t, nodes[2], readers, "bob")
	sub, err := reader.SubscribeSync("orders.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Flush(); err != nil {
		t.Fatal(err)
	}
	// The other node hears of the interest in its own time.
	fleetbustest.Eventually(t, "what is signed arrives", func() error {
		if err := signer.Send(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "orders.0"}); err != nil {
			return err
		}
		_, err := sub.NextMsg(200 * time.Millisecond)
		return err
	})

	if err := errors.Join(nc.Publish("orders.1", []byte("unsigned")), nc.Flush()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-violations:
		if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), "orders.1") {
			t.Errorf("unsigned: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody was told that an unsigned message was refused")
	}
	want(t, "unsigned to those who verify", raw(t, nc, "orders.1", "", nil), signing.ErrUnsigned)

	body := []byte("ten crates")
	text, err := signer.Text("orders.2", body)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "another subject", raw(t, nc, "orders.3", text, body), signing.ErrBadSignature)
	want(t, "another body", raw(t, nc, "orders.2", text, []byte("100 crates")), signing.ErrBadSignature)
	want(t, "garbage", raw(t, nc, "orders.2", strings.Replace(text, "v1;", "v2;", 1), body), signing.ErrMalformed)
	want(t, "signed", raw(t, nc, "orders.2", text, body), nil)
	want(t, "again", raw(t, nc, "orders.2", text, body), signing.ErrReplayed)
	for i, node := range nodes {
		want(t, fmt.Sprint("again at node ", i), raw(t, connect(t, node, readers, "bob"), "orders.2", text, body), signing.ErrReplayed)
	}
	elsewhere := s.MoreCreds("beta", "alice")
	other := connect(t, s, elsewhere, "alice")
	ready(t, other, signerOf(t, elsewhere))
	want(t, "in another account", raw(t, other, "orders.2", text, body), signing.ErrUnknownKey)

	msg, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if string(msg.Data) != string(body) || msg.Header.Get(signing.Header) != text || msg.Header.Get(signing.ConfirmHeader) != "" {
		t.Errorf("the reader has %q with %v", msg.Data, msg.Header)
	}
	audience, err := signing.FetchAudience(limited(t, 10*time.Second), reader)
	if err != nil || audience != signer.Audience() {
		t.Errorf("the audience is %q, %v", audience, err)
	}
	verifier := signing.NewVerifier(audience, signing.NewDirectory(reader), signing.Options{Since: time.Now().Add(-time.Minute)})
	who, err := verifier.Verify(limited(t, 10*time.Second), msg)
	if err != nil || who.Name != "alice" {
		t.Errorf("the reader verified %v, %v", who, err)
	}
	if _, err := verifier.Verify(limited(t, 10*time.Second), msg); !errors.Is(err, signing.ErrReplayed) {
		t.Errorf("the reader verified again: %v", err)
	}
	if more, err := sub.NextMsg(200 * time.Millisecond); err == nil {
		t.Errorf("the reader has %q on %s as well", more.Data, more.Subject)
	}

	// Who is denied signs no more, whoever hands it over.
	text, err = signer.Text("orders.4", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin().DenyUser(limited(t, 30*time.Second), "acme/alice"); err != nil {
		t.Fatal(err)
	}
	want(t, "denied", raw(t, reader, "orders.4", text, nil), signing.ErrUnknownKey)
}

// TestRestart replays after a restart, and after the node that verified is gone.
func TestRestart(t *testing.T) {
	s := fleetbustest.Start(t)
	demand(t, s, "acme", "required")
	creds := s.MoreCreds("acme", "alice")
	signer := signerOf(t, creds)
	nc := connect(t, s, creds, "alice")
	ready(t, nc, signer)
	var texts []string
	for range 3 {
		text, err := signer.Text("orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	want(t, "signed", raw(t, nc, "orders", texts[0], nil), nil)
	s.Stop()
	s = s.Restart()
	nc = connect(t, s, creds, "alice")
	var err error
	fleetbustest.Eventually(t, "signatures are verified again", func() error {
		if err = raw(t, nc, "orders", texts[0], nil); errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		return nil
	})
	want(t, "again after a restart", err, signing.ErrReplayed)
	// What was signed before it and not used is good.
	want(t, "signed before the restart", raw(t, nc, "orders", texts[1], nil), nil)
}

// TestTakeOver stops the node that verifies.
func TestTakeOver(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	demand(t, nodes[0], "acme", "required")
	creds := nodes[0].MoreCreds("acme", "alice")
	signer := signerOf(t, creds)
	conns := make([]*nats.Conn, len(nodes))
	for i, node := range nodes {
		conns[i] = connect(t, node, creds, "alice")
	}
	ready(t, conns[0], signer)
	text, err := signer.Text("orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "signed", raw(t, conns[0], "orders", text, nil), nil)
	var left *nats.Conn
	for i, node := range nodes {
		for _, m := range node.Metrics(t.Context()) {
			if m.Name == "fleetbus_signed_messages_total" && m.Labels[0] == "accepted" && m.Value > 0 && left == nil {
				node.Stop()
				left = conns[(i+1)%len(conns)]
			}
		}
	}
	if left == nil {
		t.Fatal("no node counted what it accepted")
	}
	fleetbustest.Eventually(t, "another node verifies", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return signer.Send(ctx, left, &nats.Msg{Subject: "ready"})
	})
	want(t, "again at another node", raw(t, left, "orders", text, nil), signing.ErrReplayed)
}

// TestRights signs what its signer may not do, and asks for what would get round it.
func TestRights(t *testing.T) {
	s := fleetbustest.Start(t)
	demand(t, s, "acme", "required")
	if _, err := s.Admin().AddRole(limited(t, 10*time.Second), identity.Role{Name: "meter", Permissions: identity.Permissions{
		Publish: identity.Rule{Allow: []string{"meter.{{name()}}.>"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.{{name()}}.>", "ask.>"}}, Replies: &identity.Replies{},
	}}); err != nil {
		t.Fatal(err)
	}
	boss := s.MoreCreds("acme", "boss")
	meter := credsOf(t, s, admin.UserRequest{Name: "acme/m1", Role: "meter"})
	boss1, meter1 := signerOf(t, boss), signerOf(t, meter)
	violations := make(chan error, 16)
	nc := connect(t, s, boss, "boss", nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	mc := connect(t, s, meter, "m1", nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	ready(t, nc, boss1)

	text, err := meter1.Text("meter.m2.kwh", nil)
	if err != nil {
		t.Fatal(err)
	}
	err = raw(t, nc, "meter.m2.kwh", text, nil) // another hands it over, who may
	if r := (*signing.Refusal)(nil); !errors.As(err, &r) || r.Reason != "forbidden" {
		t.Errorf("a subject of another: %v", err)
	}
	want(t, "its own", meter1.Send(limited(t, 10*time.Second), mc, &nats.Msg{Subject: "meter.m1.kwh"}), nil)

	// Answers go to inboxes, and nowhere else.
	if _, err := mc.Subscribe("ask.>", func(msg *nats.Msg) { _ = msg.Respond([]byte("42")) }); err != nil {
		t.Fatal(err)
	}
	if err := mc.Flush(); err != nil {
		t.Fatal(err)
	}
	answer, err := boss1.Request(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "ask.m1"})
	if err != nil || string(answer.Data) != "42" {
		t.Errorf("asked: %v, %v", answer, err)
	}
	orders, err := nc.SubscribeSync("orders.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := boss1.Publish(nc, &nats.Msg{Subject: "ask.m1", Reply: "orders.1"}); err != nil {
		t.Fatal(err)
	}
	for _, get := range []struct {
		conn           *nats.Conn
		subject, reply string
	}{
		{nc, "orders.2", ""},
		{mc, "orders.3", ""},
		{nc, "$JS.API.STREAM.CREATE.S", nc.NewInbox()},
		{nc, "$JS.acme.API.STREAM.CREATE.S", nc.NewInbox()},
	} {
		if err := errors.Join(get.conn.PublishMsg(&nats.Msg{Subject: get.subject, Reply: get.reply}), get.conn.Flush()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-violations:
			if !strings.Contains(err.Error(), get.subject) {
				t.Errorf("%s: %v", get.subject, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nobody was told that it is refused", get.subject)
		}
	}
	if _, err := nc.SubscribeSync("$SIGNED.>"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-violations:
		if !strings.Contains(err.Error(), "Subscription") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("what is not verified can be heard")
	}

	// Streams are made and written to with a signature.
	config := []byte(`{"name":"ORDERS","subjects":["orders.>"],"storage":"memory","retention":"limits","discard":"old","num_replicas":1}`)
	made, err := boss1.Request(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "$JS.API.STREAM.CREATE.ORDERS", Data: config})
	if err != nil || !strings.Contains(string(made.Data), `"ORDERS"`) {
		t.Fatalf("a stream: %v", err)
	}
	stored, err := boss1.Request(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "orders.5", Data: []byte("five")})
	if err != nil || !strings.Contains(string(stored.Data), `"seq":1`) {
		t.Fatalf("a message to a stream: %v", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(limited(t, 10*time.Second), "ORDERS")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := stream.GetLastMsgForSubject(limited(t, 10*time.Second), "orders.5")
	if err != nil {
		t.Fatal(err)
	}
	v := signing.NewVerifier(boss1.Audience(), signing.KeyList{boss1.Key(): "boss"}, signing.Options{Stored: true})
	for range 2 {
		if p, err := v.VerifyText(t.Context(), kept.Header.Get(signing.Header), kept.Subject, kept.Data); err != nil || p.Name != "boss" {
			t.Errorf("what was stored: %v, %v", p, err)
		}
	}
	consumer, err := js.CreateConsumer(limited(t, 10*time.Second), "ORDERS", jetstream.ConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := consumer.Next(jetstream.FetchMaxWait(5 * time.Second)); err != nil || string(msg.Data()) != "five" {
		t.Errorf("a consumer reads %v, %v", msg, err)
	}
	if msg, err := orders.NextMsg(5 * time.Second); err != nil || msg.Subject != "orders.5" {
		t.Errorf("first of all was heard: %v, %v", msg, err)
	}
	// A publish that is not by way of those who verify tells so to the client of a stream.
	if _, err := js.Publish(limited(t, 2*time.Second), "$SIGNED.orders.6", nil); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("an unsigned message to a stream: %v", err)
	}
}

// TestChange sets an account that is in use: users keep their connections or come back,
// with what holds then.
func TestChange(t *testing.T) {
	s := fleetbustest.Start(t)
	creds := s.Creds("acme", "alice")
	signer := signerOf(t, creds)
	password := s.Password(admin.UserRequest{Name: "acme/carol"})
	dial := func() *nats.Conn {
		nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.UserInfo("acme/carol", password), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	nc, carol := connect(t, s, creds, "alice", nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond)), dial()
	heard := func(conn *nats.Conn) error {
		inbox := "plain." + nats.NewInbox()[len("_INBOX."):]
		sub, err := conn.SubscribeSync(inbox)
		if err != nil {
			return err
		}
		defer func() { _ = sub.Unsubscribe() }()
		if err := conn.Publish(inbox, nil); err != nil {
			return err
		}
		_, err = sub.NextMsg(200 * time.Millisecond)
		return err
	}
	for _, conn := range []*nats.Conn{nc, carol} {
		want(t, "off", heard(conn), nil)
	}
	want(t, "off", raw(t, nc, "a", "x", nil), nats.ErrNoResponders)
	demand(t, s, "acme", "optional")
	ready(t, nc, signer)
	for _, conn := range []*nats.Conn{nc, carol} {
		fleetbustest.Eventually(t, "what is optional is heard unsigned", func() error { return heard(conn) })
	}
	demand(t, s, "acme", "required")
	for _, conn := range []*nats.Conn{nc, carol} {
		fleetbustest.Eventually(t, "what is not signed is refused", func() error {
			if err := heard(conn); err == nil {
				return errors.New("it was heard")
			}
			return nil
		})
	}
	ready(t, nc, signer)
	demand(t, s, "acme", "off")
	for _, conn := range []*nats.Conn{nc, carol} {
		fleetbustest.Eventually(t, "everything is as before", func() error { return heard(conn) })
	}
}

// TestCertificate signs with the key of a client certificate.
func TestCertificate(t *testing.T) {
	s := fleetbustest.Start(t)
	demand(t, s, "acme", "required")
	creds := s.MoreCreds("acme", "alice")
	nc := connect(t, s, creds, "alice")
	ready(t, nc, signerOf(t, creds))
	audience, err := signing.FetchAudience(limited(t, 10*time.Second), nc)
	if err != nil {
		t.Fatal(err)
	}
	dave, err := signing.FromCertificate(s.Certificate(admin.UserRequest{Name: "acme/dave"}), audience)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "a certificate", dave.Send(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "orders"}), nil)
	if a, err := signing.FetchKey(limited(t, 10*time.Second), nc, dave.Key()); err != nil || a.Name != "dave" || a.Expires.IsZero() {
		t.Errorf("its key is of %+v, %v", a, err)
	}
	if _, err := s.Admin().RemoveUser(limited(t, 10*time.Second), "acme/dave"); err != nil {
		t.Fatal(err)
	}
	want(t, "a certificate of a removed user", dave.Send(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "orders"}), signing.ErrUnknownKey)
}
