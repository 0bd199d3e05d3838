package fleetbus_test

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

// hear subscribes, and the node knows it when hear returns.
func hear(t *testing.T, nc *nats.Conn, subject, queue string) *nats.Subscription {
	t.Helper()
	sub, err := nc.QueueSubscribeSync(subject, queue)
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// silent fails if something arrives, up to an answer of the node that nc is
// connected to.
func silent(t *testing.T, nc *nats.Conn, sub *nats.Subscription, what string) {
	t.Helper()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if msg, err := sub.NextMsg(time.Millisecond); err == nil {
		t.Errorf("%s: heard %s %q", what, msg.Subject, msg.Data)
	}
}

// TestFlows has messages and a service cross between accounts on three nodes by
// consent, at once, and not after.
func TestFlows(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	ctx, api := limited(t, 60*time.Second), nodes[1].Admin()
	acme, ops, eve := nodes[0].Dial("acme", "web1"), nodes[2].Dial("ops", "pool"), nodes[2].Dial("beta", "eve")

	// Without consent there is no import, and what is in the way says so.
	asFleet := admin.ImportRequest{Account: "ops", From: "acme", Subject: "registration.>", As: "fleet.acme.>"}
	if _, err := api.AddImport(ctx, asFleet); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Errorf("imported without consent: %v", err)
	}
	for _, bad := range []admin.ExportRequest{
		{Account: "acme", Subject: "registration.>"}, {Account: "acme", Subject: "$JS.API.>", To: []string{"ops"}},
		{Account: "acme", Subject: ">", Everybody: true}, {Account: "acme", Subject: "a", To: []string{"acme"}},
		{Account: "acme", Subject: "a", To: []string{"none"}}, {Account: "FLEET", Subject: "admin.>", To: []string{"ops"}},
		{Account: "acme", Subject: "a", To: []string{"ops"}, Everybody: true},
	} {
		if _, err := api.AddExport(ctx, bad); err == nil {
			t.Errorf("exported %+v", bad)
		}
	}
	export := admin.ExportRequest{Account: "acme", Subject: "registration.>", To: []string{"ops"}}
	spread, err := api.AddExport(ctx, export)
	if err != nil || len(spread.Nodes) != 3 || !spread.Changed {
		t.Fatalf("exported on %+v: %v", spread, err)
	}
	if spread, err = api.AddExport(ctx, export); err != nil || spread.Changed {
		t.Errorf("exported again as %+v: %v", spread, err)
	}
	heard := hear(t, ops, "fleet.>", "")
	var nosy []*nats.Subscription
	for _, subject := range []string{"registration.>", "fleet.>", "time.*", "clock.*"} {
		nosy = append(nosy, hear(t, eve, subject, ""))
	}
	if _, err := api.AddImport(ctx, asFleet); err != nil {
		t.Fatal(err)
	}
	if spread, err = api.AddImport(ctx, asFleet); err != nil || spread.Changed {
		t.Errorf("imported again as %+v: %v", spread, err)
	}
	if _, err := api.AddImport(ctx, admin.ImportRequest{Account: "beta", From: "acme", Subject: "registration.>"}); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Errorf("beta imported without consent: %v", err)
	}
	if _, err := api.AddExport(ctx, admin.ExportRequest{Account: "ops", Subject: "fleet.acme.>", To: []string{"beta"}}); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("passed on: %v", err)
	}

	// A stream of numbers, which ends with the consent.
	var last atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if acme.Publish("registration.web1", strconv.AppendInt(nil, last.Add(1), 10)) != nil || acme.Flush() != nil {
					return
				}
			}
		}
	}()
	msg, err := heard.NextMsgWithContext(ctx)
	if err != nil || msg.Subject != "fleet.acme.web1" {
		t.Fatalf("heard %+v: %v", msg, err)
	}
	for range 50 {
		if _, err := heard.NextMsgWithContext(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.RemoveExport(ctx, export); err != nil {
		t.Fatal(err)
	}
	end := last.Load()
	await(t, "numbers that are told nobody", func() bool { return last.Load() > end+100 })
	close(stop)
	<-done
	crossed := int64(0)
	if err := ops.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := heard.NextMsg(50 * time.Millisecond)
		if err != nil {
			break
		}
		if crossed, err = strconv.ParseInt(string(msg.Data), 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the last number that crossed is %d, and %d was the last when the consent was gone", crossed, end)
	if crossed > end {
		t.Errorf("%d crossed, after the consent was gone at %d", crossed, end)
	}
	imports, err := api.Imports(ctx, "ops")
	if err != nil || len(imports) != 1 || imports[0].State != admin.ImportWaiting {
		t.Errorf("the imports of ops are %+v: %v", imports, err)
	}

	// Consent again brings it back, and the account's removal ends it for good.
	if _, err := api.AddExport(ctx, export); err != nil {
		t.Fatal(err)
	}
	if err := acme.Publish("registration.web2", nil); err != nil {
		t.Fatal(err)
	}
	if msg, err := heard.NextMsgWithContext(ctx); err != nil || msg.Subject != "fleet.acme.web2" {
		t.Errorf("after another consent heard %+v: %v", msg, err)
	}
	info, err := api.Account(ctx, "acme")
	if err != nil || len(info.Exports) != 1 || fmt.Sprint(info.Exports[0].Importers) != "[ops]" {
		t.Errorf("acme is %+v: %v", info, err)
	}

	// A service of ops that everybody may ask.
	if _, err := api.AddExport(ctx, admin.ExportRequest{Account: "ops", Subject: "time.*", Service: true, Everybody: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.AddImport(ctx, admin.ImportRequest{Account: "acme", From: "ops", Subject: "time.*", As: "clock.*"}); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Subscribe("time.*", func(m *nats.Msg) { _ = m.Respond([]byte(m.Subject)) }); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "an answer of another account", func() error {
		answer, err := acme.Request("clock.utc", nil, time.Second)
		if err == nil && string(answer.Data) != "time.utc" {
			t.Errorf("ops was asked for %s", answer.Data)
		}
		return err
	})
	for _, sub := range nosy {
		silent(t, eve, sub, "an account that nothing was consented to")
	}

	if _, err := api.AddExport(ctx, admin.ExportRequest{Account: "ops", Subject: "news", To: []string{"acme", "beta"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.RemoveAccount(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if exports, err := api.Exports(ctx, "ops"); err != nil || len(exports) != 2 || len(exports[0].To) != 1 || exports[0].To[0].Account != "beta" {
		t.Errorf("ops exports %+v: %v", exports, err)
	}
	if exports, err := api.Exports(ctx, ""); err != nil || len(exports) != 2 || exports[0].Account != "ops" {
		t.Errorf("left are exports %+v: %v", exports, err)
	}
	if imports, err := api.Imports(ctx, ""); err != nil || len(imports) != 0 {
		t.Errorf("left are imports %+v: %v", imports, err)
	}
}

// TestQueueGroupSpansImports has a queue group of one account share the work of
// the group of that name in the account that it imports from, as docs/accounts.md
// warns.
func TestQueueGroupSpansImports(t *testing.T) {
	s := fleetbustest.Start(t)
	ctx, api := limited(t, 30*time.Second), s.Admin()
	acme, ops := s.Dial("acme", "app"), s.Dial("ops", "pool")
	if _, err := api.AddExport(ctx, admin.ExportRequest{Account: "acme", Subject: "jobs.>", To: []string{"ops"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.AddImport(ctx, admin.ImportRequest{Account: "ops", From: "acme", Subject: "jobs.>", As: "of.acme.>"}); err != nil {
		t.Fatal(err)
	}
	here, there, all := hear(t, acme, "jobs.>", "workers"), hear(t, ops, "of.acme.>", "workers"), hear(t, ops, "of.acme.>", "pool")
	const sent = 200
	for range sent {
		if err := acme.Publish("jobs.new", nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, nc := range []*nats.Conn{acme, ops} {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	counts := map[string]int{}
	for name, sub := range map[string]*nats.Subscription{"here": here, "there": there, "all": all} {
		n, _, err := sub.Pending()
		if err != nil {
			t.Fatal(err)
		}
		counts[name] = n
	}
	if counts["all"] != sent || counts["here"]+counts["there"] != sent || counts["here"] == 0 || counts["there"] == 0 {
		t.Errorf("of %d messages the groups have %v", sent, counts)
	}
}
