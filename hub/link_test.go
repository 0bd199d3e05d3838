package hub

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/await"
)

// publish stores a message, so that the queue has it.
func (n *node) publish(js jetstream.JetStream, subject, payload string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	if _, err := js.Publish(ctx, subject, []byte(payload)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) jetstream() jetstream.JetStream {
	n.t.Helper()
	js, err := jetstream.New(n.bus.Connect())
	if err != nil {
		n.t.Fatal(err)
	}
	return js
}

func three(t *testing.T, m *mosquitto) []*node {
	t.Helper()
	var nodes []*node
	for _, name := range []string{"n1", "n2", "n3"} {
		nodes = append(nodes, startNode(t, m.options(name)))
	}
	met(t, nodes...)
	return nodes
}

func TestMessagesPass(t *testing.T) {
	m := startMosquitto(t, true)
	nodes := three(t, m)
	var heard []*listener
	for _, n := range nodes {
		heard = append(heard, n.listen("orders.>"))
	}
	js := nodes[0].jetstream()
	msg := &nats.Msg{Subject: "orders.eu.1", Data: []byte("one"), Header: nats.Header{"Color": {"red", "blue"}, "Content-Type": {"text/plain"}, "Nats-Msg-Id": {"x"}}}
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	nodes[0].publish(js, "orders.eu.2", "two")
	for i, l := range heard {
		await.Nil(t, "the message comes", func() error {
			if got := strings.Join(l.payloads(), " "); got != "one two" {
				return fmt.Errorf("%s heard %q", nodes[i].name, got)
			}
			return nil
		})
	}
	if got := heard[1].msgs[0]; got.Subject != "orders.eu.1" || fmt.Sprint(got.Header["Color"]) != "[red blue]" || got.Header.Get("Content-Type") != "text/plain" || !strings.HasPrefix(got.Header.Get(OriginHeader), "n1:") || got.Header.Get("Nats-Msg-Id") != "" {
		t.Errorf("%s %v", got.Subject, got.Header)
	}
	// Nothing came back, and nothing goes round.
	nodes[1].publish(nodes[1].jetstream(), "orders.end", "end")
	for i, l := range heard {
		await.Nil(t, "the end comes", func() error {
			if got := strings.Join(l.payloads(), " "); got != "one two end" {
				return fmt.Errorf("%s heard %q", nodes[i].name, got)
			}
			return nil
		})
		if h := nodes[i].link.Hub(); h.Dropped != 0 || h.Repeats != 0 || h.Lost != 0 {
			t.Errorf("%+v", h)
		}
	}
}
