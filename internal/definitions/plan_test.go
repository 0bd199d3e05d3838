package definitions

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func planOf(t *testing.T, text string, o Options) []*Step {
	t.Helper()
	d, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return d.Plan(o)
}

// lines are a plan as text.
func lines(steps []*Step) string {
	var all []string
	for _, s := range steps {
		all = append(all, fmt.Sprintf("%s %s/%s %s: %s", s.Line.Kind, s.Line.VHost, s.Line.Name, s.Line.Status, s.Line.Text))
	}
	return strings.Join(all, "\n")
}

// find is the step of a thing.
func find(t *testing.T, steps []*Step, kind, name string) *Step {
	t.Helper()
	for _, s := range steps {
		if s.Line.Kind == kind && s.Line.Name == name {
			return s
		}
	}
	t.Fatalf("there is no %s %q in\n%s", kind, name, lines(steps))
	return nil
}

// TestPlanOfExport takes a file that RabbitMQ 3.10 wrote.
func TestPlanOfExport(t *testing.T) {
	data, err := os.ReadFile("testdata/3.10.json")
	if err != nil {
		t.Fatal(err)
	}
	steps := planOf(t, string(data), Options{})
	if a := find(t, steps, "vhost", "/").Account; a == nil || a.Name != "default" || a.Connections != 64 {
		t.Errorf("account %+v", a)
	}
	q := find(t, steps, "queue", "a")
	if got := fmt.Sprint(q.Queue.Arguments); got != "map[x-max-length:5 x-message-ttl:60000 x-queue-type:quorum]" || q.Line.Status != Changed {
		t.Errorf("%s %s", q.Line.Status, got)
	}
	if e := find(t, steps, "exchange", "ev").Exchange; e.Arguments["alternate-exchange"] != "amq.fanout" {
		t.Errorf("exchange %+v", e)
	}
	if b := find(t, steps, "binding", "amq.direct -> ev (x)").Binding; b == nil || !b.ToExchange || b.Arguments["n"] != int64(5) {
		t.Errorf("binding %+v", b)
	}
	r := find(t, steps, "permission", "link").Role
	if got := fmt.Sprint(r.Permissions); got != "{{[amqp.configure.> amqp.write.>] [amqp-name.write.ev]} {[amqp.read.>] [amqp-name.read.ev]} <nil>}" || r.Limits.Connections != 3 {
		t.Errorf("role %s %+v", got, r.Limits)
	}
	if p := find(t, steps, "policy", "p").Line; p.Status != Changed || !strings.Contains(p.Text, "ha-mode: not needed") {
		t.Errorf("policy %+v", p)
	}
	find(t, steps, "tag", "guest administrator")
	if u := find(t, steps, "user", "guest").User; u.Account != "default" || u.Role != "amqp-default-guest" {
		t.Errorf("user %+v", u)
	}
}

