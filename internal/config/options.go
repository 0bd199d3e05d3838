package config

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/change/sse"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/probe"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

// A protocol is what a listener may speak.
type protocol struct {
	fleetbus.Protocol
	addr string // where its listeners listen by default
}

// protocols is the table of what this program speaks, by name.
func protocols() map[string]protocol {
	return map[string]protocol{
		"leaf":      {fleetbus.Leaf(), ":7422"},
		"gateway":   {fleetbus.Gateway(), ":7222"},
		"nats":      {fleetbus.NATS(), ":4222"},
		"console":   {newConsole(consoleSettings{}), ":8444"},
		"sse":       {&sse.Protocol{}, ":8443"},
		"mqtt":      {&mqtt.Protocol{}, ":8883"},
		"amqp":      {&amqp.Protocol{}, ":5671"},
		"metrics":   {&probe.Protocol{}, "127.0.0.1:9422"},
		"provision": {&stranger.Protocol{}, ":4280"},
		"open":      {&stranger.Protocol{Open: true}, ":4281"},
	}
}

func protocolNames() []string { return slices.Sorted(maps.Keys(protocols())) }

// A target is what the tree is decoded into.
type target struct {
	options   fleetbus.Options
	hub       hub.Options
	queues    linkSettings // of a hub of type amqp
	accounts  []string     // of the hub
	qos       string
	log       Log
	listeners []*listener
	mqtt      mqtt.Protocol
	amqp      amqp.Protocol
	strangers stranger.Protocol
	console   consoleSettings
	arrivals  string // the account of strangers
	open      stranger.Protocol
	anyone    struct{ account, role string } // of who shows no credentials
	manage    bool                           // certificates
}

// consoleSettings are how long somebody stays logged in, and who does not look.
type consoleSettings struct{ life, idle time.Duration }

type listener struct {
	fleetbus.Listener
	protocol string
}

// field returns a pointer to the variable of the key at path, nil if there is
// none. It makes a listener when it is first asked for one.
func (t *target) field(path []string) any {
	if path[0] == "listeners" && len(path) == 3 {
		return t.listener(path[1]).field(path[2])
	}
	if path[0] == "hub" {
		return t.hubField(path[len(path)-1])
	}
	o := &t.options
	switch strings.Join(path, ".") {
	case "mode":
		return (*string)(&o.Mode)
	case "name":
		return &o.Name
	case "fleet":
		return &o.Fleet
	case "data_dir":
		return &o.Dir
	case "advertise":
		return &o.Advertise
	case "accounts":
		return &o.Accounts
	case "grace":
		return &o.Grace
	case "monitor":
		return &o.Monitor
	case "cluster.name":
		return &o.Cluster.Name
	case "cluster.addr":
		return &o.Cluster.Addr
	case "cluster.advertise":
		return &o.Cluster.Advertise
	case "cluster.routes":
		return &o.Cluster.Routes
	case "client.name":
		return &o.Client.Name
	case "client.endpoints":
		return &o.Client.Endpoints
	case "client.creds":
		return &o.Client.Creds
	case "client.subject_prefix":
		return &o.Client.SubjectPrefix
	case "tls.cert":
		return &o.TLS.Cert
	case "tls.key":
		return &o.TLS.Key
	case "tls.ca":
		return &o.TLS.CA
	case "tls.skip_hostname_verification":
		return &o.TLS.SkipHostnameVerification
	case "store.max_file":
		return &o.Store.MaxFile
	case "store.max_memory":
		return &o.Store.MaxMemory
	case "store.reserve":
		return &o.Store.Reserve
	case "store.lazy_sync":
		return &o.Store.LazySync
	case "certificates.manage":
		return &t.manage
	case "console.life":
		return &t.console.life
	case "console.idle":
		return &t.console.idle
	case "provision.account":
		return &t.arrivals
	case "provision.connections":
		return &t.strangers.Connections
	case "provision.per_address":
		return &t.strangers.PerAddress
	case "open.account":
		return &t.anyone.account
	case "open.role":
		return &t.anyone.role
	case "open.connections":
		return &t.open.Connections
	case "open.per_address":
		return &t.open.PerAddress
	case "mqtt.max_packet":
		return &t.mqtt.MaxPacket
	case "mqtt.receive_maximum":
		return &t.mqtt.ReceiveMaximum
	case "mqtt.topic_aliases":
		return &t.mqtt.TopicAliases
	case "mqtt.keep_alive":
		return &t.mqtt.KeepAlive
	case "mqtt.session_expiry":
		return &t.mqtt.SessionExpiry
	case "mqtt.pending":
		return &t.mqtt.Pending
	case "mqtt.max_stored":
		return &t.mqtt.MaxStored
	case "mqtt.max_retained":
		return &t.mqtt.MaxRetained
	case "mqtt.lazy_sync":
		return &t.mqtt.LazySync
	case "amqp.passwords":
		return &t.amqp.Passwords
	case "amqp.account":
		return &t.amqp.Account
	case "amqp.max_message":
		return &t.amqp.MaxMessage
	case "amqp.max_frame":
		return &t.amqp.MaxFrame
	case "amqp.channels":
		return &t.amqp.Channels
	case "amqp.heartbeat":
		return &t.amqp.Heartbeat
	case "amqp.pending":
		return &t.amqp.Pending
	case "amqp.max_memory":
		return &t.amqp.MaxMemory
	case "limits.connections":
		return &o.Limits.Connections
	case "limits.payload":
		return &o.Limits.Payload
	case "limits.handshakes":
		return &o.Limits.Handshakes
	case "limits.handshake_rate":
		return &o.Limits.HandshakeRate
	case "limits.handshake_timeout":
		return &o.Limits.HandshakeTimeout
	case "log.level":
		return &t.log.level
	case "log.format":
		return &t.log.Format
	}
	return nil
}

