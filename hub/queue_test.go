package hub

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// TestOtherStreams has another stream keep a subject that passes, before and after
// the link was there.
func TestOtherStreams(t *testing.T) {
	m := startMosquitto(t, false)
	n2 := startNode(t, m.options("n2"))
	heard := n2.listen("orders.>")
	n1 := &node{t: t, name: "n1", bus: changetest.Start(t), o: m.options("n1")}
	js := n1.jetstream()
	config := jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	n1.publish(js, "orders.a", "before the link")
	n1.run()
	met(t, n1, n2)
	for i := range 50 {
		n1.publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
	}
	n1.halt()
	n1.publish(js, "orders.a", "n1 50")
	n1.run()
	await.Nil(t, "all come", func() error {
		if missing, _, _ := account(heard.payloads(), 51, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d are missing: %q", missing, heard.payloads())
		}
		return nil
	})
	if got := heard.payloads(); len(got) != 51 {
		t.Errorf("%q", got)
	}
	// The other way, the other stream has what came.
	n2.publish(n2.jetstream(), "orders.b", "back")
	await.Nil(t, "the stream has it", func() error {
		s, err := js.Stream(t.Context(), "ORDERS")
		if err != nil {
			return err
		}
		_, err = s.GetLastMsgForSubject(t.Context(), "orders.b")
		return err
	})
	if h := n2.link.Hub(); h.Lost > 0 || h.Received != 51 {
		t.Errorf("%+v", h)
	}
	// What only a part of is kept elsewhere is refused, with words for it.
	n1.halt()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "STOCK", Subjects: []string{"stock.eu"}}); err != nil {
		t.Fatal(err)
	}
	o := n1.o
	o.Subjects = append(o.Subjects, "stock.*")
	link, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Run(t.Context(), n1.bus.Connect()); err == nil || !strings.Contains(err.Error(), `stream "STOCK" keeps a part of subject "stock.*"`) {
		t.Errorf("%v", err)
	}
}

// TestQueueIsBounded fills the queue while the hub is away.
func TestQueueIsBounded(t *testing.T) {
	m := startMosquitto(t, false)
	o := m.options("n1")
	o.Queue = 256 << 10
	n1, n2 := startNode(t, o), startNode(t, m.options("n2"))
	met(t, n1, n2)
	heard := n2.listen("orders.>")
	m.kill()
	js := n1.jetstream()
	stored := 0
	for ; ; stored++ {
		_, err := js.Publish(t.Context(), "orders.a", fmt.Appendf(nil, "n1 %d%s", stored, strings.Repeat(" ", 1000)))
		var refusal *jetstream.APIError
		if errors.As(err, &refusal) {
			break // the publisher knows
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if stored < 100 {
		t.Errorf("only %d messages fit", stored)
	}
	await.Nil(t, "it is a finding", func() error { return finding(n1, "HUB-QUEUE-FULL", "hub.queue") })
	m.start()
	await.Nil(t, "what was taken comes", func() error {
		if missing, _, _ := account(trimmed(heard.payloads()), stored, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d of %d are missing", missing, stored)
		}
		return nil
	})
	await.Nil(t, "there is room again", func() error {
		_, err := js.Publish(t.Context(), "orders.a", []byte("n1 more"))
		return err
	})
}

func trimmed(all []string) []string {
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return all
}

// TestTooLarge has a message that the hub does not take pass by, and is told.
func TestTooLarge(t *testing.T) {
	m := startMosquitto(t, false, "max_packet_size 2000")
	n1, n2 := startNode(t, m.options("n1")), startNode(t, m.options("n2"))
	met(t, n1, n2)
	heard := n2.listen("orders.>")
	js := n1.jetstream()
	n1.publish(js, "orders.a", "n1 0")
	n1.publish(js, "orders.a", strings.Repeat("x", 3000))
	n1.publish(js, "orders.a", "n1 1")
	await.Nil(t, "the others come", func() error {
		if got := strings.Join(heard.payloads(), " "); got != "n1 0 n1 1" {
			return fmt.Errorf("%q", got)
		}
		return finding(n1, "HUB-TOO-LARGE", "limit")
	})
}

// TestAtMostOnce uses QoS 0, and finds what is lost all the same.
func TestAtMostOnce(t *testing.T) {
	m := startMosquitto(t, false, "max_qos 0")
	o1, o2 := m.options("n1"), m.options("n2")
	o1.AtMostOnce = true // and the other is told by the hub
	n1, n2 := startNode(t, o1), startNode(t, o2)
	met(t, n1, n2)
	heard := n2.listen("orders.>")
	js := n1.jetstream()
	for i := range 200 {
		n1.publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
		if i == 100 {
			m.kill()
			m.start()
		}
	}
	await.Nil(t, "all come", func() error {
		if missing, _, _ := account(heard.payloads(), 200, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d are missing: %+v", missing, n2.link.Hub())
		}
		return nil
	})
	if _, twice, late := account(heard.payloads(), 200, []string{"n1"}); twice+late > 0 {
		t.Errorf("%d twice, %d late", twice, late)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.>", "a.b.c", true}, {"a.>", "a", false}, {"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"a.b", "a.b", true}, {"a.b", "a.c", false},
		{"a.>", "a.*", true}, {"a.*", "a.>", false}, {"a.b", "a.*", false}, {"*.b", "a.b", true}, {">", "a", true}, {"a.b", "a.b.c", false}, {"a.b.c", "a.b", false},
	} {
		if got := matches(c.pattern, c.subject); got != c.want {
			t.Errorf("%q takes %q: %v", c.pattern, c.subject, got)
		}
	}
}
