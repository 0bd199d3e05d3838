package route

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// changes draws one.
func changes() *rapid.Generator[Change] {
	name := rapid.SampledFrom([]string{"", "amq.topic", "amq.match", "one", "two", "\xff\x00"})
	return rapid.Custom(func(t *rapid.T) Change {
		c := Change{Kind: rapid.SampledFrom([]Kind{DeclareExchange, DeleteExchange, BindTo, BindTo, UnbindFrom, DropQueue}).Draw(t, "kind")}
		switch c.Kind {
		case DeclareExchange:
			c.Exchange = &Exchange{Name: name.Draw(t, "name"), Type: rapid.SampledFrom([]string{Direct, Fanout, Topic, Headers, "odd"}).Draw(t, "type"), AutoDelete: rapid.Bool().Draw(t, "auto"), Internal: rapid.Bool().Draw(t, "internal"), Alternate: name.Draw(t, "alternate")}
			if rapid.Bool().Draw(t, "arguments") {
				c.Exchange.Arguments = frame.Table{"x": int32(1), "y": []any{"z", frame.Timestamp(5)}}
			}
		case BindTo, UnbindFrom:
			c.Binding = &Binding{Source: name.Draw(t, "source"), Key: rapid.SampledFrom([]string{"a", "*.b", "#", "\xff"}).Draw(t, "key"), ToExchange: rapid.Bool().Draw(t, "to")}
			if c.Binding.Destination = name.Draw(t, "destination"); rapid.Bool().Draw(t, "arguments") {
				c.Binding.Arguments = frame.Table{"x-match": rapid.SampledFrom([]string{"any", "odd"}).Draw(t, "match"), "h": uint8(3)}
			}
		case DeleteExchange:
			c.Name, c.IfUnused = Name(name.Draw(t, "name")), rapid.Bool().Draw(t, "unused")
		case DropQueue:
			c.Name = Name(name.Draw(t, "name"))
		}
		return c
	})
}

// TestApply has a follower be what the table is that it follows, through JSON, and one that
// begins with a snapshot, too.
func TestApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leader, follower, late := NewTable("/"), NewTable("/"), NewTable("/")
		text := func(table *Table) string {
			b, err := json.Marshal(table)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		all := rapid.SliceOfN(changes(), 1, 60).Draw(t, "changes")
		begin := rapid.IntRange(0, len(all)-1).Draw(t, "snapshot")
		for i, c := range all {
			if i == begin {
				if err := json.Unmarshal([]byte(text(leader)), late); err != nil {
					t.Fatal(err)
				}
			}
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			var same Change
			if err := json.Unmarshal(b, &same); err != nil || !reflect.DeepEqual(same, c) {
				t.Fatalf("%s is %+v, and was %+v, %v", b, same, c, err)
			}
			before := text(leader)
			changed, also, err := leader.Apply(c)
			if changed != (text(leader) != before) {
				t.Fatalf("%s: changed %v: %s", b, changed, text(leader))
			}
			for _, other := range []*Table{follower, late} {
				if other == late && i < begin {
					continue
				}
				changed2, also2, err2 := other.Apply(same)
				slices.Sort(also)
				slices.Sort(also2)
				if changed2 != changed || !slices.Equal(also2, also) || fmt.Sprint(err2) != fmt.Sprint(err) {
					t.Fatalf("%s: %v %q %v, and %v %q %v", b, changed, also, err, changed2, also2, err2)
				}
			}
		}
		if want := text(leader); text(follower) != want || text(late) != want {
			t.Fatalf("%s\n%s\n%s", want, text(follower), text(late))
		}
	})
	if _, _, err := NewTable("/").Apply(Change{Kind: "odd"}); err == nil || !strings.Contains(err.Error(), "upgrade this node") {
		t.Error(err)
	}
}

