package identity

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheckSubject(t *testing.T) {
	for subject, want := range map[string]string{
		"a":                          "",
		"a.b.c":                      "",
		">":                          "",
		"*":                          "",
		"a.*.b.>":                    "",
		"$JS.API.>":                  "",
		"machine.{{name()}}.>":       "",
		"x-{{name()}}-y":             "",
		"{{account-name()}}.events":  "",
		"größe.ü":                    "",
		"":                           "empty token",
		".a":                         "empty token",
		"a.":                         "empty token",
		"a..b":                       "empty token",
		"a.>.b":                      "goes on after >",
		"a.b*":                       "wildcard that is not a token of its own",
		"a.>>":                       "wildcard that is not a token of its own",
		"*{{name()}}":                "wildcard that is not a token of its own",
		"a b":                        "space or control",
		"a\tb":                       "space or control",
		"a\x00b":                     "space or control",
		"a\u00a0b":                   "space or control",
		"a\xffb":                     "not UTF-8",
		"{{subject()}}":              "template that is neither",
		"{{ name() }}":               "template that is neither",
		"{{tag(x)}}.>":               "template that is neither",
		"a}}":                        "template that is neither",
		strings.Repeat("long.", 100): "empty token",
	} {
		got := message(CheckSubject(subject))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("CheckSubject(%q) is %q, want %q", subject, got, want)
		}
		if len(got) > 400 {
			t.Errorf("CheckSubject quotes %d bytes", len(got))
		}
	}
}

func TestPermissionsValidate(t *testing.T) {
	err := Permissions{
		Publish:   Rule{Allow: []string{"ok", "a b"}, Deny: []string{""}},
		Subscribe: Rule{Allow: []string{"a..b"}, Deny: []string{"x>"}},
		Replies:   &Replies{Max: -1},
	}.Validate()
	for _, part := range []string{"publish.allow", "publish.deny", "subscribe.allow", "subscribe.deny", "replies"} {
		wantError(t, err, "checking "+part)
	}
	wantError(t, Permissions{Replies: &Replies{For: -1}}.Validate(), "replies")
	if err := (Permissions{Publish: Rule{Allow: []string{">"}}, Replies: &Replies{Max: 1, For: time.Second}}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestPermissionsExpand(t *testing.T) {
	list := func(s string) Rule {
		return Rule{Allow: []string{s + ".{{name()}}.{{account-name()}}"}, Deny: []string{s + ".{{name()}}-{{name()}}"}}
	}
	p := Permissions{Publish: list("p"), Subscribe: list("s"), Replies: &Replies{Max: 2}}
	got := p.Expand("acme", "alice")
	want := Permissions{
		Publish:   Rule{Allow: []string{"p.alice.acme"}, Deny: []string{"p.alice-alice"}},
		Subscribe: Rule{Allow: []string{"s.alice.acme"}, Deny: []string{"s.alice-alice"}},
		Replies:   &Replies{Max: 2},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Expand is %+v, want %+v", got, want)
	}
	got.Replies.Max = 3
	if p.Publish.Allow[0] != "p.{{name()}}.{{account-name()}}" || p.Replies.Max != 2 {
		t.Errorf("Expand changed its receiver: %+v", p)
	}
	// A name that looks like a template is not expanded again.
	if got := (Permissions{Publish: Rule{Allow: []string{"{{account-name()}}"}}}).Expand(nameTemplate, "x").Publish.Allow[0]; got != nameTemplate {
		t.Errorf("Expand expands twice: %q", got)
	}
}

func TestLimitsValidate(t *testing.T) {
	if err := (Limits{}).Validate(); err != nil {
		t.Error(err)
	}
	for want, l := range map[string]Limits{
		"connections": {Connections: -1}, "subscriptions": {Subscriptions: -1}, "payload": {Payload: -1}, "data": {Data: -1},
		"storage": {Storage: -1}, "memory": {Memory: -1}, "streams": {Streams: -1}, "consumers": {Consumers: -1},
	} {
		wantError(t, l.Validate(), want+" is negative")
	}
}

func TestNetworks(t *testing.T) {
	networks := []string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"}
	if err := checkNetworks(networks); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"10.0.0.1", "10.0.0.0/33", "host/8", "", "::ffff:10.0.0.0/104", "fe80::%eth0/64"} {
		wantError(t, checkNetworks([]string{bad}), "checking networks")
	}
	for remote, want := range map[string]bool{
		"10.1.2.3":              true,
		"10.1.2.3:4222":         true,
		"[::ffff:10.1.2.3]:1":   true,
		"::ffff:10.1.2.3":       true,
		"[2001:db8::1]:4222":    true,
		"[2001:db8::1%eth0]:99": true,
		"192.0.2.7:1":           true,
		"192.0.2.8:1":           false,
		"11.0.0.1":              false,
		"[2001:db9::1]:4222":    false,
		"pipe":                  false,
		"":                      false,
		"localhost:4222":        false,
	} {
		if got := networksContain(networks, remote); got != want {
			t.Errorf("networksContain(%q) is %v", remote, got)
		}
	}
	if networksContain([]string{"damaged"}, "10.0.0.1") {
		t.Error("a damaged network contains an address")
	}
}

func TestBuiltinRoles(t *testing.T) {
	var names []string
	for _, r := range BuiltinRoles() {
		names = append(names, r.Name)
		if err := r.Validate(); err != nil {
			t.Error(err)
		}
		life := 24 * time.Hour
		if slices.Contains([]string{RoleTarget, RoleLeaf, RoleMetrics, RoleProvisioner}, r.Name) { // which have to live through outages of the bus
			life *= 90
		}
		if !r.Builtin || r.Expires != life {
			t.Errorf("role %q is not as built in: %+v", r.Name, r)
		}
		fleetAlone := r.Name == RoleAdmin || r.Name == RoleProvisioner
		if r.AllowedIn(FleetName) != (fleetAlone || r.Name == RoleAuditor || r.Name == RoleMetrics) || r.AllowedIn("acme") == fleetAlone ||
			r.AllowedIn(SystemName) != (r.Name == RoleAuditor) || r.AllowedIn(CalloutName) {
			t.Errorf("role %q is allowed in the wrong accounts", r.Name)
		}
	}
	if want := []string{"admin", "auditor", "certmanager", "client", "leaf", "machine", "metrics", "provisioner", "target"}; !reflect.DeepEqual(names, want) {
		t.Errorf("the roles are %q, want %q", names, want)
	}
	BuiltinRoles()[3].Permissions.Publish.Allow[0] = "changed"
	if BuiltinRoles()[3].Permissions.Publish.Allow[0] != ">" {
		t.Error("a built-in role can be changed")
	}
}

func TestRoleValidate(t *testing.T) {
	err := Role{
		Name:        "a b",
		Permissions: Permissions{Publish: Rule{Allow: []string{""}}},
		Limits:      Limits{Payload: -1},
		Expires:     -time.Second,
		Networks:    []string{"nowhere"},
		Listeners:   []string{"n.ats"},
	}.Validate()
	for _, part := range []string{`checking role "a b"`, "publish.allow", "payload", "expires", "nowhere", "n.ats"} {
		wantError(t, err, part)
	}
}
