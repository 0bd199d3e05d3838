package broker

import (
	"fmt"
	"net"
)

// settle binds each address for a moment, because the engine itself reports a
// port in use only as a line in its log, and writes the ports that were free
// into o: a member must know its own route before it starts, and may not be
// without one.
func (o *Options) settle() error {
	addrs := []*string{&o.Monitor}
	if o.Clients != nil {
		clients := *o.Clients
		o.Clients = &clients
		addrs = append(addrs, &clients.Addr)
	}
	if o.Leafs != nil {
		leafs := *o.Leafs
		o.Leafs = &leafs
		addrs = append(addrs, &leafs.Addr)
	}
	if o.Gateway != nil {
		gateway := *o.Gateway
		o.Gateway = &gateway
		addrs = append(addrs, &gateway.Addr)
	}
	if o.Cluster != nil {
		cluster := *o.Cluster
		o.Cluster = &cluster
		addrs = append(addrs, &cluster.Addr)
	}
	for _, addr := range addrs {
		if *addr == "" {
			continue
		}
		ln, err := net.Listen("tcp", *addr)
		if err != nil {
			return fmt.Errorf("listening on %q: %w", *addr, err)
		}
		host, _, err := net.SplitHostPort(*addr)
		if err == nil {
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			*addr = net.JoinHostPort(host, port)
		}
		if err := ln.Close(); err != nil {
			return fmt.Errorf("trying address %q: %w", *addr, err)
		}
	}
	if o.Cluster != nil && len(o.Cluster.Routes) == 0 {
		host, port, err := net.SplitHostPort(o.Cluster.Addr)
		if err != nil {
			return fmt.Errorf("reading address %q: %w", o.Cluster.Addr, err)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		o.Cluster.Routes = []string{net.JoinHostPort(host, port)}
	}
	return nil
}
