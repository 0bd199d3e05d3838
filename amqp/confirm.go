package amqp

import (
	"cmp"
	"slices"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// confirms are those of a channel that its client waits for.
type confirms struct {
	first uint64   // the smallest tag that the client was not told of
	news  []result // what it was not told of and is known
	told  []uint64 // tags above first that it was told of
	over  bool     // it is told of nothing more
}

type result struct {
	tag   uint64
	taken bool
}

// confirm implements confirmer. Confirms go out with what is written next, as few as
// they can be.
func (ch *channel) confirm(tag uint64, taken bool) {
	ch.mu.Lock()
	first := len(ch.confirmed.news) == 0
	ch.confirmed.news = append(ch.confirmed.news, result{tag, taken})
	ch.mu.Unlock()
	if first {
		ch.c.out.confirms(ch)
	}
}

// flushConfirms writes the confirms that there are. last: no more are.
func (ch *channel) flushConfirms(last bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	c := &ch.confirmed
	if !c.over {
		c.flush(func(m frame.Method) { _ = ch.c.out.send(ch.id, m) })
	}
	c.news = c.news[:0]
	c.over = c.over || last
}

// flush sends what is known. Several at once are told only from the first that the
// client does not know, without a gap, and none of them refused: some clients take all
// below for taken.
func (c *confirms) flush(send func(frame.Method)) {
	slices.SortFunc(c.news, func(a, b result) int { return cmp.Compare(a.tag, b.tag) })
	c.first = max(c.first, 1)
	run := uint64(0) // how many before first are taken and not sent
	end := func() {
		if run > 0 {
			send(&frame.BasicAck{DeliveryTag: c.first - 1, Multiple: run > 1})
		}
		run = 0
	}
	for _, r := range c.news {
		if r.tag != c.first {
			end()
		}
		switch {
		case r.tag == c.first && r.taken:
			c.first++
			run++
		case r.taken:
			send(&frame.BasicAck{DeliveryTag: r.tag})
		default:
			end()
			send(&frame.BasicNack{DeliveryTag: r.tag})
		}
		if r.tag > c.first {
			i, _ := slices.BinarySearch(c.told, r.tag)
			c.told = slices.Insert(c.told, i, r.tag)
		} else if r.tag == c.first {
			c.first++
		}
		if len(c.told) > 0 && c.told[0] == c.first {
			end()
			c.skip()
		}
	}
	end()
}

// skip has first behind what the client was told of.
func (c *confirms) skip() {
	for len(c.told) > 0 && c.told[0] == c.first {
		c.told = c.told[1:]
		c.first++
	}
}
