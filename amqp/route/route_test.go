package route

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

func declare(t *testing.T, table *Table, all ...Exchange) {
	t.Helper()
	for _, e := range all {
		if made, err := table.Declare(e); err != nil || !made {
			t.Fatalf("%s: made %v, %v", e.Name, made, err)
		}
	}
}

func bind(t *testing.T, table *Table, all ...Binding) {
	t.Helper()
	for _, b := range all {
		if _, err := table.Bind(b); err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
	}
}

// goes is where a message goes, in the order of names.
func goes(t *testing.T, table *Table, m Message) string {
	t.Helper()
	queues, err := table.Route(nil, &m)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(queues)
	if len(slices.Compact(slices.Clone(queues))) != len(queues) {
		t.Errorf("one twice of %q", queues)
	}
	return strings.Join(queues, " ")
}

func TestTopic(t *testing.T) {
	for pattern, keys := range map[string]struct{ yes, no []string }{
		"a.b":     {[]string{"a.b"}, []string{"a", "a.b.c", "", "a.*"}},
		"*":       {[]string{"a", "", "#"}, []string{"a.b", "."}},
		"#":       {[]string{"", "a", "a.b.c", "..."}, nil},
		"x.*.z":   {[]string{"x.y.z", "x..z"}, []string{"x.z", "x.y.y.z"}},
		"#.end":   {[]string{"end", "a.end", "a.b.end"}, []string{"end.a", "ending"}},
		"x.#":     {[]string{"x", "x.y", "x.y.z"}, []string{"y", "xx"}},
		"a.#.b":   {[]string{"a.b", "a.x.b", "a.b.b", "a.x.y.b"}, []string{"a", "a.b.c", "b"}},
		"#.a.#":   {[]string{"a", "b.a", "a.b", "b.a.b"}, []string{"b", ""}},
		"*.#":     {[]string{"", "a", "a.b"}, nil},
		"#.#":     {[]string{"", "a", "a.b"}, nil},
		"a.*.#.c": {[]string{"a.b.c", "a.b.x.c", "a.c.c"}, []string{"a.c", "a.b"}},
	} {
		table := NewTable("/")
		bind(t, table, Binding{Source: "amq.topic", Destination: "q", Key: pattern})
		for want, some := range map[string][]string{"q": keys.yes, "": keys.no} {
			for _, key := range some {
				if got := goes(t, table, Message{Exchange: "amq.topic", Key: key}); got != want {
					t.Errorf("%q takes %q: %q, not %q", pattern, key, got, want)
				}
			}
		}
		if _, err := table.Unbind(Binding{Source: "amq.topic", Destination: "q", Key: pattern}); err != nil {
			t.Fatal(err)
		}
		if got := goes(t, table, Message{Exchange: "amq.topic", Key: keys.yes[0]}); got != "" {
			t.Errorf("%q after it was unbound: %q", pattern, got)
		}
		if e, _ := table.at.Load().exchanges.get(table.hash, "amq.topic"); e.rule.(topicRule).root != nil {
			t.Errorf("%q leaves %v", pattern, e.rule)
		}
	}
}

// naive is whether a pattern takes a key, word by word.
func naive(pattern, words []string) bool {
	switch {
	case len(pattern) == 0:
		return len(words) == 0
	case pattern[0] == "#":
		return naive(pattern[1:], words) || len(words) > 0 && naive(pattern, words[1:])
	case len(words) == 0:
		return false
	}
	return (pattern[0] == "*" || pattern[0] == words[0]) && naive(pattern[1:], words[1:])
}

