package openstack

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/identity"
)

func hosts(t *testing.T, table string) []Host {
	t.Helper()
	all, err := ParseHosts("hosts", []byte(table))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func request(t *testing.T, table string, services ...string) Request {
	return Request{Services: services, Hosts: hosts(t, table), Servers: []string{"10.0.0.11:5671", "10.0.0.12:5671"}, At: "/etc/{service}/fleetbus"}
}

func planned(t *testing.T, r Request) Plan {
	t.Helper()
	p, err := New(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestParseHosts reads a table, and has every bad line told of.
func TestParseHosts(t *testing.T) {
	got := hosts(t, "# racks\n\nctl1 controller,network # first\r\ncmp1.example.net\tcompute compute\n")
	if want := "[{ctl1 [controller network]} {cmp1.example.net [compute]}]"; fmt.Sprint(got) != want {
		t.Errorf("it read %v, not %s", got, want)
	}
	_, err := ParseHosts("f", []byte("a\nb boss\n_c compute\nd..e compute\nok compute\nok.x compute\nok compute\n../x compute\n"+strings.Repeat("h", 300)+" compute\n"))
	for _, want := range []string{`f:1: host "a" has no role`, `f:2: host "b": "boss"`, "f:3: ", "f:4: ", "f:6: ", "line 5", "f:7: ", "f:8: ", "f:9: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	for _, empty := range []string{"", "# nothing\n"} {
		if _, err := ParseHosts("f", []byte(empty)); err == nil {
			t.Errorf("%q has hosts", empty)
		}
	}
	if _, err := ParseHosts("f", []byte(strings.Repeat("x", maxHostsFile+1))); err == nil {
		t.Error("a file without an end is read")
	}
	var many strings.Builder
	for i := range maxHosts + 1 {
		fmt.Fprintf(&many, "h%d compute\n", i)
	}
	if _, err := ParseHosts("f", []byte(many.String())); err == nil {
		t.Error("hosts without number are read")
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("ctl1 controller, network # x\ncmp1.example.net compute\n"))
	f.Add([]byte("\x00 \t,,,\n#\n.."))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := ParseHosts("f", data)
		if err != nil {
			return
		}
		p, err := New(Request{Services: []string{"nova", "neutron", "ceilometer"}, Hosts: all, Servers: []string{"b:5671"}, At: "/etc/{service}"})
		if err != nil {
			return // a name may be too long for a user's
		}
		for _, s := range p.Services {
			for _, path := range []string{s.Conf(), s.CA()} {
				if strings.Contains(path, "..") || strings.HasPrefix(path, "/") {
					t.Errorf("it would write %q", path)
				}
			}
			for _, u := range s.Users() {
				if _, _, err := identity.SplitName(u.String()); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// can says what of AMQP a user of a plan may do.
func can(t *testing.T, p Plan, user, right, name string) bool {
	t.Helper()
	for _, s := range p.Services {
		for _, u := range s.Users() {
			if u.String() != user {
				continue
			}
			for _, r := range p.Roles {
				if r.Name != u.Role {
					continue
				}
				rule, subject := r.Permissions.Expand(u.Account, u.Name).Publish, "amqp."+right+"."+words(name)
				if right == "read" {
					rule = r.Permissions.Expand(u.Account, u.Name).Subscribe
				}
				return rule.Allows(subject)
			}
		}
	}
	t.Fatalf("there is no user %s", user)
	return false
}

// TestRights has a compute node not act as the conductor, nor any host as another.
func TestRights(t *testing.T) {
	p := planned(t, request(t, "ctl1 controller\ncmp1.example.net compute\nnet1 network\nsto1 storage\nbm1 baremetal\nall1 compute controller\n",
		"nova", "neutron", "cinder", "ironic", "glance", "ceilometer", "aodh"))
	for _, c := range []struct {
		user, right, name string
		want              bool
	}{
		{"nova/cmp1", "read", "conductor", false}, {"nova/cmp1", "configure", "conductor", false}, {"nova/cmp1", "write", "conductor", false},
		{"nova/cmp1", "read", "scheduler", false}, {"nova/cmp1", "read", "compute", true}, {"nova/cmp1", "read", "compute.cmp1.example.net", true},
		{"nova/cmp1", "read", "compute.cmp2", false}, {"nova/cmp1", "read", "compute_fanout_0a", true}, {"nova/cmp1", "read", "reply_0a", true},
		{"nova/cmp1", "write", "nova", true}, {"nova/cmp1", "write", "scheduler_fanout", true}, {"nova/cmp1", "read", "scheduler_fanout_0a", false},
		{"nova/cmp1", "write", "amq.default", true}, {"nova/cmp1", "write", "conductor_fanout", false},
		{"nova/ctl1", "read", "conductor", true}, {"nova/ctl1", "read", "conductor.ctl1", true}, {"nova/ctl1", "write", "compute_fanout", true},
		{"nova/ctl1", "read", "q-plugin", false}, {"nova/all1", "read", "conductor.all1", true},
		{"neutron/cmp1", "read", "q-plugin", false}, {"neutron/cmp1", "read", "dhcp_agent.net1", false}, {"neutron/cmp1", "read", "q-agent-notifier-port-update_fanout_0a", true},
		{"neutron/cmp1", "read", "q-agent-notifier-security_group-update.cmp1.example.net", true}, {"neutron/cmp1", "read", "neutron-vo-Port-1.10.cmp1", true},
		{"neutron/cmp1", "read", "neutron-vo-Port-1.10_fanout_0a", true}, {"neutron/cmp1", "write", "q-agent-notifier-port-update_fanout", true},
		{"neutron/net1", "read", "dhcp_agent.net1", true}, {"neutron/net1", "read", "l3_agent.cmp1", false}, {"neutron/net1", "read", "q-reports-plugin", false},
		{"cinder/sto1", "read", "cinder-volume.sto1@lvm.sto1", true}, {"cinder/sto1", "read", "cinder-scheduler", false}, {"cinder/sto1", "write", "cinder-scheduler_fanout", true},
		{"ironic/bm1", "read", "ironic.conductor_manager.bm1", true}, {"ironic/bm1", "read", "ironic.conductor_manager.bm2", false},
		{"notifications/nova-cmp1", "read", "notifications.info", false}, {"notifications/nova-cmp1", "write", "nova", true}, {"notifications/nova-cmp1", "write", "glance", false},
		{"notifications/glance-ctl1", "configure", "notifications.info", true}, {"notifications/ceilometer-ctl1", "read", "notifications.error", true},
		{"notifications/ceilometer-ctl1", "read", "cinder", true}, {"notifications/aodh-ctl1", "read", "notifications.info", false}, {"notifications/aodh-ctl1", "read", "alarm.all.info", true},
	} {
		if got := can(t, p, c.user, c.right, c.name); got != c.want {
			t.Errorf("%s may %s %s: %v", c.user, c.right, c.name, got)
		}
	}
	for _, r := range p.Roles {
		if err := r.Validate(); err != nil {
			t.Errorf("role %s: %v", r.Name, err)
		}
		for _, s := range append(r.Permissions.Publish.Allow, r.Permissions.Subscribe.Allow...) {
			if strings.HasSuffix(s, "e.>") && strings.Count(s, ".") == 2 && s != "amqp.configure.engine.>" {
				t.Errorf("role %s may do everything: %s", r.Name, s)
			}
		}
	}
}

// TestSettings has what a service is told be what its users are.
func TestSettings(t *testing.T) {
	r := request(t, "ctl1 controller\ncmp1 compute\n", "nova", "ceilometer")
	p := planned(t, r)
	got := p.Services[0].Settings(nil) // of cmp1, for which the second server is first
	for _, want := range []string{
		"\ntransport_url = rabbit://10.0.0.12:5671,10.0.0.11:5671/nova\n", "\ncontrol_exchange = nova\n", "\nrabbit_login_method = EXTERNAL\n", "\nrabbit_quorum_queue = true\n",
		"\nssl_key_file = /etc/nova/fleetbus/nova.key\n", "\nssl_enforce_hostname_verification = true\n",
		"\ntransport_url = rabbit://10.0.0.12:5671,10.0.0.11:5671/notifications?ssl_cert_file=/etc/nova/fleetbus/notifications.crt&ssl_key_file=/etc/nova/fleetbus/notifications.key\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	r.Passwords, r.Transient = true, true
	got = planned(t, r).Services[0].Settings(map[string]string{"nova/cmp1": "p-1", "notifications/nova-cmp1": "p-2"})
	for _, want := range []string{
		"\ntransport_url = rabbit://nova.cmp1:p-1@10.0.0.12:5671,nova.cmp1:p-1@10.0.0.11:5671/nova\n",
		"\ntransport_url = rabbit://notifications.nova-cmp1:p-2@10.0.0.12:5671,notifications.nova-cmp1:p-2@10.0.0.11:5671/notifications\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "EXTERNAL") || strings.Contains(got, "quorum") {
		t.Errorf("with a password it says:\n%s", got)
	}
	if got := planned(t, request(t, "ctl1 controller\n", "nova")).Services[0].Settings(nil); !strings.Contains(got, "driver = noop") {
		t.Errorf("without anybody who reads notifications it says:\n%s", got)
	}
}

// TestWarnings has what is not known, or for nothing, be told; and what cannot be, refused.
func TestWarnings(t *testing.T) {
	p := planned(t, request(t, "ctl1 controller\ncmp1 compute\n", "nova", "glance", "zaqar"))
	if all := strings.Join(p.Warnings, "\n"); !strings.Contains(all, "service zaqar is not known") || !strings.Contains(all, "service glance calls nobody") {
		t.Errorf("it warns:\n%s", all)
	}
	if !can(t, p, "zaqar/ctl1", "read", "anything") {
		t.Error("a service that is not known may not call itself")
	}
	for name, change := range map[string]func(*Request){
		"service twice":       func(r *Request) { r.Services = append(r.Services, "nova") },
		"service notified":    func(r *Request) { r.Services = append(r.Services, "notifications") },
		"service's name":      func(r *Request) { r.Services = append(r.Services, "a/b") },
		"no service":          func(r *Request) { r.Services = nil },
		"no host":             func(r *Request) { r.Hosts = nil },
		"no server":           func(r *Request) { r.Servers = nil },
		"server without port": func(r *Request) { r.Servers = []string{"10.0.0.11"} },
		"server with a login": func(r *Request) { r.Servers = []string{"a@10.0.0.11:5671"} },
		"relative directory":  func(r *Request) { r.At = "etc" },
		"long name":           func(r *Request) { r.Hosts[0].Name = strings.Repeat("h", 63); r.Notifications = true },
		"same user": func(r *Request) {
			r.Notifications, r.Services = true, []string{"a-b", "a"}
			r.Hosts = hosts(t, "c controller\nb-c controller\n")
		},
	} {
		r := request(t, "ctl1 controller\n", "nova")
		change(&r)
		if _, err := New(r); err == nil {
			t.Errorf("%s: it is planned", name)
		}
	}
}
