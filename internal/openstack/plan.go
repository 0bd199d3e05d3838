// Package openstack says which accounts, roles and users the services of OpenStack need to
// call each other over AMQP, and how each service is configured. It decides, and does nothing.
package openstack

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// A Request is what a deployment has.
type Request struct {
	// Services are the projects, such as nova.
	Services []string
	Hosts    []Host
	// Servers are the host:port of AMQP listeners.
	Servers []string
	// Passwords says that services log in by a password each, and not by a certificate.
	Passwords bool
	// Notifications says that somebody reads them; a service that does is reason enough.
	Notifications bool
	// Transient leaves queues in memory, as oslo.messaging has them by default.
	Transient bool
	// Prefix begins the names of accounts: a deployment, or a cell of one, has its own.
	Prefix string
	// At is the directory on hosts where a service finds its files, with {service} and
	// {host} for theirs.
	At string
	// Networks and Listener, if they are set, are where users may come from and by.
	Networks []string
	Listener string
}

// roleLife is how long a certificate is good for. Nothing renews it by itself.
const roleLife = 90 * 24 * time.Hour

// A Plan is what a deployment needs.
type Plan struct {
	Accounts []string
	Roles    []identity.Role
	Services []Service
	// Warnings are what a person should know of.
	Warnings []string
}

// A Service is one of a host, with its users: one for calls, one for notifications, or both.
type Service struct {
	Name string
	Host Host
	// Calls and Notifications are nil if it has none.
	Calls, Notifications *User
	exchange             string
	plan                 *Request
	servers              []string
}

// A User is one of an account.
type User struct {
	Account, Name, Role string
}

// String is account/name.
func (u User) String() string { return u.Account + "/" + u.Name }

// Users are those of the service.
func (s Service) Users() []User {
	var all []User
	for _, u := range []*User{s.Calls, s.Notifications} {
		if u != nil {
			all = append(all, *u)
		}
	}
	return all
}

// New plans. The error joins every problem of r.
func New(r Request) (Plan, error) {
	p := &planning{Request: r, roles: map[string]identity.Role{}}
	if err := p.check(); err != nil {
		return Plan{}, err
	}
	p.read = p.Notifications
	var readers bool
	for _, name := range p.Services {
		readers = readers || slices.Contains(known()[name].reads, notifications)
	}
	p.read = p.read || readers
	if p.Notifications && !readers {
		p.warn("nobody of these services reads notifications: what does needs a user of account %s, or their queues grow until the account is full", p.account(notifications))
	}
	for _, name := range p.Services {
		p.service(name)
	}
	p.out.Accounts = slices.Compact(slices.Sorted(slices.Values(p.out.Accounts)))
	for _, r := range p.roles {
		p.out.Roles = append(p.out.Roles, r)
	}
	slices.SortFunc(p.out.Roles, func(a, b identity.Role) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(p.out.Services, func(a, b Service) int { return strings.Compare(a.Host.Name, b.Host.Name) })
	return p.out, p.unique()
}

// planning is a plan on its way.
type planning struct {
	Request
	read  bool // notifications are read
	roles map[string]identity.Role
	out   Plan
}

func (p *planning) warn(format string, args ...any) {
	p.out.Warnings = append(p.out.Warnings, fmt.Sprintf(format, args...))
}

func (p *planning) account(name string) string { return p.Prefix + name }

// check looks at what was asked for.
func (p *planning) check() error {
	var errs []error
	if len(p.Services) == 0 {
		errs = append(errs, errors.New("there are no services"))
	}
	for i, s := range p.Services {
		switch {
		case identity.CheckAccountName(p.account(s)) != nil:
			errs = append(errs, fmt.Errorf("service %q: no account can be called %q", s, p.account(s)))
		case s == notifications:
			errs = append(errs, fmt.Errorf("service %q: its account is that of all notifications", s))
		case slices.Contains(p.Services[:i], s):
			errs = append(errs, fmt.Errorf("service %q is there twice", s))
		}
	}
	if len(p.Hosts) == 0 {
		errs = append(errs, errors.New("there are no hosts"))
	}
	if len(p.Servers) == 0 {
		errs = append(errs, errors.New("there is no address of an AMQP listener"))
	}
	for _, s := range p.Servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" || strings.ContainsAny(s, "/@,?# %$") {
			errs = append(errs, fmt.Errorf("address %q is not host:port", s))
		}
	}
	if !strings.HasPrefix(p.At, "/") || strings.ContainsAny(p.At, "?&#%$ \n") {
		errs = append(errs, fmt.Errorf("directory %q: services want one that begins with / and has no space and none of ?&#%%$", p.At))
	}
	return errors.Join(errs...)
}

// service plans one, on all hosts that it runs on.
func (p *planning) service(name string) {
	s, ok := known()[name]
	if !ok {
		p.warn("service %s is not known: its users on controllers may do everything within account %s, and other hosts have none", name, p.account(name))
		s = service{exchange: name, parts: []part{{on: Controller, all: true, notifies: true}}}
	}
	if s.exchange == "" && !p.read {
		p.warn("service %s calls nobody, and nobody reads its notifications: it has no users", name)
		return
	}
	n := 0
	for i, host := range p.Hosts {
		at := slices.IndexFunc(s.parts, func(q part) bool { return slices.Contains(host.Roles, q.on) })
		if at < 0 {
			continue
		}
		n++
		p.out.Services = append(p.out.Services, p.onHost(name, s, s.parts[at], host, i))
	}
	if n == 0 {
		p.warn("service %s has no host", name)
	}
}

func (p *planning) onHost(name string, s service, q part, host Host, i int) Service {
	// Each host begins with another server, so that not all are on the first.
	k := i % len(p.Servers)
	out := Service{Name: name, Host: host, exchange: s.exchange, plan: &p.Request, servers: slices.Concat(p.Servers[k:], p.Servers[:k])}
	if out.exchange == "" {
		out.exchange = name
	}
	if s.exchange != "" {
		out.Calls = &User{p.account(name), host.Short(), fmt.Sprintf("openstack-%s-%s", name, q.on)}
		p.role(out.Calls.Role, q.rights(s))
	}
	u := User{Account: p.account(notifications), Name: name + "-" + host.Short()}
	switch {
	case !p.read:
	case len(s.reads) > 0 && q.on == Controller:
		u.Role = fmt.Sprintf("openstack-%s-reader", name)
		p.role(u.Role, p.readerRights(name, s))
		out.Notifications = &u
	case q.notifies:
		u.Role = fmt.Sprintf("openstack-%s-notifier", name)
		p.role(u.Role, notifierRights(out.exchange))
		out.Notifications = &u
	}
	for _, u := range out.Users() {
		p.out.Accounts = append(p.out.Accounts, u.Account)
	}
	return out
}

// role keeps a role with these rights.
func (p *planning) role(name string, r rights) {
	p.roles[name] = identity.Role{Name: name, Permissions: r.permissions(), Expires: roleLife, Networks: p.Networks, Listeners: listeners(p.Listener)}
}

func listeners(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// unique refuses names that two users would have.
func (p *planning) unique() error {
	var errs []error
	who := map[string]string{}
	for _, s := range p.out.Services {
		for _, u := range s.Users() {
			here := s.Name + " on " + s.Host.Name
			if _, _, err := identity.SplitName(u.String()); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", here, err))
			}
			if other, twice := who[u.String()]; twice {
				errs = append(errs, fmt.Errorf("%s and %s would both be user %s", other, here, u))
			}
			who[u.String()] = here
		}
	}
	return errors.Join(errs...)
}