// TestModel does what comes to mind with a table, and compares where messages go with
// what a list of bindings says.
func TestModel(t *testing.T) {
	names := []string{"amq.direct", "amq.fanout", "amq.topic", "one", "two"}
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable("/")
		kinds := map[string]string{"amq.direct": Direct, "amq.fanout": Fanout, "amq.topic": Topic}
		auto := map[string]bool{}
		bound := map[string]Binding{}
		of := func(name string) (all []Binding) {
			for _, b := range bound {
				if b.Source == name {
					all = append(all, b)
				}
			}
			return all
		}
		var drop func(name string)
		unbind := func(b Binding) {
			delete(bound, b.id()+b.Source)
			if auto[b.Source] && kinds[b.Source] != "" && len(of(b.Source)) == 0 {
				drop(b.Source)
			}
		}
		dropTo := func(to target) {
			for _, b := range slices.Collect(maps.Values(bound)) {
				if b.target() == to {
					unbind(b)
				}
			}
		}
		drop = func(name string) {
			delete(kinds, name)
			for _, b := range of(name) {
				delete(bound, b.id()+b.Source)
			}
			dropTo(target{name, true})
		}
		word := rapid.SampledFrom([]string{"a", "b", "*", "#", ""})
		key := rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(word, 1, 4).Draw(t, "words"), ".")
		})
		binding := rapid.Custom(func(t *rapid.T) Binding {
			b := Binding{Source: rapid.SampledFrom(names).Draw(t, "source"), Key: key.Draw(t, "key")}
			if b.ToExchange = rapid.IntRange(0, 3).Draw(t, "kind") == 0; b.ToExchange {
				b.Destination = rapid.SampledFrom(names).Draw(t, "exchange")
			} else {
				b.Destination = fmt.Sprint("q", rapid.IntRange(0, 30).Draw(t, "queue"))
			}
			return b
		})
		t.Repeat(map[string]func(*rapid.T){
			"declare": func(t *rapid.T) {
				e := Exchange{Name: rapid.SampledFrom(names[3:]).Draw(t, "name"), Type: rapid.SampledFrom([]string{Direct, Fanout, Topic}).Draw(t, "type"), AutoDelete: rapid.Bool().Draw(t, "auto")}
				if _, err := table.Declare(e); err == nil && kinds[e.Name] == "" {
					kinds[e.Name], auto[e.Name] = e.Type, e.AutoDelete
				}
			},
			"delete": func(t *rapid.T) {
				name := rapid.SampledFrom(names[3:]).Draw(t, "name")
				if _, err := table.Delete(name, false); err != nil {
					t.Fatal(err)
				}
				drop(name)
			},
			"bind": func(t *rapid.T) {
				b := binding.Draw(t, "binding")
				_, err := table.Bind(b)
				if known := kinds[b.Source] != "" && (!b.ToExchange || kinds[b.Destination] != ""); known != (err == nil) {
					t.Fatalf("%+v: %v", b, err)
				}
				if err == nil {
					bound[b.id()+b.Source] = b
				}
			},
			"unbind": func(t *rapid.T) {
				b := binding.Draw(t, "binding")
				if _, err := table.Unbind(b); err != nil {
					t.Fatal(err)
				}
				if _, ok := bound[b.id()+b.Source]; ok {
					unbind(b)
				}
			},
			"queue": func(t *rapid.T) {
				name := fmt.Sprint("q", rapid.IntRange(0, 30).Draw(t, "queue"))
				table.DropQueue(name)
				dropTo(target{name, false})
			},
			"": func(t *rapid.T) {
				m := Message{Exchange: rapid.SampledFrom(names).Draw(t, "exchange"), Key: key.Draw(t, "key")}
				got, err := table.Route([]string{"before"}, &m)
				if (kinds[m.Exchange] == "") != (err != nil) {
					t.Fatalf("%+v: %v", m, err)
				}
				want := map[string]bool{}
				seen := map[string]bool{}
				var walk func(name string)
				walk = func(name string) {
					if seen[name] || kinds[name] == "" {
						return
					}
					seen[name] = true
					for _, b := range of(name) {
						takes := kinds[name] == Fanout || kinds[name] == Direct && b.Key == m.Key ||
							kinds[name] == Topic && naive(strings.Split(b.Key, "."), strings.Split(m.Key, "."))
						switch {
						case takes && b.ToExchange:
							walk(b.Destination)
						case takes:
							want[b.Destination] = true
						}
					}
				}
				walk(m.Exchange)
				if got[0] != "before" {
					t.Fatalf("%q", got)
				}
				got = got[1:]
				slices.Sort(got)
				if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
					t.Fatalf("%+v goes to %q, not %v", m, got, want)
				}
				for to, all := range table.at.Load().to.all() {
					for _, b := range all.all() {
						if _, ok := bound[b.id()+b.Source]; !ok || b.target().id() != to {
							t.Fatalf("%+v is left", b)
						}
					}
				}
			},
		})
	})
}

func TestHeaders(t *testing.T) {
	for _, one := range []struct {
		arguments, headers frame.Table
		want               bool
	}{
		{frame.Table{"a": "1", "b": int64(2)}, frame.Table{"a": "1", "b": int32(2), "c": true}, true},
		{frame.Table{"a": "1", "b": int64(2)}, frame.Table{"a": "1"}, false},
		{frame.Table{"x-match": "all", "a": nil}, frame.Table{"a": "whatever"}, true},
		{frame.Table{"x-match": "any", "a": "1", "b": "2"}, frame.Table{"b": "2"}, true},
		{frame.Table{"x-match": "any", "a": "1", "b": "2"}, frame.Table{"b": "3"}, false},
		{frame.Table{"x-match": "any", "a": "1"}, nil, false},
		{frame.Table{"x-match": "all", "a": "1"}, nil, false},
		{frame.Table{"x-match": "all", "x-a": "1"}, nil, true}, // x- is not looked at
		{frame.Table{"x-match": "all-with-x", "x-a": "1"}, nil, false},
		{frame.Table{"x-match": "any-with-x", "x-a": "1"}, frame.Table{"x-a": "1"}, true},
		{frame.Table{"x-match": "any", "a": true}, frame.Table{"a": "true"}, false},
		{frame.Table{"a": []any{"x", int32(1)}}, frame.Table{"a": []any{"x", int32(1)}}, true},
	} {
		table := NewTable("/")
		bind(t, table, Binding{Source: "amq.match", Destination: "q", Arguments: one.arguments})
		asked := 0
		got := goes(t, table, Message{Exchange: "amq.match", Headers: func() frame.Table { asked++; return one.headers }})
		if (got == "q") != one.want || asked != 1 {
			t.Errorf("%v takes %v: %q, asked %d times", one.arguments, one.headers, got, asked)
		}
	}
}