func TestPlanOfOneVirtualHost(t *testing.T) {
	steps := planOf(t, `{"rabbit_version":"4.1.0","original_vhost_name":"x","metadata":{},"parameters":[],"policies":[{"name":"ttl","pattern":"^q","apply-to":"classic_queues","definition":{"message-ttl":5000,"dead-letter-routing-key":"k"},"priority":1}],
		"queues":[{"name":"q","durable":true,"auto_delete":false,"arguments":{"x-message-ttl":1000}},{"name":"qq","durable":true,"arguments":[]},{"name":"s","durable":true,"arguments":{"x-queue-type":"stream"}},{"name":"amq.gen-x"}],
		"exchanges":[{"name":"d","type":"x-delayed-message","durable":true,"arguments":{}}],
		"bindings":[{"source":"d","destination":"q","destination_type":"queue","routing_key":"","arguments":{}},{"source":"amq.topic","destination":"qq","destination_type":"queue","routing_key":"#"},
			{"source":"amq.direct","destination":"amq.topic","destination_type":"exchange","routing_key":"a"},{"source":"","destination":"q","destination_type":"queue","routing_key":"q"}],
		"future":[]}`, Options{Accounts: map[string]string{"/": "shop"}})
	if a := find(t, steps, "vhost", "/").Account; a == nil || a.Name != "shop" {
		t.Errorf("account %+v", a)
	}
	for name, want := range map[string]string{"q": "map[x-message-ttl:1000]", "qq": "map[x-message-ttl:5000]"} {
		if got := fmt.Sprint(find(t, steps, "queue", name).Queue.Arguments); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, c := range [][3]string{
		{"queue", "s", "stream"}, {"queue", "amq.gen-x", "chosen by a server"}, {"exchange", "d", "x-delayed-message"}, {"binding", "d -> q", `exchange "d" is not taken`},
		{"binding", "amq.direct -> amq.topic (a)", "only clients"}, {"section", "future", "not known"},
	} {
		s := find(t, steps, c[0], c[1])
		if s.Line.Status != NotTaken || !strings.Contains(s.Line.Text, c[2]) || s.Queue != nil || s.Exchange != nil || s.Binding != nil {
			t.Errorf("%+v", s.Line)
		}
	}
	if find(t, steps, "binding", "amq.topic -> qq (#)").Binding == nil {
		t.Error("a binding is lost")
	}
}

func TestPlanOfRights(t *testing.T) {
	const text = `{"users":[{"name":"nova","password_hash":"x","tags":"administrator,management"},{"name":"a b","tags":[]},{"name":"idle","tags":""}],
		"vhosts":[{"name":"/"},{"name":"a/b"},{"name":"c"}],
		"permissions":[{"user":"nova","vhost":"/","configure":"^nova.*","write":"^(nova|amq\\.default)$","read":"^nova_"},{"user":"nova","vhost":"a/b","configure":".*","write":".*","read":".*"},
			{"user":"nova","vhost":"c","configure":"","write":"^$","read":""},{"user":"a b","vhost":"/","configure":".*","write":".*","read":".*"}],
		"topic_permissions":[{"user":"nova","vhost":"/","exchange":"amq.topic","write":"^orders\\.","read":".*"}],
		"parameters":[{"vhost":"/","component":"shovel","name":"s","value":{}}],"global_parameters":[{"name":"cluster_name","value":"x"}]}`
	steps := planOf(t, text, Options{})
	s := find(t, steps, "permission", "nova")
	if got := fmt.Sprint(s.Role.Permissions.Publish.Allow); got != "[amqp-name.write.amq.%2E.default amqp-name.write.nova orders.>]" || s.Line.Status != Changed || !strings.Contains(s.Line.Text, "--narrow") {
		t.Errorf("%s %+v", got, s.Line)
	}
	s = find(t, planOf(t, text, Options{Narrow: true}), "permission", "nova")
	if got := fmt.Sprint(s.Role.Permissions.Publish.Allow[:3]); got != "[amqp-name.configure.nova amqp-name.configure.nova.%2E.> amqp-name.configure.nova._.>]" || s.Line.Status != Changed {
		t.Errorf("%s %+v", got, s.Line)
	}
	for _, want := range []string{
		"vhost a/b/a/b not_taken: it cannot be an account's name", "permission a/b/nova not_taken: its virtual host has no account", "permission c/nova not_taken: no right is left",
		"user //a b not_taken: it cannot be a user's name", "user /idle not_taken: it has no permissions", "parameter //shovel s not_taken: a link", "global parameter /cluster_name not_taken: not needed",
		"tag /nova management not_taken", "topic permission //nova amq.topic changed: without",
	} {
		if !strings.Contains(lines(steps), want) {
			t.Errorf("%q is not in\n%s", want, lines(steps))
		}
	}
	twice := planOf(t, `{"vhosts":[{"name":"a"},{"name":"b"}]}`, Options{Accounts: map[string]string{"b": "a"}})
	if find(t, twice, "vhost", "b").Account != nil {
		t.Error("one account is of two virtual hosts")
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "line 1",
		"{\n \"queues\": [}":               "line 2, byte 13",
		`{"a":1}`:                          "no export",
		"{\n\n\"queues\": [{\"name\":1}]}": "line 3",
		`{"queues":[{"name":"a","arguments":[1]}]}`:                            "pairs",
		`{"queues":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`: "deep",
		`[]`: "line 1",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// FuzzParse has no file end the program, and each plan be of what accounts can have.
func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("testdata/3.10.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"queues":[{"name":"q","arguments":{"a":[1,{"b":1e400}]}}],"operator_policies":[{"pattern":"(","definition":[["a",1]]}],"parameters":[{"component":"operator_policy","value":{}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		for _, s := range d.Plan(Options{Narrow: true}) {
			if s.Role != nil {
				if err := s.Role.Permissions.Validate(); err != nil && !strings.Contains(err.Error(), "template") {
					t.Errorf("%v", err)
				}
			}
			if s.Line.Status != Taken && s.Line.Text == "" && s.Line.Kind != "policy" && s.Line.Kind != "operator policy" {
				t.Errorf("%+v does not say why", s.Line)
			}
		}
	})
}
