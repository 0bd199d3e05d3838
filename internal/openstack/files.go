package openstack

import (
	"net/url"
	"path"
	"strings"
)

// Dir is the directory of the service's files, within that of all.
func (s Service) Dir() string { return path.Join(s.Host.Name, s.Name) }

// Conf is the path of the file with the service's settings.
func (s Service) Conf() string { return path.Join(s.Dir(), s.Name+".conf") }

// CA is the path of the authority that nodes are verified with.
func (s Service) CA() string { return path.Join(s.Dir(), "ca.pem") }

// Certificate is the path of a user's certificate, Key of its key, Password of its password.
func (s Service) Certificate(u User) string { return path.Join(s.Dir(), u.Account+".crt") }

// Key is the path of the key of a user's certificate.
func (s Service) Key(u User) string { return path.Join(s.Dir(), u.Account+".key") }

// Password is the path of a user's password.
func (s Service) Password(u User) string { return path.Join(s.Dir(), u.Account+".password") }

// at is where the host has the file of a path.
func (s Service) at(file string) string {
	dir := strings.NewReplacer("{service}", s.Name, "{host}", s.Host.Name).Replace(s.plan.At)
	return path.Join(dir, path.Base(file))
}

// address is the transport_url of a user. With query it says which certificate, because a
// program has one in its settings.
func (s Service) address(u User, passwords map[string]string, query bool) string {
	login := ""
	if s.plan.Passwords {
		login = u.Account + "." + u.Name + ":" + url.QueryEscape(passwords[u.String()]) + "@"
	}
	var hosts []string
	for _, server := range s.servers {
		hosts = append(hosts, login+server)
	}
	address := "rabbit://" + strings.Join(hosts, ",") + "/" + u.Account
	if query && !s.plan.Passwords {
		address += "?ssl_cert_file=" + s.at(s.Certificate(u)) + "&ssl_key_file=" + s.at(s.Key(u))
	}
	return address
}

// Settings are the sections of oslo.messaging for the service, with the passwords of its users
// by their full names, if they have passwords.
func (s Service) Settings(passwords map[string]string) string {
	var b strings.Builder
	line := func(parts ...string) { b.WriteString(strings.Join(parts, "") + "\n") }
	first := s.Users()[0] // there is one
	line("# ", s.Name, " on ", s.Host.Name, ": for its own file of settings, or beside it in ", s.Name, ".conf.d.")
	line("[DEFAULT]")
	line("transport_url = ", s.address(first, passwords, false))
	line("control_exchange = ", s.exchange)
	line()
	line("[oslo_messaging_rabbit]")
	line("ssl = true")
	line("ssl_ca_file = ", s.at(s.CA()))
	line("ssl_enforce_hostname_verification = true")
	if !s.plan.Passwords {
		line("ssl_cert_file = ", s.at(s.Certificate(first)))
		line("ssl_key_file = ", s.at(s.Key(first)))
		line("rabbit_login_method = EXTERNAL")
	}
	// A consumer tries a node that is gone eight times before it tries another, with 1 s in
	// between unless this says otherwise.
	line("kombu_reconnect_delay = 0.2")
	if !s.plan.Transient {
		line("rabbit_quorum_queue = true")
	}
	line()
	line("[oslo_messaging_notifications]")
	if s.Notifications == nil {
		line("driver = noop")
		return b.String()
	}
	line("driver = messagingv2")
	line("topics = ", notifications)
	line("transport_url = ", s.address(*s.Notifications, passwords, s.Calls != nil))
	return b.String()
}

// A Step is one thing that a plan makes.
type Step struct {
	// Kind is account, role, user or file.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Role is that of a user.
	Role string `json:"role,omitempty"`
	// Publish and Subscribe are what a role may do.
	Publish   []string `json:"publish,omitempty"`
	Subscribe []string `json:"subscribe,omitempty"`
	// Mode is that of a file.
	Mode string `json:"mode,omitempty"`
	// State is what became of it, if something was done: made, changed, renewed, there.
	State string `json:"state,omitempty"`
}

// Steps are all that the plan makes, in the order in which it is made.
func (p Plan) Steps() []Step {
	var all []Step
	for _, name := range p.Accounts {
		all = append(all, Step{Kind: "account", Name: name})
	}
	for _, r := range p.Roles {
		all = append(all, Step{Kind: "role", Name: r.Name, Publish: r.Permissions.Publish.Allow, Subscribe: r.Permissions.Subscribe.Allow})
	}
	for _, s := range p.Services {
		for _, u := range s.Users() {
			all = append(all, Step{Kind: "user", Name: u.String(), Role: u.Role})
			if s.plan.Passwords {
				all = append(all, file(s.Password(u), "0600"))
			} else {
				all = append(all, file(s.Key(u), "0600"), file(s.Certificate(u), "0600"))
			}
		}
		all = append(all, file(s.CA(), "0600"), file(s.Conf(), "0600"))
	}
	return all
}

func file(name, mode string) Step { return Step{Kind: "file", Name: name, Mode: mode} }