func TestARestoredTableIsWhole(t *testing.T) {
	table := NewTable("/")
	declare(t, table, Exchange{Name: "x", Type: Topic})
	for _, bad := range []string{
		`{"exchanges":[{"name":"eA==","type":"odd"}]}`, `{"bindings":[{"source":"eQ==","destination":"cQ=="}]}`, `{"exchanges":1}`,
		`{"exchanges":[{"name":"eA==","type":"topic","arguments":"AAAA"}]}`, `{"exchanges":[{"name":"/","type":"topic"}]}`,
	} {
		if err := json.Unmarshal([]byte(bad), table); err == nil {
			t.Errorf("%s was taken", bad)
		}
		if _, err := table.Known("x"); err != nil {
			t.Fatalf("%s: %v", bad, err)
		}
	}
}

func TestInternalExchanges(t *testing.T) {
	table := NewTable("/")
	declare(t, table, Exchange{Name: "in", Type: Fanout, Internal: true}, Exchange{Name: "out", Type: Fanout})
	bind(t, table, Binding{Source: "in", Destination: "q"}, Binding{Source: "out", Destination: "in", ToExchange: true})
	_, err := table.Publish(nil, &Message{Exchange: "in"})
	if e, ok := err.(*frame.Error); !ok || e.Code != frame.AccessRefused || e.Text != "cannot publish to internal exchange 'in' in vhost '/'" {
		t.Error(err)
	}
	if _, err := table.Publish(nil, &Message{Exchange: "missing"}); err == nil {
		t.Error("published to an exchange that is missing")
	}
	for _, exchange := range []string{"in", "out"} {
		if got := goes(t, table, Message{Exchange: exchange}); got != "q" { // as dead letters do
			t.Errorf("%s goes to %q", exchange, got)
		}
	}
	h := frame.Table{"BCC": []any{"b"}, "CC": []any{"c"}}
	if !DropBlind(h) || DropBlind(h) || h["CC"] == nil {
		t.Error(h)
	}
}

// TestReadersSeeOneTable has many route while bindings come and go in pairs: a reader sees
// both or none.
func TestReadersSeeOneTable(t *testing.T) {
	table := NewTable("/")
	declare(t, table, Exchange{Name: "pair", Type: Fanout, AutoDelete: true})
	bind(t, table, Binding{Source: "pair", Destination: "a"}, Binding{Source: "pair", Destination: "b"}, Binding{Source: "amq.fanout", Destination: "pair", ToExchange: true})
	whole, err := json.Marshal(table)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		all.Go(func() {
			var queues []string
			for {
				select {
				case <-stop:
					return
				default:
				}
				if queues, _ = table.Route(queues[:0], &Message{Exchange: "amq.fanout"}); len(queues) == 1 {
					t.Error(queues)
					return
				}
			}
		})
	}
	for range 200 {
		if _, err := table.Delete("pair", false); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(whole, table); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	all.Wait()
}

// BenchmarkBind binds one more beside 10,000, and unbinds it.
func BenchmarkBind(b *testing.B) {
	for _, exchange := range []string{"amq.direct", "amq.fanout", "amq.topic", "amq.headers"} {
		b.Run(exchange, func(b *testing.B) {
			table := NewTable("/")
			for i := range 10_000 {
				if _, err := table.Bind(Binding{Source: exchange, Destination: fmt.Sprint("q", i), Key: fmt.Sprintf("a.*.k%d", i)}); err != nil {
					b.Fatal(err)
				}
			}
			one := Binding{Source: exchange, Destination: "new", Key: "a.*.new"}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := table.Bind(one); err != nil {
					b.Fatal(err)
				}
				if _, err := table.Unbind(one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDirect routes by one of 10,000 keys.
func BenchmarkDirect(b *testing.B) {
	table := NewTable("/")
	for i := range 10_000 {
		if _, err := table.Bind(Binding{Source: "amq.direct", Destination: fmt.Sprint("q", i), Key: fmt.Sprint("key", i)}); err != nil {
			b.Fatal(err)
		}
	}
	var queues []string
	b.ReportAllocs()
	for b.Loop() {
		queues, _ = table.Route(queues[:0], &Message{Exchange: "amq.direct", Key: "key1237"})
	}
	if len(queues) != 1 {
		b.Fatal(queues)
	}
}
