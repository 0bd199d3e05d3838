package config

import (
	"fmt"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
)

// linkSettings are what a hub of type amqp has beside what every hub has.
type linkSettings struct {
	kind                                     string
	in, out                                  []string
	local, ca, cert, key, user, passwordFile string
	prefetch                                 int
	park                                     string
}

// linkQueues adds the service that links queues of an account with those of a RabbitMQ. It is
// beside the mesh: nodes that are configured alike have it in turn.
func (t *target) linkQueues(d *decoder, root *node) {
	refuse := func(field, problem, hint string) {
		if path := "hub." + field; !d.covers(path) {
			d.refuse(root.at(path), []string{path}, fault{problem, hint})
		}
	}
	if len(t.accounts) == 0 {
		t.accounts = t.options.Accounts
	}
	switch {
	case t.options.Mode == fleetbus.Hub:
		refuse("type", "links of queues are beside the mesh, and mode hub is in its place", "set mode to mesh")
	case t.options.Mode == fleetbus.Client:
		refuse("type", "a server in client mode has no account of its own to link", "set mode to mesh")
	case len(t.hub.Servers) != 1:
		refuse("servers", fmt.Sprintf("%d brokers are named, and links of queues are with one", len(t.hub.Servers)), "set hub.servers to one address, such as amqps://rabbit.example.net:5671/vhost")
	case len(t.accounts) != 1:
		refuse("accounts", fmt.Sprintf("%d accounts are named, and queues are linked of one", len(t.accounts)), "set hub.accounts to one")
	default:
		account := t.accounts[0]
		if err := identity.CheckAccountName(account); err != nil {
			refuse("accounts[0]", err.Error(), "use letters, digits, - and _, 63 bytes at most")
			return
		}
		service, permissions, err := newQueueLink(t.queues, t.hub, account, fleetbus.NodeRecord(t.options).Name)
		if err != nil {
			d.validate(root, err)
			return
		}
		t.options.Services = append(t.options.Services, fleetbus.ServiceBinding{
			Name: "links " + account, Service: service,
			Principal: identity.Principal{Account: account, Name: "links", Kind: identity.KindService, Permissions: permissions},
		})
	}
}

// only refuses settings of links of queues for a hub that has none.
func (q *linkSettings) only(d *decoder, root *node) {
	for name, set := range map[string]bool{
		"in": len(q.in) > 0, "out": len(q.out) > 0, "local": q.local != "", "local_ca": q.ca != "", "local_cert": q.cert != "", "local_key": q.key != "",
		"local_user": q.user != "", "local_password_file": q.passwordFile != "", "prefetch": q.prefetch != 0, "park": q.park != "",
	} {
		if field := "hub." + name; set && !d.covers(field) {
			d.refuse(root.at(field), []string{field}, fault{"is of links of queues, and hub.type is mqtt", "set hub.type to amqp, or remove it"})
		}
	}
}
