package packet

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

// mutations is how many packets TestMutated reads, unless FLEETBUS_PACKETS says more.
const mutations = 200_000

// A specimen is a packet, right or wrong, that others are made of.
type specimen struct {
	first byte
	body  []byte
}

func specimens() (all []specimen) {
	add := func(spec string) {
		if first, body := packettest.Wire(spec); len(body) < 1000 {
			all = append(all, specimen{first, body})
		}
	}
	for _, s := range samples() {
		add(s.spec)
	}
	for _, b := range packettest.Breaches() {
		add(b.Spec)
	}
	return all
}

// mutate makes a packet of two others, in b.
func mutate(r *rand.Rand, all []specimen, b []byte) (first byte, body []byte) {
	s := all[r.IntN(len(all))]
	first, body = s.first, append(b[:0], s.body...)
	for range 1 + r.IntN(4) {
		at := r.IntN(len(body) + 1)
		switch r.IntN(8) {
		case 0: // another packet's end
			other := all[r.IntN(len(all))].body
			body = append(body[:at], other[r.IntN(len(other)+1):]...)
		case 1:
			body = body[:at]
		case 2: // an extreme length
			for i := at; i < min(at+2, len(body)); i++ {
				body[i] = 0xff
			}
		case 3:
			body = append(body[:at], append([]byte{byte(r.Uint32())}, body[at:]...)...)
		case 4:
			first ^= 1 << r.IntN(8)
		default:
			if at < len(body) {
				body[at] ^= 1 << r.IntN(8)
			}
		}
	}
	return first, body
}

// TestMutated reads very many packets that are almost right, as either side and in
// every version. What is read is written and read again; nothing panics.
func TestMutated(t *testing.T) {
	total := int64(mutations)
	if n, err := strconv.ParseInt(os.Getenv("FLEETBUS_PACKETS"), 10, 64); err == nil {
		total = n
	}
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("FLEETBUS_SEED"), 10, 64); err == nil {
		seed = n
	}
	all := specimens()
	const workers = 2
	var wg sync.WaitGroup
	var good atomic.Int64
	for w := range uint64(workers) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, w))
			b := make([]byte, 0, 4096)
			for i := range total / workers {
				first, body := mutate(r, all, b)
				v, side := chosen(byte(r.Uint32()))
				p, err := Decode(first, body, v, side)
				if err != nil {
					if _, ok := err.(*Error); !ok || p != nil {
						t.Errorf("seed %d, packet %d of %d: % x of %x was read as %v and %v", seed, i, w, first, body, p, err)
						return
					}
					continue
				}
				good.Add(1)
				if c, ok := p.(*Connect); ok {
					v = c.Version
				}
				again(t, p, v, side)
			}
		})
	}
	wg.Wait()
	t.Logf("seed %d: of %d packets %d were right", seed, total, good.Load())
	if good.Load() == 0 || good.Load() == total {
		t.Error("the packets were not almost right")
	}
}
