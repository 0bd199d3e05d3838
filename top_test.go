package fleetbus_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

// TestTop has messages go from one node to the other while it is measured: they came
// in once and went out once, whatever the nodes sent one another.
func TestTop(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 2)
	creds := nodes[0].Creds("acme", "alice")
	var sub, pub *nats.Conn
	fleetbustest.Eventually(t, "both nodes know the user", func() (err error) {
		if sub == nil {
			if sub, err = nodes[1].Connect(creds); err != nil {
				return err
			}
		}
		pub, err = nodes[0].Connect(creds)
		return err
	})
	defer sub.Close()
	defer pub.Close()
	heard := make(chan *nats.Msg, 1024)
	if _, err := sub.ChanSubscribe("a", heard); err != nil {
		t.Fatal(err)
	}
	if err := sub.Flush(); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "one node hears of the other's subscription", func() error {
		if err := errors.Join(pub.Publish("a", nil), pub.Flush()); err != nil {
			return err
		}
		select {
		case <-heard:
			return nil
		case <-time.After(50 * time.Millisecond):
			return errors.New("it does not")
		}
	})
	api := nodes[0].Admin()
	ctx := limited(t, 60*time.Second)
	for _, tt := range []struct {
		request admin.TopRequest
		name    string
	}{{admin.TopRequest{Interval: time.Second}, "acme"}, {admin.TopRequest{Interval: time.Second, Account: "acme", Users: true}, "acme/alice"}} {
		type result struct {
			top admin.Top
			err error
		}
		measured := make(chan result)
		go func() {
			top, err := api.Top(ctx, tt.request)
			measured <- result{top, err}
		}()
		// As many a second, until it is measured.
		tick := time.NewTicker(2 * time.Millisecond)
		var r result
		for done := false; !done; {
			select {
			case r = <-measured:
				done = true
			case <-tick.C:
				if err := pub.Publish("a", []byte("0123456789")); err != nil {
					t.Fatal(err)
				}
			case <-heard:
			}
		}
		tick.Stop()
		if r.err != nil || len(r.top.Missing) > 0 || len(r.top.Errors) > 0 {
			t.Fatalf("%+v, %v", r.top, r.err)
		}
		i := slices.IndexFunc(r.top.Rates, func(r admin.Rate) bool { return r.Name == tt.name })
		if i < 0 {
			t.Fatalf("%q is not among %+v", tt.name, r.top)
		}
		if got := r.top.Rates[i]; got.Connections < 2 || got.InMsgs < 50 || got.OutMsgs < 50 || got.InMsgs > 1000 || got.OutMsgs > 1000 ||
			got.InMsgs/got.OutMsgs < 0.5 || got.InMsgs/got.OutMsgs > 2 || got.InBytes/got.InMsgs < 9 || got.InBytes/got.InMsgs > 11 {
			t.Errorf("the rates are %+v", got)
		}
		for _, r := range r.top.Rates {
			if r.Name == "SYS" || r.Name == "CALLOUT" || strings.HasPrefix(r.Name, "A") {
				t.Errorf("%q is told of", r.Name)
			}
		}
	}
	for want, r := range map[string]admin.TopRequest{"there is no account": {Account: "nobody"}, "one account at a time": {Users: true}} {
		if _, err := api.Top(ctx, r); err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
