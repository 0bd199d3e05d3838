package right

import (
	"slices"
	"testing"

	"github.com/fleetbus/fleetbus/identity"
)

func TestKeyed(t *testing.T) {
	for _, c := range []struct{ exchange, key, want string }{
		{"nova", "conductor.ctl1", "amqp.key.nova.conductor.ctl1"},
		{"nova", "compute_fanout", "amqp.key.nova.compute.fanout"},
		{"nova", "", "amqp.key.nova.%"},
		{"", "reply_1", "amqp.key.amq%2Edefault.reply.1"},
		{"a.b_c", "k*", "amqp.key.a%2Eb_c.k%2A"},
		{"..", "k", "amqp.key.%2E%2E.k"},
	} {
		got := Keyed(c.exchange, c.key)
		if got != c.want || identity.CheckSubject(got) != nil {
			t.Errorf("%q of %q: %s, %v", c.key, c.exchange, got, identity.CheckSubject(got))
		}
		if !identity.Overlap(EveryKey(c.exchange), got) {
			t.Errorf("%s is none of %s", got, EveryKey(c.exchange))
		}
	}
}

func TestBound(t *testing.T) {
	for key, want := range map[string][]string{
		"a.b": {"amqp.key.x.a.b"}, "a.*": {"amqp.key.x.a", "amqp.key.x.a.>"}, "a.#.b": {"amqp.key.x.a", "amqp.key.x.a.>"}, "#": {"amqp.key.x.>"}, "*.a": {"amqp.key.x.>"},
		"a*": {"amqp.key.x.a%2A"},
	} {
		if got := Bound("x", key); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", key, got, want)
		}
	}
}

// FuzzKeyed has the keys of one exchange be those of no other.
func FuzzKeyed(f *testing.F) {
	f.Add("a", "b.c", "a.b", "c")
	f.Add("a%2Eb", "", "a.b", "%")
	f.Add("", "k", "amq.default", "k")
	f.Fuzz(func(t *testing.T, x1, k1, x2, k2 string) {
		if x1 == "" {
			x1 = DefaultExchange
		}
		if x2 == "" {
			x2 = DefaultExchange
		}
		one, two := Keyed(x1, k1), Keyed(x2, k2)
		if x1 != x2 && one == two {
			t.Errorf("%q of %q and %q of %q: %s", k1, x1, k2, x2, one)
		}
		if err := identity.CheckSubject(one); err != nil {
			t.Errorf("%q of %q: %v", k1, x1, err)
		}
	})
}
