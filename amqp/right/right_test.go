package right

import (
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/identity"
)

func TestAllowed(t *testing.T) {
	begins, _ := Beginning(Write, "nova_")
	lone, _ := Beginning(Write, "a.")
	for _, c := range []struct {
		allow, deny []string
		yes, no     string // names, with spaces between
	}{
		{[]string{"amqp.write.nova.>"}, nil, "nova.x nova_x nova_.x", "nova novax x"},
		{[]string{Named(Write, "nova_x")}, nil, "nova_x", "nova.x nova x nova_x_ nova_x.y"},
		{[]string{Named(Write, "nova.x")}, nil, "nova.x", "nova_x"},
		{[]string{begins}, nil, "nova_ nova_x nova_x.y nova__", "nova nova.x nova.% novax"},
		{[]string{lone}, nil, "a. a.b a..", "a a_ a_b"},
		{[]string{Named(Write, "")}, nil, "amq.default", "amq_default"},
		{[]string{">"}, nil, "a a.b a_b", ""},
		{[]string{">"}, []string{Named(Write, "a_b")}, "a a.b", "a_b"},
		{[]string{">"}, []string{"amqp.write.a.b"}, "a", "a.b a_b"},
		{[]string{Named(Write, "a_b"), begins}, []string{"amqp.write.a.b"}, "nova_", "a_b"},
		{[]string{"amqp.write.*"}, nil, "a", "a.b a_b"},
	} {
		p := identity.Permissions{Publish: identity.Rule{Allow: c.allow, Deny: c.deny}}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		for _, name := range strings.Fields(c.yes) {
			if !Allowed(&p, Write, name) {
				t.Errorf("%v but %v: %s is refused", c.allow, c.deny, name)
			}
		}
		for _, name := range strings.Fields(c.no) {
			if Allowed(&p, Write, name) {
				t.Errorf("%v but %v: %s is allowed", c.allow, c.deny, name)
			}
		}
		if Allowed(&p, Read, "nova_x") {
			t.Error("a right to write is one to read")
		}
	}
	p := identity.Permissions{Publish: identity.Rule{Allow: []string{Named(Write, "")}}}
	if !Allowed(&p, Write, "") {
		t.Error("the exchange without a name is not the default one")
	}
}

// FuzzNamed has a subject by the letter be of one name only.
func FuzzNamed(f *testing.F) {
	f.Add("a_b", "a.b")
	f.Add("a._.b", "a__b")
	f.Add("%", "")
	f.Add("%2E", ".")
	f.Fuzz(func(t *testing.T, a, b string) {
		if a == "" {
			a = DefaultExchange
		}
		if b == "" {
			b = DefaultExchange
		}
		if (a == b) != (Named(Read, a) == Named(Read, b)) {
			t.Errorf("%q and %q: %s", a, b, Named(Read, a))
		}
		for _, end := range []string{".", "_"} {
			subject, _ := Beginning(Read, b+end)
			p := identity.Permissions{Subscribe: identity.Rule{Allow: []string{subject}}}
			if Allowed(&p, Read, a) != strings.HasPrefix(a, b+end) {
				t.Errorf("%q begins with %q: %s", a, b+end, subject)
			}
		}
	})
}
