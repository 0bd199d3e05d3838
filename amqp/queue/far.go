package queue

import (
	"encoding/binary"
	"slices"
)

const (
	// nearby is from how many messages on those that are only in the log are far.
	nearby = 4 * batch
	// chunkItems is how many of them are made near at once.
	chunkItems = 512
)

// chunk is messages that follow one another in a list, are only in the log and never were
// handed out: a few bytes for each.
type chunk struct {
	first, last item
	n           int
	code        []byte // all but the first, each by what it differs in from the one before
}

// add adds a message behind the others.
func (c *chunk) add(it item) {
	if c.n == 0 {
		c.first = it
	} else {
		c.code = binary.AppendUvarint(c.code, it.place-c.last.place)
		c.code = binary.AppendUvarint(c.code, it.seq-c.last.seq)
		c.code = binary.AppendVarint(c.code, int64(it.size)-int64(c.last.size))
		c.code = binary.AppendVarint(c.code, it.expires-c.last.expires)
	}
	c.last = it
	if c.n++; c.n == chunkItems {
		c.code = slices.Clip(c.code)
	}
}

// appendTo appends the messages to all.
func (c *chunk) appendTo(all []item) []item {
	it := c.first
	all = append(all, it)
	code := c.code
	unsigned := func() uint64 {
		v, n := binary.Uvarint(code)
		code = code[n:]
		return v
	}
	signed := func() int64 {
		v, n := binary.Varint(code)
		code = code[n:]
		return v
	}
	for range c.n - 1 {
		it.place += unsigned()
		it.seq += unsigned()
		it.size += int32(signed())
		it.expires += signed()
		all = append(all, it)
	}
	return all
}

// pushFar puts a message behind all others, as one of those that are far.
func (l *list) pushFar(it item) {
	last := len(l.far) - 1
	if last < 0 || l.far[last].n == chunkItems {
		l.far = append(l.far, chunk{})
		last++
	}
	l.far[last].add(it)
	l.distant++
}

// approach makes the next ones near, if there are few of those.
func (l *list) approach() {
	for len(l.far) > 0 && len(l.fresh)-l.head < nearby/2 {
		from := len(l.fresh)
		l.fresh = l.far[0].appendTo(l.fresh)
		for i := from; i < len(l.fresh); i++ {
			l.fresh[i].handed = l.fresh[i].seq <= l.handed
		}
		l.distant -= l.far[0].n
		l.far[0] = chunk{}
		if l.far = l.far[1:]; len(l.far) == 0 {
			l.far = nil
		}
	}
}
