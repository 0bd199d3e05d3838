//go:build linux

package chaos

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/fleetbus/fleetbus/change"
)

// TestOneAtATime has a second run refused, and what is left of one that was killed removed.
func TestOneAtATime(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock("other"); !errors.Is(err, ErrBusy) {
		t.Errorf("a second run: %v", err)
	}
	line, err := os.ReadFile(lockFile())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := os.WriteFile(lockFile(), line, 0o600); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	if err := Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(dir) {
		t.Errorf("%s is left", dir)
	}
}

// TestLane holds what is judged against what may come.
func TestLane(t *testing.T) {
	red, blue := &account{name: "red", canary: "R"}, &account{name: "blue", canary: "B"}
	for _, c := range []struct {
		name   string
		strict bool
		do     func(b *book, l *lane)
		wrong  string
	}{
		{name: "all is well", strict: true, do: func(b *book, l *lane) { b.receive(red, overAMQP, l.payload(0), false) }},
		{name: "lost", do: func(*book, *lane) {}, wrong: "1 acknowledged and lost"},
		{name: "twice", strict: true, do: func(b *book, l *lane) {
			b.receive(red, overAMQP, l.payload(0), false)
			b.receive(red, overAMQP, l.payload(0), false)
		}, wrong: "came again and was not marked"},
		{name: "twice, marked", strict: true, do: func(b *book, l *lane) {
			b.receive(red, overAMQP, l.payload(0), false)
			b.receive(red, overAMQP, l.payload(0), true)
		}},
		{name: "order", do: func(b *book, l *lane) {
			l.settle(l.next(), acknowledged, 0)
			b.receive(red, overAMQP, l.payload(1), false)
			b.receive(red, overAMQP, l.payload(0), false)
		}, wrong: "came after later ones"},
		{name: "refused", do: func(b *book, l *lane) {
			b.receive(red, overAMQP, l.payload(0), false)
			l.settle(l.next(), refused, 0)
			b.receive(red, overAMQP, l.payload(1), false)
		}, wrong: "was refused and came"},
		{name: "another account", do: func(b *book, l *lane) {
			b.receive(red, overAMQP, l.payload(0), false)
			b.receive(blue, overAMQP, l.payload(0), false)
		}, wrong: "to a user of blue"},
		{name: "never sent", do: func(b *book, l *lane) {
			b.receive(red, overAMQP, l.payload(0), false)
			b.receive(red, overAMQP, l.payload(7), false)
		}, wrong: "never sent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b book
			l := b.open(red, overAMQP, "line0", c.strict)
			l.settle(l.next(), acknowledged, 0)
			c.do(&b, l)
			got := strings.Join(append(l.judge(true), b.leaks...), "; ")
			if (c.wrong == "") != (got == "") || !strings.Contains(got, c.wrong) {
				t.Errorf("%q, want %q", got, c.wrong)
			}
		})
	}
}

// TestAudit has copies of a stream that lack something, or have too much.
func TestAudit(t *testing.T) {
	red := &account{name: "red", canary: "R"}
	l := newLane(red, overNATS, "line0", false)
	for place := range uint64(3) {
		l.settle(l.next(), acknowledged, place+1)
	}
	good := []stored{{seq: 1, id: "line0-0"}, {seq: 2, id: "line0-1"}, {seq: 3, id: "line0-2"}}
	for name, c := range map[string]struct {
		copy  []stored
		wrong string
		tally Tally
	}{
		"good":      {copy: good},
		"lost":      {good[:2], "line0-2 was acknowledged as 3 and is not there", Tally{Lost: 1}},
		"twice":     {append(good[:3:3], stored{seq: 4, id: "line0-2"}), "is stored as 3 and 4", Tally{Twice: 1, Disordered: 1}},
		"elsewhere": {[]stored{{seq: 1, id: "line0-0"}, {seq: 3, id: "line0-1"}, {seq: 2, id: "line0-2"}}, "was acknowledged as 2 and is 3", Tally{Disordered: 2}},
		"strange":   {append(good[:3:3], stored{seq: 4, id: "other-1"}), "was never sent", Tally{}},
	} {
		wrong, tally := auditCopy(red, c.copy, []*lane{l})
		got := strings.Join(wrong, "; ")
		if tally != c.tally {
			t.Errorf("%s: %+v, want %+v", name, tally, c.tally)
		}
		if (c.wrong == "") != (got == "") || !strings.Contains(got, c.wrong) {
			t.Errorf("%s: %q, want %q", name, got, c.wrong)
		}
	}
}

