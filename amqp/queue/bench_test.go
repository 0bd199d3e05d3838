package queue_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
)

// counter takes everything, and keeps the last.
type counter struct{ last uint64 }

func (c *counter) Deliver(d queue.Delivery) bool { c.last = d.ID; return true }
func (c *counter) Gone()                         {}
func (c *counter) Done(bool)                     {}

// benchmarkThrough publishes, delivers and acknowledges one message after another.
func benchmarkThrough(b *testing.B, q *queue.Queue) {
	m := message(b, string(make([]byte, 256)), frame.Properties{DeliveryMode: 2})
	c := &counter{}
	if _, err := q.Consume(c, queue.ConsumerOptions{Prefetch: 10}); err != nil {
		b.Fatal(err)
	}
	ids := make([]uint64, 1)
	b.ReportAllocs()
	for b.Loop() {
		q.Publish(m, c)
		ids[0] = c.last
		q.Settle(ids, queue.Ack)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkThroughTransient(b *testing.B) { benchmarkThrough(b, newRoom(b).queue(nil)) }

func BenchmarkThroughTTL(b *testing.B) {
	benchmarkThrough(b, newRoom(b).queue(frame.Table{"x-message-ttl": int32(60000)}))
}

func BenchmarkThroughPriorities(b *testing.B) {
	benchmarkThrough(b, newRoom(b).queue(frame.Table{"x-max-priority": int32(10)}))
}

// swift is a log that forgets, so that the queue is measured.
type swift struct {
	queue.Log
	seq uint64
}

func (l *swift) Append(_ *queue.Record, q *queue.Queue, place uint64) {
	l.seq++
	q.Stored(place, l.seq, nil)
}
func (l *swift) Note(queue.Note)                                  {}
func (l *swift) Replay(func(*queue.Record) error) (uint64, error) { return 0, nil }

func BenchmarkThroughDurable(b *testing.B) { benchmarkThrough(b, newRoom(b).open(&swift{}, nil)) }

// BenchmarkBacklog fills a queue and drains it: 1,000 messages each time.
func BenchmarkBacklog(b *testing.B) {
	const n = 1000
	q := newRoom(b).queue(nil)
	m := message(b, string(make([]byte, 256)), frame.Properties{})
	ids := make([]uint64, 0, n)
	b.ReportAllocs()
	for b.Loop() {
		for range n {
			q.Publish(m, nil)
		}
		c := &taker{room: n}
		s, err := q.Consume(c, queue.ConsumerOptions{})
		if err != nil {
			b.Fatal(err)
		}
		ids = ids[:0]
		for _, d := range c.got {
			ids = append(ids, d.ID)
		}
		s.Cancel()
		q.Settle(ids, queue.Ack)
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkQueues makes 10,000 queues with a consumer each, and measures their memory.
func BenchmarkQueues(b *testing.B) {
	const n = 10_000
	for _, used := range []bool{false, true} {
		b.Run(fmt.Sprintf("used=%v", used), func(b *testing.B) {
			var memory float64
			for b.Loop() {
				b.StopTimer()
				r := newRoom(b)
				names := make([]string, n)
				for i := range names {
					names[i] = fmt.Sprintf("reply_%032d", i)
				}
				all := make([]*queue.Queue, n)
				consumers := make([]counter, n)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				for i := range all {
					s, err := queue.Parse("/", &frame.QueueDeclare{Queue: names[i]}, "")
					if err != nil {
						b.Fatal(err)
					}
					all[i] = queue.New(s, &r.Env)
					if _, err := all[i].Consume(&consumers[i], queue.ConsumerOptions{}); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				if used {
					m := message(b, "x", frame.Properties{})
					for i, q := range all {
						q.Publish(m, &consumers[i])
						q.Settle([]uint64{consumers[i].last}, queue.Ack)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				memory = float64(after.HeapAlloc-before.HeapAlloc) / n
				runtime.KeepAlive(all)
				b.StartTimer()
			}
			b.ReportMetric(memory, "bytes/queue")
		})
	}
}