func (t *target) hubField(name string) any {
	h := &t.hub
	switch name {
	case "type":
		return &t.queues.kind
	case "in":
		return &t.queues.in
	case "out":
		return &t.queues.out
	case "local":
		return &t.queues.local
	case "local_ca":
		return &t.queues.ca
	case "local_cert":
		return &t.queues.cert
	case "local_key":
		return &t.queues.key
	case "local_user":
		return &t.queues.user
	case "local_password_file":
		return &t.queues.passwordFile
	case "prefetch":
		return &t.queues.prefetch
	case "park":
		return &t.queues.park
	case "servers":
		return &h.Servers
	case "accounts":
		return &t.accounts
	case "subjects":
		return &h.Subjects
	case "prefix":
		return &h.Prefix
	case "ca":
		return &h.CA
	case "cert":
		return &h.Cert
	case "key":
		return &h.Key
	case "server_name":
		return &h.ServerName
	case "pin":
		return &h.Pin
	case "user":
		return &h.User
	case "password_file":
		return &h.PasswordFile
	case "client_id":
		return &h.ClientID
	case "qos":
		return &t.qos
	case "keep_alive":
		return &h.KeepAlive
	case "session_expiry":
		return &h.SessionExpiry
	case "queue":
		return &h.Queue
	}
	return nil
}

// linkHub adds a service for every account that is linked to the hub, if there is
// one.
func (t *target) linkHub(d *decoder, root *node) {
	if t.queues.kind == "amqp" {
		t.linkQueues(d, root)
		return
	}
	t.queues.only(d, root)
	if t.options.Mode != fleetbus.Hub && len(t.hub.Servers) == 0 {
		return
	}
	t.hub.AtMostOnce = t.qos == "0"
	t.hub.Node = fleetbus.NodeRecord(t.options).Name
	if len(t.accounts) == 0 {
		t.accounts = t.options.Accounts
	}
	d.validate(root, t.hub.Validate())
	if len(t.accounts) == 0 && !d.covers("hub.accounts") {
		d.refuse(root.at("hub"), []string{"hub", "accounts"}, fault{"no account is named whose messages pass", "set hub.accounts, or accounts"})
	}
	for i, account := range t.accounts {
		if err := identity.CheckAccountName(account); err != nil {
			field := "hub.accounts[" + strconv.Itoa(i) + "]"
			d.refuse(root.at(field), []string{field}, fault{err.Error(), "use letters, digits, - and _, 63 bytes at most"})
		}
	}
	everything := identity.Rule{Allow: []string{">"}}
	for _, account := range t.accounts {
		o := t.hub
		o.Account = account
		if o.ClientID != "" && len(t.accounts) > 1 {
			o.ClientID += "-" + account
		}
		link, err := hub.New(o)
		if err != nil {
			continue // it was reported, as are names
		}
		t.options.Services = append(t.options.Services, fleetbus.ServiceBinding{
			Name: "hub " + account, Service: link,
			Principal: identity.Principal{Account: account, Name: "hub", Kind: identity.KindService, Permissions: identity.Permissions{Publish: everything, Subscribe: everything}},
		})
	}
	if len(t.options.Services) == 0 {
		d.spoil("hub") // it was reported why
	}
}

