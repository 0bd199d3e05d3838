package provision_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/provision"
)

// BenchmarkProvision has machines with keys of their own get an identity, by a token
// over a connection in clear, and come in by it over TLS: machines a minute, and how
// long one of them takes. 16 are under way at once. The machines' own work is done on
// this machine, too.
func BenchmarkProvision(b *testing.B) {
	p := newPlace(b)
	d := p.desk(tills)
	text := d.token(b, "tills", "", min(b.N, provision.MaxUses))
	next := make(chan int)
	var mu sync.Mutex
	var took []time.Duration
	var running sync.WaitGroup
	ctx := b.Context()
	b.ResetTimer()
	for range 16 {
		running.Go(func() {
			for n := range next {
				began := time.Now()
				keys, err := provision.NewKeys()
				if err != nil {
					b.Error(err)
					continue
				}
				id, err := provision.Ask(ctx, provision.Machine{Server: p.addr(), Name: fmt.Sprintf("till-%d", n), Keys: keys, Token: text})
				if err != nil {
					b.Error(err)
					continue
				}
				nc, err := id.Connect(ctx, nil)
				if err != nil {
					b.Error(err)
					continue
				}
				nc.Close()
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	for n := range b.N {
		next <- n
	}
	close(next)
	running.Wait()
	b.StopTimer()
	if len(took) == 0 {
		b.Fatal("nobody has an identity")
	}
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Minutes(), "machines/min")
	b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
}
