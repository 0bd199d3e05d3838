package wire

import (
	"io"
	"sync"
)

// readBuffer is the size of the buffer before the library's, in bytes. It grows for a
// message that does not fit, for a while.
const readBuffer = 32 << 10

// chunkSize is how much of what waits is taken at once, in bytes.
const chunkSize = 64 << 10

type chunk [chunkSize]byte

// An inbox parts what the engine sends: messages for the Conn's own subscriptions wait
// in it, and all else is the library's.
type inbox struct {
	// Of the goroutine that reads, which is the library's.
	buf        []byte
	start, end int // what is read and not parted
	foreign    int // bytes that are the library's, whatever they are

	most   int
	chunks sync.Pool // of *chunk
	taken  []byte    // what the caller of take has

	mu    sync.Mutex
	wait  [][]byte // whole messages in each, and something
	size  int      // of all, in bytes
	lost  int
	ended bool
	wake  chan struct{}
}

func newInbox(most int) *inbox {
	return &inbox{buf: make([]byte, readBuffer), most: most, wake: make(chan struct{}, 1)}
}

// read reads from source until there is something for the library. A source that ends has
// nothing more in it.
func (i *inbox) read(source io.Reader, p []byte) (int, error) {
	for {
		n, size := i.part(p)
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		i.room(size)
		got, err := source.Read(i.buf[i.end:])
		i.end += got
		if err != nil && got == 0 {
			i.close()
			return 0, err
		}
	}
}

// part copies to p what is the library's, and keeps what is not, as far as it is all
// there. size is that of a message that is not; 0: it is not known.
func (i *inbox) part(p []byte) (n, size int) {
	from := i.start // of messages that are not kept yet
	keep := func() {
		if from < i.start {
			i.keep(i.buf[from:i.start])
		}
	}
	for {
		if i.foreign > 0 {
			copied := copy(p[n:], i.buf[i.start:min(i.end, i.start+i.foreign)])
			n, i.foreign, i.start = n+copied, i.foreign-copied, i.start+copied
			from = i.start
			if i.foreign > 0 {
				return n, 0
			}
		}
		o, ok := first(i.buf[i.start:i.end])
		switch {
		case !ok:
			keep()
			return n, 0
		case !o.own():
			keep()
			i.foreign = o.size
		case i.start+o.size > i.end:
			keep()
			return n, o.size
		default:
			i.start += o.size
		}
	}
}

// room makes some in the buffer, for a message of that size, of which there may be less
// than it says.
func (i *inbox) room(size int) {
	have := i.end - i.start
	to := i.buf
	switch {
	case have == len(to):
		to = make([]byte, 2*len(to))
	case len(to) > readBuffer && size <= readBuffer && have < readBuffer:
		to = make([]byte, readBuffer)
	}
	copy(to, i.buf[i.start:i.end])
	i.buf, i.start, i.end = to, 0, have
}

// keep has messages wait, or drops them.
func (i *inbox) keep(messages []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.size > i.most {
		for len(messages) > 0 {
			_, messages = Next(messages)
			i.lost++
		}
		return
	}
	last := len(i.wait) - 1
	if last < 0 || len(i.wait[last])+len(messages) > cap(i.wait[last]) {
		i.wait = append(i.wait, i.chunk(len(messages)))
		last++
	}
	i.wait[last] = append(i.wait[last], messages...)
	if i.size += len(messages); i.size == len(messages) {
		i.signal()
	}
}

// chunk is an empty one with room for n bytes.
func (i *inbox) chunk(n int) []byte {
	if n > chunkSize {
		return make([]byte, 0, n)
	}
	if c, ok := i.chunks.Get().(*chunk); ok {
		return c[:0]
	}
	return new(chunk)[:0]
}

func (i *inbox) signal() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *inbox) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.signal()
}

// take is Conn.Receive.
func (i *inbox) take() (messages []byte, dropped int, ok bool) {
	if cap(i.taken) == chunkSize {
		i.chunks.Put((*chunk)(i.taken[:chunkSize]))
	}
	i.taken = nil
	for {
		i.mu.Lock()
		if len(i.wait) > 0 || i.ended {
			if ok = len(i.wait) > 0; ok {
				i.taken, i.wait = i.wait[0], i.wait[1:]
				i.size -= len(i.taken)
			}
			dropped, i.lost = i.lost, 0
			i.mu.Unlock()
			return i.taken, dropped, ok
		}
		i.wait = nil
		i.mu.Unlock()
		<-i.wake
	}
}
