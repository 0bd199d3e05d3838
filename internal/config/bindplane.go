package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// ImportBindplane turns the eventBus section of a BindPlane server's
// configuration into a configuration of fleetbus. The notes are sentences about
// what means something else here, what was added, and every key that has no
// counterpart. An error says why there is nothing to turn, or is a *ProblemList
// for data that is not YAML.
func ImportBindplane(data []byte) (ours []byte, notes []string, err error) {
	root, problems, broken := parse("bindplane", data)
	if broken || len(problems) > 0 {
		return nil, nil, &ProblemList{problems}
	}
	b := &bindplane{taken: newTaken(), used: map[*node]bool{}}
	bus := b.get(root, "eventBus")
	if bus == nil || bus.kind != mapping {
		return nil, nil, errors.New("there is no eventBus section")
	}
	switch kind := b.text(bus, "type"); strings.ToLower(kind) {
	case "nats":
		b.nats(b.get(bus, "nats"))
	case "local", "":
		b.values["mode"] = "local"
		if kind == "" {
			b.note("eventBus.type is not set, which means local: no port is opened and nothing is shared with other servers")
		}
	default:
		return nil, nil, fmt.Errorf("eventBus.type is %q; only nats and local can be taken over, because the others need a broker of another vendor", kind)
	}
	b.unused(bus, "eventBus")
	if others := otherSections(root, bus); len(others) > 0 {
		b.note("not about the event bus, left to BindPlane: %s", strings.Join(others, ", "))
	}
	var out bytes.Buffer
	out.WriteString("# Taken over from BindPlane's event bus.\n")
	out.Write(written(b.values))
	return out.Bytes(), b.notes, nil
}

// A bindplane is one import under way.
type bindplane struct {
	taken
	used map[*node]bool
}

// get returns the field that has one of the names, however it is capitalized,
// and counts it as used. It returns nil if there is none.
func (b *bindplane) get(n *node, names ...string) *node {
	if n == nil || n.kind != mapping {
		return nil
	}
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	for _, c := range n.children {
		if slices.ContainsFunc(names, func(name string) bool { return plain(name) == plain(c.name) }) {
			b.used[c] = true
			return c
		}
	}
	return nil
}

// text returns the field's text, "" if there is none.
func (b *bindplane) text(n *node, names ...string) string {
	return strings.Join(b.list(n, names...), ",")
}

// list returns the field's items, be it a list or comma-separated.
func (b *bindplane) list(n *node, names ...string) []string {
	f := b.get(n, names...)
	if f == nil {
		return nil
	}
	return value(Key{Type: List}, strings.Join(f.texts(), ","), Place{}).texts()
}

// nats takes over eventBus.nats.
func (b *bindplane) nats(n *node) {
	client, server := b.get(n, "client"), b.get(n, "server")
	b.set("client.name", b.text(client, "name"))
	b.set("client.endpoints", b.addresses(append(b.list(client, "endpoint"), b.list(client, "endpoints")...), "4222")...)
	b.set("client.subject_prefix", b.text(client, "subject"))
	if b.values["client.subject_prefix"] != "" {
		b.note("eventBus.nats.client.subject was one subject for all events; it is now the first part of every subject")
	}
	if b.text(server, "enable", "enabled") == "true" {
		b.set("mode", "mesh")
		b.server(server)
		if client != nil {
			b.note("the client section is used in mode client only: this node's services need no connection to itself")
		}
	} else {
		b.set("mode", "client")
		if server != nil {
			b.note("eventBus.nats.server is not enabled, so that this server only connects to others; its settings are left out")
		}
		b.useAll(server)
		if b.values["client.endpoints"] == "" {
			b.set("client.endpoints", "localhost:4222")
			b.note("eventBus.nats.client.endpoint is not set; localhost:4222 is BindPlane's default")
		}
	}
	b.tls(n)
}