func (t *target) listener(name string) *listener {
	for _, l := range t.listeners {
		if l.Name == name {
			return l
		}
	}
	l := &listener{Listener: fleetbus.Listener{Name: name}}
	t.listeners = append(t.listeners, l)
	return l
}

func (l *listener) field(name string) any {
	switch name {
	case "addr":
		return &l.Addr
	case "advertise":
		return &l.Advertise
	case "protocol":
		return &l.protocol
	case "client_certificate":
		return (*string)(&l.ClientCertificate)
	case "plaintext":
		return &l.Plaintext
	}
	return nil
}

// putListenerDefaults completes every listener of the tree with a protocol, if
// it is named after one, and the usual address of its protocol.
func putListenerDefaults(root *node) {
	listeners := root.field("listeners")
	if listeners == nil {
		return
	}
	absent := func(l *node, name string) bool {
		f := l.field(name)
		return f == nil || f.kind == null
	}
	for _, l := range listeners.children {
		place := Place{Source: byDefault}
		if _, ok := protocols()[l.name]; ok && absent(l, "protocol") {
			l.put([]string{"protocol"}, &node{place: place, kind: scalar, text: l.name})
		}
		if p := l.field("protocol"); p != nil && absent(l, "addr") {
			if known, ok := protocols()[p.text]; ok {
				l.put([]string{"addr"}, &node{place: place, kind: scalar, text: known.addr})
			}
		}
	}
}

// decode turns the tree into options and returns every problem on the way. If
// broken, the file could not be read and only what stands alone is checked.
func decode(root *node, broken bool) (*target, []Problem) {
	putListenerDefaults(root)
	t := &target{log: Log{level: "info", Format: "text"}, manage: true, arrivals: "provisioning"}
	t.open.Open, t.anyone.account, t.anyone.role = true, "open", "client"
	d := newDecoder(t.field)
	d.section(root, Key{}, nil)
	for _, l := range t.listeners {
		known, ok := protocols()[l.protocol]
		if field := "listeners." + l.Name + ".protocol"; !ok && !d.covers(field) {
			d.refuse(root.at(field), strings.Split(field, "."), fault{
				"is not set, and no protocol has the listener's name", "set it to " + strings.Join(protocolNames(), " or "),
			})
		}
		l.Protocol = known.Protocol
		switch l.protocol {
		case "console":
			l.Protocol = newConsole(t.console)
		case "amqp":
			l.Protocol = &t.amqp
		case "mqtt":
			l.Protocol = &t.mqtt
		case "open":
			l.Protocol, l.Account, l.Role = &t.open, t.anyone.account, t.anyone.role
		case "provision":
			l.Protocol, l.Account = &t.strangers, t.arrivals
		}
		t.options.Listeners = append(t.options.Listeners, l.Listener)
	}
	if !broken {
		t.linkHub(d, root)
		d.validate(root, errors.Join(append(slices.Concat(t.mqtt.Validate(), t.amqp.Validate()), t.options.Validate())...))
	}
	return t, d.problems
}

// validate adds the problems of the options as a whole, each with the place of
// its field.
func (d *decoder) validate(root *node, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			d.validate(root, err)
		}
		return
	}
	var wrong *fleetbus.OptionError
	var field *hub.FieldError
	if errors.As(err, &field) {
		wrong = &fleetbus.OptionError{Field: "hub." + field.Field, Problem: field.Problem, Hint: field.Hint}
		err = wrong
	}
	switch {
	case err == nil:
	case !errors.As(err, &wrong):
		d.problems = append(d.problems, Problem{Place: root.place, Text: err.Error()})
	case !d.covers(wrong.Field):
		d.problems = append(d.problems, Problem{Place: root.at(wrong.Field), Key: wrong.Field, Text: wrong.Problem, Fix: wrong.Hint})
	}
}
