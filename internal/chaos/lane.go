//go:build linux

package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A fate is what a publisher was told of a message.
type fate byte

const (
	unknown      fate = iota // sent, and nobody said what became of it
	acknowledged             // it is promised
	refused                  // it is promised not to be there
)

// A lane is one publisher's numbers, from 0 on, on their way to one reader, and what became
// of each. It is safe for concurrent use.
type lane struct {
	account  *account
	protocol string
	name     string
	// strict lanes promise that nothing comes twice unless it is marked as what may have
	// come before.
	strict bool

	mu     sync.Mutex
	fates  []fate
	places map[int]uint64 // where the engine said that it is, of a stream
	came   map[int]int    // how often
	first  int            // the highest acknowledged number that came unmarked
	late   []int          // came after a higher one did, before their fate was known
	again  int            // came again, as they may
	twice  int            // came again, as they may not
	acks   []time.Time
	ill    []string
}

func newLane(a *account, protocol, name string, strict bool) *lane {
	return &lane{account: a, protocol: protocol, name: name, strict: strict, places: map[int]uint64{}, came: map[int]int{}, first: -1}
}

// payload is message n of the lane, with the account's canary.
func (l *lane) payload(n int) []byte {
	return fmt.Appendf(nil, "%s|%s|%s|%d|%s", l.account.name, l.protocol, l.name, n, l.account.canary)
}

// next begins a message.
func (l *lane) next() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fates = append(l.fates, unknown)
	return len(l.fates) - 1
}

// settle says what became of a message. place is 0 where there is none.
func (l *lane) settle(n int, f fate, place uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fates[n] = f
	if f == acknowledged {
		l.acks = append(l.acks, time.Now())
		if place > 0 {
			l.places[n] = place
		}
	}
}

// took notes that a message came. marked says that it may have come before. A message can
// come before its acknowledgement does.
func (l *lane) took(n int, marked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.came[n]++
	switch {
	case n >= len(l.fates):
		l.ill = append(l.ill, fmt.Sprintf("%d came and was never sent", n))
	case l.came[n] > 1 && l.strict && !marked:
		l.twice++
		l.ill = append(l.ill, fmt.Sprintf("%d came again and was not marked, at %s", n, time.Now().Format(clock)))
	case l.came[n] > 1:
		l.again++
	case n < l.first && !marked:
		l.late = append(l.late, n)
	case !marked:
		l.first = n
	}
}

// clock is how times are told, as the logs of nodes do.
const clock = "15:04:05.000"

// gap is the longest time within a window without an acknowledgement.
func (l *lane) gap(from, to time.Time) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := from
	i, _ := slices.BinarySearchFunc(l.acks, from, time.Time.Compare)
	if i > 0 {
		last = l.acks[i-1]
	}
	for ; i < len(l.acks) && !l.acks[i].After(to); i++ {
		longest = max(longest, l.acks[i].Sub(last))
		last = l.acks[i]
	}
	return max(longest, to.Sub(last))
}

// acked is how many are acknowledged, and since the time given.
func (l *lane) acked(since time.Time) (all, recent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.acks, since, time.Time.Compare)
	return len(l.acks), len(l.acks) - i
}

// missing are the acknowledged numbers that did not come.
func (l *lane) missing() (all []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, f := range l.fates {
		if f == acknowledged && l.came[n] == 0 {
			all = append(all, n)
		}
	}
	return all
}

// judge is what is wrong with the lane when all is over. The order is promised of what was
// acknowledged; what nobody knew of may be stored late.
func (l *lane) judge(ordered bool) (wrong []string) {
	if missing := l.missing(); len(missing) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d acknowledged and lost, such as %s", len(missing), some(missing)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong = append(wrong, l.ill[:min(len(l.ill), 5)]...)
	for n := range maps.Keys(l.came) {
		if n < len(l.fates) && l.fates[n] == refused {
			wrong = append(wrong, fmt.Sprintf("%d was refused and came", n))
		}
	}
	if late := l.disordered(); ordered && len(late) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d came after later ones, such as %s", len(late), some(late)))
	}
	return wrong
}

// disordered are those that came late. l.mu is held.
func (l *lane) disordered() []int {
	return slices.DeleteFunc(slices.Clone(l.late), func(n int) bool { return l.fates[n] != acknowledged })
}

func some(all []int) string { return fmt.Sprint(all[:min(len(all), 5)]) }

// tally counts what judge judges.
func (l *lane) tally(ordered bool) Tally {
	lost := len(l.missing())
	l.mu.Lock()
	defer l.mu.Unlock()
	t := Tally{Sent: len(l.fates), Came: len(l.came), Again: l.again, Lost: lost, Twice: l.twice}
	for _, f := range l.fates {
		switch f {
		case acknowledged:
			t.Acknowledged++
		case refused:
			t.Refused++
		case unknown:
			t.Unknown++
		}
	}
	if ordered {
		t.Disordered = len(l.disordered())
	}
	return t
}

// A book has all lanes, and finds the one that a message is of.
type book struct {
	mu      sync.Mutex
	lanes   []*lane
	leaks   []string
	crossed map[string]int // what came to another account, by protocol
}

func (b *book) open(a *account, protocol, name string, strict bool) *lane {
	l := newLane(a, protocol, name, strict)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes = append(b.lanes, l)
	return l
}

// receive notes a message that came to a user of an account. What is not that account's is
// a leak.
func (b *book) receive(a *account, protocol string, data []byte, marked bool) {
	words := strings.Split(string(data), "|")
	if len(words) != 5 || words[0] != a.name || words[4] != a.canary {
		b.leak(fmt.Sprintf("to a user of %s over %s: %.80q", a.name, protocol, data))
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.crossed == nil {
			b.crossed = map[string]int{}
		}
		b.crossed[protocol]++
		return
	}
	n, err := strconv.Atoi(words[3])
	l := b.find(a, words[1], words[2])
	if err != nil || l == nil {
		b.leak(fmt.Sprintf("to nobody's lane: %.80q", data))
		return
	}
	l.took(n, marked)
}

func (b *book) leak(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaks = append(b.leaks, what)
}

func (b *book) find(a *account, protocol, name string) *lane {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		if l.account == a && l.protocol == protocol && l.name == name {
			return l
		}
	}
	return nil
}

// of are the lanes of a protocol; "" is all.
func (b *book) of(protocol string) (all []*lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		if protocol == "" || l.protocol == protocol {
			all = append(all, l)
		}
	}
	return all
}

// gap is the longest without an acknowledgement, of the worst lane of a protocol.
func (b *book) gap(protocol string, from, to time.Time) (longest time.Duration) {
	for _, l := range b.of(protocol) {
		longest = max(longest, l.gap(from, to))
	}
	return longest
}