// TestWays has messages go over alternates, other exchanges, copies and circles.
func TestWays(t *testing.T) {
	table := NewTable("/")
	declare(t, table,
		Exchange{Name: "first", Type: Direct, Alternate: "second"}, Exchange{Name: "second", Type: Direct, Alternate: "first"},
		Exchange{Name: "lost", Type: Fanout, Alternate: "nowhere"}, Exchange{Name: "circle", Type: Fanout},
	)
	bind(t, table,
		Binding{Source: "first", Destination: "a", Key: "a"}, Binding{Source: "first", Destination: "a", Key: "a", Arguments: frame.Table{"x": "y"}},
		Binding{Source: "second", Destination: "b", Key: "b"}, Binding{Source: "first", Destination: "c", Key: "c"},
		Binding{Source: "circle", Destination: "circle", ToExchange: true}, Binding{Source: "circle", Destination: "q"},
		Binding{Source: "circle", Destination: "first", ToExchange: true},
	)
	for _, one := range []struct {
		m    Message
		want string
	}{
		{Message{Exchange: "first", Key: "a"}, "a"},
		{Message{Exchange: "first", Key: "b"}, "b"},
		{Message{Exchange: "first", Key: "x"}, ""},
		{Message{Exchange: "first", Key: "x", Copies: []string{"c", "a"}}, "a c"},
		{Message{Exchange: "lost", Key: "x"}, ""},
		{Message{Exchange: "circle", Key: "b"}, "b q"},
		{Message{Exchange: "circle", Key: "a"}, "a q"},
		{Message{Key: "whatever", Copies: []string{"more"}}, "more whatever"},
	} {
		if got := goes(t, table, one.m); got != one.want {
			t.Errorf("%+v goes to %q, not %q", one.m, got, one.want)
		}
	}
	if _, err := Copies(frame.Table{"CC": "text"}); err == nil {
		t.Error("a CC that is no array was taken")
	}
	if keys, err := Copies(frame.Table{"CC": []any{"a"}, "BCC": []any{"b", "c"}}); err != nil || !slices.Equal(keys, []string{"a", "b", "c"}) {
		t.Errorf("%q %v", keys, err)
	}
}

// TestAutoDelete has exchanges go with their last binding, one after the other.
func TestAutoDelete(t *testing.T) {
	table := NewTable("/")
	declare(t, table, Exchange{Name: "a", Type: Fanout, AutoDelete: true}, Exchange{Name: "b", Type: Fanout, AutoDelete: true}, Exchange{Name: "c", Type: Fanout})
	bind(t, table, Binding{Source: "a", Destination: "b", ToExchange: true}, Binding{Source: "b", Destination: "q"}, Binding{Source: "c", Destination: "a", ToExchange: true})
	also := table.DropQueue("q")
	if slices.Sort(also); !slices.Equal(also, []string{"a", "b"}) {
		t.Errorf("%q went", also)
	}
	if left := table.Bindings("c"); len(left) > 0 || table.at.Load().to.len() > 0 {
		t.Errorf("left are %v, %v", left, table.at.Load().to.names())
	}
	names := []string{}
	for _, e := range table.Exchanges() {
		names = append(names, e.Name)
	}
	if want := []string{"", "amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.topic", "c"}; !slices.Equal(names, want) {
		t.Errorf("left are %q", names)
	}
}

