package traces_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/traces"
	"github.com/fleetbus/fleetbus/mqtt"
)

// A span as the collector gets it.
type span struct {
	TraceID, SpanID, ParentSpanID, Name string
	Kind                                int
}

func collector(t *testing.T) (url string, spans <-chan span) {
	got := make(chan span, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			ResourceSpans []struct{ ScopeSpans []struct{ Spans []span } }
		}
		if body, err := io.ReadAll(r.Body); err != nil || json.Unmarshal(body, &in) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, resource := range in.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, one := range scope.Spans {
					got <- one
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

// TestAcross has a trace go from an MQTT client to a NATS client and back, with a
// collector that hears of it.
func TestAcross(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	url, spans := collector(t)
	telling, stop := context.WithCancel(ctx)
	wait := func() {}
	s := fleetbustest.Start(t, func(one *fleetbus.Options) {
		one.Accounts = []string{"acme"}
		one.Grace = 100 * time.Millisecond
		one.Listeners = append(one.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
		var err error
		wait, err = traces.Tell(telling, *one, func(name string) string {
			return map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}[name]
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		stop()
		wait()
	}()
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	conn, err := tls.Dial("tcp", s.Addr("mqtt").String(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	received := make(chan *paho.Publish, 10)
	client := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(p paho.PublishReceived) (bool, error) {
			received <- p.Packet
			return true, nil
		},
	}})
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: "device", KeepAlive: 30, CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "answers/#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	nc := s.Dial("acme", "service")
	sub, err := nc.SubscribeSync("orders.new")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	const trace, first, second = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "a1a2a3a4a5a6a7a8"
	const out, back = "00-" + trace + "-" + first + "-01", "00-" + trace + "-" + second + "-01"
	if _, err := client.Publish(ctx, &paho.Publish{Topic: "orders/new", QoS: 1, Payload: []byte("1"), Properties: &paho.PublishProperties{
		User: paho.UserProperties{{Key: "traceparent", Value: out}, {Key: "tracestate", Value: "a=b"}}}}); err != nil {
		t.Fatal(err)
	}
	msg, err := sub.NextMsgWithContext(ctx)
	if err != nil || msg.Header["traceparent"][0] != out || msg.Header["tracestate"][0] != "a=b" {
		t.Fatalf("over NATS came %+v, %v", msg, err)
	}
	if err := nc.PublishMsg(&nats.Msg{Subject: "answers.1", Header: nats.Header{"traceparent": {back}}, Data: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-received:
		if p.Properties.User.Get("traceparent") != back {
			t.Errorf("over MQTT came %+v", p)
		}
	case <-ctx.Done():
		t.Fatal("the answer did not come")
	}

	// What is not sampled, or no context, is not told.
	for _, value := range []string{"00-" + trace + "-" + first + "-00", "nonsense"} {
		if _, err := client.Publish(ctx, &paho.Publish{Topic: "orders/new", QoS: 1, Payload: []byte("1"), Properties: &paho.PublishProperties{
			User: paho.UserProperties{{Key: "traceparent", Value: value}}}}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	wait()
	all := map[string]span{}
	for len(spans) > 0 {
		one := <-spans
		all[one.Name] = one
	}
	in, sent := all["receive acme"], all["send acme"]
	if len(all) != 2 || in.TraceID != trace || in.ParentSpanID != first || in.Kind != 5 || sent.TraceID != trace || sent.ParentSpanID != second || sent.Kind != 4 || in.SpanID == sent.SpanID {
		t.Errorf("the collector heard of %+v", all)
	}
}