// server takes over eventBus.nats.server.
func (b *bindplane) server(server *node) {
	if name := b.text(server, "name"); name != "" {
		b.set("name", b.name("eventBus.nats.server.name", name))
	}
	b.set("data_dir", "/var/lib/fleetbus")
	b.note("data_dir is new: identities and streams are kept there")

	clients, cluster, monitor := b.get(server, "client"), b.get(server, "cluster"), b.get(server, "http")
	b.set("listeners.nats.addr", b.hostport(clients, "4222"))
	b.set("cluster.addr", b.hostport(cluster, "6222"))
	if name := b.text(cluster, "name"); name != "" {
		b.set("cluster.name", b.name("eventBus.nats.server.cluster.name", name))
	}
	b.set("cluster.advertise", b.addresses(b.list(cluster, "advertise"), "6222")...)
	b.set("cluster.routes", b.addresses(b.list(cluster, "routes"), "6222")...)
	if host, _, _ := net.SplitHostPort(b.values["cluster.addr"]); loopback(host) && b.values["cluster.routes"] != "" {
		b.note("cluster.addr %s is loopback, so that other nodes cannot connect; use :6222", b.values["cluster.addr"])
	}
	if monitor == nil {
		b.note("the monitoring API is off; BindPlane opened it on localhost:8222; set monitor to 127.0.0.1:8222 for it")
		return
	}
	addr := b.hostport(monitor, "8222")
	host, port, _ := net.SplitHostPort(addr)
	if !loopback(host) {
		b.note("eventBus.nats.server.http %s became 127.0.0.1:%s: the monitoring API has no authentication and stays on this host", addr, port)
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	b.set("monitor", addr)
}

// tls takes over eventBus.nats.tls, and the keys of it that may stand beside it.
func (b *bindplane) tls(n *node) {
	t := b.get(n, "tls")
	first := func(names ...string) (out []string) {
		for _, in := range []*node{t, n} {
			if found := b.list(in, names...); out == nil {
				out = found
			}
		}
		return out
	}
	enabled := first("enableTLS", "enable", "enabled")
	cert, key, ca := first("tlsCert", "cert"), first("tlsKey", "key"), first("tlsCA", "ca")
	b.set("tls.cert", cert...)
	b.set("tls.key", key...)
	b.set("tls.ca", ca...)
	switch on := slices.Contains(enabled, "true"); {
	case len(cert) == 0 && len(ca) == 0:
		b.note("TLS is always on; without files of your own, the built-in authority issues the certificates")
	case !on:
		b.note("TLS was not enabled, but is always on here, with the files that eventBus.nats.tls names")
	}
	if slices.Contains(first("tlsSkipVerify", "skipVerify"), "true") {
		b.set("tls.skip_hostname_verification", "true")
		b.note("tlsSkipVerify verified nothing; tls.skip_hostname_verification still verifies the authority, so that tls.ca must be right")
	}
}

// hostport joins the host and port of a section; without them, BindPlane's
// default: localhost and port.
func (b *bindplane) hostport(n *node, port string) string {
	host := b.text(n, "host")
	if host == "" {
		host = "localhost"
	}
	if p := b.text(n, "port"); p != "" {
		port = p
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

func (b *bindplane) useAll(n *node) {
	if n == nil {
		return
	}
	b.used[n] = true
	for _, c := range n.children {
		b.useAll(c)
	}
}

// unused notes every key under n that was not taken over.
func (b *bindplane) unused(n *node, path string) {
	for _, c := range n.children {
		switch {
		case c.name == "":
		case !b.used[c] && c.kind == mapping && path == "eventBus" && c.name != "health":
			b.note("%s.%s is about another type of bus and is left out", path, c.name)
		case !b.used[c]:
			b.note("%s.%s has no counterpart and is left out", path, c.name)
		case c.kind == mapping:
			b.unused(c, path+"."+c.name)
		}
	}
}

// otherSections are the names of what stands beside the event bus.
func otherSections(root, bus *node) []string {
	var out []string
	for _, c := range root.children {
		if c != bus {
			out = append(out, c.name)
		}
	}
	return out
}
