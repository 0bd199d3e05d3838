package definitions

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/identity"
)

// TestHostileNames plans an export whose names lead elsewhere, or do something where they are
// shown: what becomes an account, a user or a role has a name, and none is of the fleet's own.
func TestHostileNames(t *testing.T) {
	names := []string{
		"../../etc/x", "..", "a/b", "a\x1b[31mb", "a\nlevel=ERROR msg=forged", "a\r\nb", "a\u202eb", "a b", ">", "*", "a.b", "$SYS", "%s%n", strings.Repeat("a", 10_000),
		"FLEET", "SYS", "CALLOUT", "REGIONS", "node", "ok",
	}
	export := map[string]any{"rabbit_version": "3.13.7"}
	var vhosts, users, permissions, queues, exchanges, bindings []any
	for _, v := range names {
		vhosts = append(vhosts, map[string]any{"name": v})
		users = append(users, map[string]any{"name": v, "tags": []string{"administrator"}})
		for _, u := range names {
			permissions = append(permissions, map[string]any{"user": u, "vhost": v, "configure": ".*", "write": ".*", "read": ".*"})
		}
		queues = append(queues, map[string]any{"name": v, "vhost": "ok", "durable": true, "auto_delete": false, "arguments": map[string]any{}})
		exchanges = append(exchanges, map[string]any{"name": "x" + v, "vhost": "ok", "type": "topic", "durable": true, "auto_delete": false, "internal": false, "arguments": map[string]any{}})
		bindings = append(bindings, map[string]any{"source": "x" + v, "vhost": "ok", "destination": v, "destination_type": "queue", "routing_key": v, "arguments": map[string]any{}})
	}
	export["vhosts"], export["users"], export["permissions"] = vhosts, users, permissions
	export["queues"], export["exchanges"], export["bindings"] = queues, exchanges, bindings
	data, err := json.Marshal(export)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, s := range d.Plan(Options{}) {
		if s.Account != nil && identity.CheckName(s.Account.Name) != nil {
			t.Errorf("an account is called %q", s.Account.Name)
		}
		if s.User != nil {
			taken++
			if identity.CheckName(s.User.Account) != nil || identity.CheckName(s.User.Name) != nil || identity.CheckName(s.User.Role) != nil {
				t.Errorf("a user is called %q/%q, with role %q", s.User.Account, s.User.Name, s.User.Role)
			}
		}
		if s.Role != nil {
			for _, own := range []string{identity.FleetName, identity.SystemName, identity.CalloutName, identity.RegionsName} {
				if s.Role.AllowedIn(own) {
					t.Errorf("role %q is one of the fleet's own account", s.Role.Name)
				}
			}
		}
		if len(s.Line.Text) > 20_000 {
			t.Errorf("%d bytes are told of %s %.40q", len(s.Line.Text), s.Line.Kind, s.Line.Name)
		}
	}
	if taken == 0 {
		t.Error("no user is taken, and the test proves little")
	}
}
