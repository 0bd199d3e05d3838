package definitions

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/identity"
)

func TestTranslate(t *testing.T) {
	for _, c := range []struct {
		expression string
		allow      string // with spaces between
		exact      bool
	}{
		{"", "", true},
		{"^$", "", true},
		{".*", "amqp.write.>", true},
		{"^.*$", "amqp.write.>", true},
		{"^.*", "amqp.write.>", true},
		{"^", "amqp.write.>", true},
		{"()", "amqp.write.>", true},
		{"^(.*|a)$", "amqp.write.>", true},
		{"^a$", "amqp-name.write.a", true},
		{"^(a|b)$", "amqp-name.write.a amqp-name.write.b", true},
		{"^a$|^b$", "amqp-name.write.a amqp-name.write.b", true},
		{"^[ab]-[12]$", "amqp-name.write.a-1 amqp-name.write.a-2 amqp-name.write.b-1 amqp-name.write.b-2", true},
		{"^a(_b)?$", "amqp-name.write.a amqp-name.write.a._.b", true},
		{"^a{1,2}$", "amqp-name.write.a amqp-name.write.aa", true},
		{"^nova_.*", "amqp-name.write.nova._.>", true},
		{"^nova_", "amqp-name.write.nova._.>", true},
		{`^nova\.`, "amqp-name.write.nova.%2E.>", true},
		{"^nova.*", "amqp-name.write.nova amqp-name.write.nova.%2E.> amqp-name.write.nova._.>", false},
		{"nova", "amqp-name.write.nova", false},
		{"nova$", "amqp-name.write.nova", false},
		{"^a.*b$", "amqp-name.write.ab", false},
		{`amq\.default`, "amqp-name.write.amq.%2E.default", true},
		{`^amq\.default$`, "amqp-name.write.amq.%2E.default", true},
		{`^(amq\.gen.*|amq\.default)$`, "amqp-name.write.amq.%2E.default", true},
		{`^(nova|reply_.*|amq\.default)$`, "amqp-name.write.amq.%2E.default amqp-name.write.nova amqp-name.write.reply._.>", true},
		{"^a.c$", "", false},
		{"^a+$", "", false},
		{"(?i)^a$", "", false},
		{"^(?!nova).*", "", false},
		{"^é$", "", false},
		{"^a\\x{e9}$", "", false},
		{"(", "", false},
		{"$^", "", true},
		{"a^b", "", true},
		{"^a{,2}$", "", false},
		{`^\{\{name\(\)\}\}$`, "", false},
		{strings.Repeat("a?", 40), "", false},
		{strings.Repeat("a", maxExpression+1), "", false},
	} {
		got := Translate(right.Write, c.expression)
		if text := strings.Join(got.Allow, " "); text != c.allow || got.Exact() != c.exact {
			t.Errorf("%.40q is %q, exact %v, lost %q; want %q, %v", c.expression, text, got.Exact(), got.Lost, c.allow, c.exact)
		}
	}
}

func TestKeys(t *testing.T) {
	for expression, want := range map[string]string{
		"": "", `^orders\.`: "orders.>", `^orders\..*`: "orders.>", `^orders\.new$`: "orders.new", "^(a|b)$": "a b",
		"^orders": "", ".*": "", "orders": "", `^amqp\.`: "", `^\$JS\.`: "", `^_INBOX\.`: "", `^a/b$`: "",
	} {
		if got := strings.Join(Keys(expression).Allow, " "); got != want {
			t.Errorf("%q is %q, want %q", expression, got, want)
		}
	}
}

// FuzzTranslate has a translation allow nothing that the expression does not: of names
// that are made of the expression's own parts, and of others.
func FuzzTranslate(f *testing.F) {
	for _, seed := range []string{".*", "", "^$", "^nova.*", "^(a|b_c)$", `amq\.default`, `^(amq\.gen.*|amq\.default)$`, "^[ab]_.*$", "a^b$c", "$^", "^a.*b$|c"} {
		f.Add(seed, "nova_compute.x")
	}
	f.Fuzz(func(t *testing.T, expression, name string) {
		// RabbitMQ takes ends of lines out of names before it judges them.
		strip := strings.NewReplacer("\n", "", "\r", "")
		names := append(parts(expression), strip.Replace(name))
		for _, r := range []right.Right{right.Configure, right.Write, right.Read} {
			got := Translate(r, expression)
			if len(got.Allow) == 0 {
				continue
			}
			theirs, err := regexp.Compile(expression)
			if err != nil {
				t.Fatalf("%q is no expression and was translated: %v", expression, got)
			}
			p := identity.Permissions{Publish: identity.Rule{Allow: got.Allow}}
			if r == right.Read {
				p = identity.Permissions{Subscribe: identity.Rule{Allow: got.Allow}}
			}
			if err := p.Validate(); err != nil {
				t.Fatalf("%q: %v", expression, err)
			}
			if e := p.Expand("acme", "alice"); !slices.Equal(e.Publish.Allow, p.Publish.Allow) {
				t.Fatalf("%q: %v has a template", expression, got.Allow)
			}
			for _, name := range names {
				if len(name) > 255 {
					continue
				}
				matched := name
				if name == "" {
					matched = right.DefaultExchange
				}
				if right.Allowed(&p, r, name) && !theirs.MatchString(matched) {
					t.Fatalf("%q allows %s of %q and the expression does not: %v", expression, r, name, got)
				}
			}
		}
	})
}

// parts are names that an expression may be about: its words, joined and changed a little.
func parts(expression string) []string {
	strip := strings.NewReplacer("\n", "", "\r", "", "\\", "", "^", "", "$", "", "(", "", ")", "", ".*", "", "?", "")
	all := []string{"", right.DefaultExchange, "amq_default"}
	for _, word := range strings.Split(strip.Replace(expression), "|") {
		swapped := strings.NewReplacer("_", ".", ".", "_").Replace(word)
		all = append(all, word, word+"x", word+"_x", word+".x", "x"+word, swapped, swapped+"x", "x."+word+".x", word+word)
	}
	return all
}
