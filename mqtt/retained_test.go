package mqtt

import (
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// kept is a message as the stream of retained messages has it.
type kept struct {
	jetstream.Msg
	seq          uint64
	topic, text  string
	region, time string
}

func (m kept) Subject() string { return "ret." + m.topic }
func (m kept) Data() []byte    { return []byte(m.text) }
func (m kept) Headers() nats.Header {
	h := nats.Header{headerFlags: []string{"1r"}}
	for name, value := range map[string]string{headerRegion: m.region, headerStored: m.time} {
		if value != "" {
			h.Set(name, value)
		}
	}
	return h
}

func (m kept) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Stream: m.seq}, Timestamp: time.Unix(0, 50)}, nil
}

// TestKeeperLater has another region put something in the place of what is retained: what
// is older is undone, also where the newer was removed, and nothing else is.
func TestKeeperLater(t *testing.T) {
	type undone struct {
		text   string
		stored int64
		over   uint64
	}
	for name, c := range map[string]struct {
		heard []kept
		want  string // what is kept
		again []undone
	}{
		"later":             {[]kept{{text: "a", time: "10"}, {text: "b", time: "11", region: "us"}}, "b", nil},
		"older":             {[]kept{{text: "a", time: "11"}, {text: "b", time: "10", region: "us"}}, "a", []undone{{"a", 11, 2}}},
		"the same time":     {[]kept{{text: "a", time: "10"}, {text: "b", time: "10", region: "us"}}, "b", nil},
		"of this region":    {[]kept{{text: "a", time: "11", region: "us"}, {text: "b", time: "10"}}, "b", nil},
		"without a time":    {[]kept{{text: "a"}, {text: "b", time: "49", region: "us"}}, "a", []undone{{"a", 50, 2}}},
		"removed":           {[]kept{{text: "a", time: "10"}, {time: "12"}, {text: "b", time: "11", region: "us"}}, "", []undone{{"", 12, 3}}},
		"removed elsewhere": {[]kept{{text: "a", time: "10"}, {time: "11", region: "us"}}, "", nil},
		"removed before":    {[]kept{{text: "a", time: "11"}, {time: "10", region: "us"}}, "a", []undone{{"a", 11, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			var k keeper
			var again []undone
			k.init("ret.", func(m message, stored int64, over uint64) {
				again = append(again, undone{string(m.payload), stored, over})
			})
			for i, m := range c.heard {
				m.seq, m.topic = uint64(i+1), "x"
				k.hear(m)
			}
			if got := string(k.kept["x"].payload); got != c.want {
				t.Errorf("%q is kept, not %q", got, c.want)
			}
			if len(again) != len(c.again) || len(again) > 0 && again[0] != c.again[0] {
				t.Errorf("stored again: %v, want %v", again, c.again)
			}
			if now := time.Now().UnixNano(); k.stamp("x") < now {
				t.Error("what is published next is not the later")
			}
			k.times["x"] = 1 << 62
			if k.stamp("x") != 1<<62+1 {
				t.Error("what is published next is before what another region said")
			}
		})
	}
}

// TestKeeperForgets has more removed than is remembered of.
func TestKeeperForgets(t *testing.T) {
	var k keeper
	k.init("ret.", func(message, int64, uint64) {})
	k.hear(kept{seq: 1, topic: "stays", text: "a"})
	for i := range 3 * maxRemoved {
		k.hear(kept{seq: uint64(i + 2), topic: strconv.Itoa(i)})
	}
	if len(k.times) > maxRemoved+1 || k.times["stays"] == 0 || len(k.kept) != 1 {
		t.Errorf("%d times are known, and %d messages kept", len(k.times), len(k.kept))
	}
}