func TestRefusals(t *testing.T) {
	table := NewTable("/")
	declare(t, table, Exchange{Name: "x", Type: Direct, Durable: true}, Exchange{Name: "used", Type: Direct, Alternate: "x"})
	bind(t, table, Binding{Source: "used", Destination: "q"})
	_, badAlternate := New(&frame.ExchangeDeclare{Exchange: "y", Arguments: frame.Table{alternateKey: int32(1)}})
	refusal := func(_ any, err error) error { return err }
	for _, one := range []struct {
		err   error
		code  frame.Code
		scope frame.Scope
		text  string
	}{
		{refusal(table.Declare(Exchange{Name: "", Type: Direct})), frame.AccessRefused, frame.OfChannel, "operation not permitted on the default exchange"},
		{refusal(table.Declare(Exchange{Name: "amq.new", Type: Direct})), frame.AccessRefused, frame.OfChannel, "exchange name 'amq.new' contains reserved prefix 'amq.*'"},
		{refusal(table.Declare(Exchange{Name: "y", Type: "odd"})), frame.CommandInvalid, frame.OfConnection, "unknown exchange type 'odd'"},
		{refusal(table.Declare(Exchange{Name: "x", Type: Fanout, Durable: true})), frame.PreconditionFailed, frame.OfChannel, "inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'direct'"},
		{refusal(table.Declare(Exchange{Name: "x", Type: Direct})), frame.PreconditionFailed, frame.OfChannel, "inequivalent arg 'durable' for exchange 'x' in vhost '/': received 'false' but current is 'true'"},
		{refusal(table.Declare(Exchange{Name: "used", Type: Direct})), frame.PreconditionFailed, frame.OfChannel, "inequivalent arg 'alternate-exchange' for exchange 'used' in vhost '/': received none but current is the value 'x'"},
		{refusal(table.Declare(Exchange{Name: "amq.topic", Type: Topic, Durable: true})), 0, 0, ""},
		{badAlternate, frame.PreconditionFailed, frame.OfChannel, "invalid arg 'alternate-exchange' for exchange 'y': it is no text"},
		{refusal(table.Delete("", false)), frame.AccessRefused, frame.OfChannel, "operation not permitted on the default exchange"},
		{refusal(table.Delete("amq.topic", false)), frame.AccessRefused, frame.OfChannel, "exchange name 'amq.topic' contains reserved prefix 'amq.*'"},
		{refusal(table.Delete("missing", true)), 0, 0, ""},
		{refusal(table.Delete("used", true)), frame.PreconditionFailed, frame.OfChannel, "exchange 'used' in vhost '/' in use"},
		{refusal(table.Known("missing")), frame.NotFound, frame.OfChannel, "no exchange 'missing' in vhost '/'"},
		{refusal(table.Bind(Binding{Destination: "q"})), frame.AccessRefused, frame.OfChannel, "operation not permitted on the default exchange"},
		{refusal(table.Bind(Binding{Source: "missing", Destination: "q"})), frame.NotFound, frame.OfChannel, "no exchange 'missing' in vhost '/'"},
		{refusal(table.Bind(Binding{Source: "x", Destination: "missing", ToExchange: true})), frame.NotFound, frame.OfChannel, "no exchange 'missing' in vhost '/'"},
		{refusal(table.Bind(Binding{Source: "amq.headers", Destination: "q", Arguments: frame.Table{"x-match": "some"}})), frame.PreconditionFailed, frame.OfChannel, `Invalid x-match field value "some"; expected all, any, all-with-x, or any-with-x`},
		{refusal(table.Unbind(Binding{Source: "x", Destination: "q", Key: "never"})), 0, 0, ""},
		{refusal(table.Unbind(Binding{Source: "missing", Destination: "q"})), 0, 0, ""},
		{refusal(table.Route(nil, &Message{Exchange: "missing"})), frame.NotFound, frame.OfChannel, "no exchange 'missing' in vhost '/'"},
	} {
		e, _ := errors.AsType[*frame.Error](one.err)
		switch {
		case one.code == 0 && one.err == nil:
		case e == nil:
			t.Errorf("%v, not %d %s", one.err, one.code, one.text)
		case e.Code != one.code || e.Scope != one.scope || e.Text != one.text:
			t.Errorf("%v, not %d %s of the %s", e, one.code, one.text, one.scope)
		}
	}
}

// BenchmarkTopic routes over one exchange with 10,000 patterns, and beside it the way that
// tries each: the ratio is reported.
func BenchmarkTopic(b *testing.B) {
	table := NewTable("/")
	var patterns [][]string
	for i := range 10_000 {
		key := fmt.Sprintf("region%d.*.host%d.#", i%10, i)
		patterns = append(patterns, strings.Split(key, "."))
		if _, err := table.Bind(Binding{Source: "amq.topic", Destination: fmt.Sprint("q", i), Key: key}); err != nil {
			b.Fatal(err)
		}
	}
	m := Message{Exchange: "amq.topic", Key: "region7.cpu.host1237.load.5"}
	var queues []string
	var err error
	for b.Loop() {
		if queues, err = table.Route(queues[:0], &m); err != nil || len(queues) != 1 {
			b.Fatal(queues, err)
		}
	}
	ours := float64(b.Elapsed()) / float64(b.N)
	words := strings.Split(m.Key, ".")
	const rounds = 100
	began := time.Now()
	for range rounds {
		n := 0
		for _, p := range patterns {
			if naive(p, words) {
				n++
			}
		}
		if n != 1 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(time.Since(began))/rounds/ours, "times-faster")
}
