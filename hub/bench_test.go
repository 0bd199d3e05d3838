package hub

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// BenchmarkPass has messages of 256 bytes go from a client of one node, by its queue,
// mosquitto with mutual TLS and another node's engine, to a client of that.
func BenchmarkPass(b *testing.B) {
	m := startMosquitto(b, true, "max_queued_messages 0")
	n1, n2 := startNode(b, m.options("n1")), startNode(b, m.options("n2"))
	met(b, n1, n2)
	payload := make([]byte, 256)
	nc := n1.bus.Connect()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1000))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("stream", func(b *testing.B) {
		come := make(chan struct{}, 1)
		left := b.N
		sub, err := n2.bus.Connect().Subscribe("orders.>", func(*nats.Msg) {
			if left--; left == 0 {
				come <- struct{}{}
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = sub.Unsubscribe() }()
		b.ResetTimer()
		for range b.N {
			if _, err := js.PublishAsync("orders.a", payload); err != nil {
				b.Fatal(err)
			}
		}
		<-come
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("one", func(b *testing.B) {
		var mu sync.Mutex
		var took []time.Duration
		come := make(chan struct{}, 1)
		var began time.Time
		sub, err := n2.bus.Connect().Subscribe("orders.>", func(*nats.Msg) {
			mu.Lock()
			took = append(took, time.Since(began))
			mu.Unlock()
			come <- struct{}{}
		})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = sub.Unsubscribe() }()
		b.ResetTimer()
		for range b.N {
			mu.Lock()
			began = time.Now()
			mu.Unlock()
			if err := nc.Publish("orders.a", payload); err != nil {
				b.Fatal(err)
			}
			<-come
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	})
}