// TestSum adds up what two runs of three nodes and one of one node did.
func TestSum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	for i, nodes := range []int{3, 1, 3} {
		r := Result{
			Seed: uint64(i), Nodes: nodes, Protocols: map[string]Tally{overMQTT: {Sent: 12, Acknowledged: 11, Lost: i}}, Others: Others{Changes: 5},
			Injuries: []Injury{{Fault: "kill", Gaps: map[string]time.Duration{overNATS: time.Duration(i+1) * time.Second}, Whole: time.Second}},
		}
		if i == 2 {
			r.Wrong = []string{"2 acknowledged and lost"}
		}
		if err := r.add(path); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := Sum([]string{path}, &out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"nodes: 1; runs: 1, seeds 1 fault", "nodes: 3; runs: 2, seeds 0 2 fault", "kill -9 of a node 2 3.0 s 3.0 s", "all 2 ",
		"MQTT 24 22 0 0 0 0 2 0 0 0", "changes: 10 kept", "BROKEN: seed 2: 2 acknowledged and lost",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestGap has the longest time between acknowledgements, of which none may be in a window.
func TestGap(t *testing.T) {
	l := newLane(&account{}, overNATS, "line0", false)
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l.acks = []time.Time{at(1), at(2), at(9), at(10)}
	for _, c := range []struct{ from, to, want int }{{0, 2, 1}, {3, 10, 7}, {3, 5, 3}, {10, 14, 4}, {12, 13, 3}} {
		if got := l.gap(at(c.from), at(c.to)); got != time.Duration(c.want)*time.Second {
			t.Errorf("between %d and %d: %v, want %d s", c.from, c.to, got, c.want)
		}
	}
}

// TestHistory has a register that was won twice, and a lease with two holders.
func TestHistory(t *testing.T) {
	h := newHistory()
	write := func(id int, expect uint64, from, to int64, out outcome) {
		in := attempt{ID: id, Subject: "r0", Expect: expect}
		h.decided = append(h.decided, porcupineOf(id, in, out, from, to))
	}
	hold := func(client int, from, to int64) {
		h.held = append(h.held, porcupineOf(2*client, true, client, from, from+1), porcupineOf(2*client+1, false, client, to, 1<<62))
	}
	write(1, 0, 0, 1, outcome{version: 1})
	write(2, 1, 2, 3, outcome{version: 2})
	hold(0, 0, 10)
	hold(1, 11, 20)
	stored := map[int]uint64{1: 1, 2: 2}
	if wrong := h.check(stored); len(wrong) > 0 {
		t.Errorf("a good history: %q", wrong)
	}
	hold(2, 15, 30)
	if wrong := h.check(stored); len(wrong) != 1 || !strings.Contains(wrong[0], "lease") {
		t.Errorf("two holders: %q", wrong)
	}
	h.held = nil
	write(3, 1, 4, 5, outcome{version: 3})
	stored[3] = 3
	if wrong := h.check(stored); len(wrong) != 1 || !strings.Contains(wrong[0], "linearizable") {
		t.Errorf("a version that was won twice: %q", wrong)
	}
}

func porcupineOf(client int, in, out any, from, to int64) porcupine.Operation {
	return porcupine.Operation{ClientId: client, Input: in, Output: out, Call: from, Return: to}
}

// TestLacking has a watcher that was told of a change, of an older one, of another account's,
// or to look again before and after it.
func TestLacking(t *testing.T) {
	red := &account{name: "red"}
	key := change.Key{"red", "row1"}
	for name, c := range map[string]struct {
		notice change.Notice
		before bool // it came before the change
		wrong  bool
	}{
		"told":             {notice: change.Notice{Key: key, Kind: change.Update, Version: 7}},
		"told of an older": {notice: change.Notice{Key: key, Kind: change.Update, Version: 6}, wrong: true},
		"looked after":     {notice: change.Notice{Kind: change.Resync}},
		"looked before":    {notice: change.Notice{Kind: change.Resync}, before: true, wrong: true},
		"another's":        {notice: change.Notice{Key: change.Key{"blue", "row1"}, Kind: change.Update, Version: 7}, wrong: true},
	} {
		all := newChanges("watcher")
		at := time.Now().Add(-time.Second)
		if c.before {
			at = time.Now().Add(time.Second)
		}
		all.recorded[key.String()] = recorded{7, at}
		all.watchers[0].note(c.notice, red)
		if wrong := all.lacking(); (len(wrong) > 0) != c.wrong {
			t.Errorf("%s: %q", name, wrong)
		}
	}
}
