// Package iface finds addresses by the names of network interfaces, for what shall be open on
// one network of a machine whatever its address is.
package iface

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// ErrNoAddress is that an interface has none, or is not there: a network that is not up yet
// may give it one.
var ErrNoAddress = errors.New("it has no address")

// Resolve returns host:port for %INTERFACE:PORT, with the interface's first address: of version 4,
// else one of version 6 that is good beyond the link. What does not begin with % is returned
// as it is.
func Resolve(addr string) (string, error) {
	if !strings.HasPrefix(addr, "%") {
		return addr, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("reading address %q: %w", addr, err)
	}
	ifc, err := net.InterfaceByName(host[1:])
	if err != nil {
		return "", fmt.Errorf("looking for interface %q: %w", host[1:], errors.Join(ErrNoAddress, err))
	}
	list, err := ifc.Addrs()
	if err != nil {
		return "", fmt.Errorf("reading the addresses of interface %q: %w", host[1:], err)
	}
	ip, ok := first(list)
	if !ok {
		return "", fmt.Errorf("looking for an address of interface %q: %w", host[1:], ErrNoAddress)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// first is the address to use of those that an interface has.
func first(list []net.Addr) (netip.Addr, bool) {
	var all []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Addr())
		}
	}
	i := slices.IndexFunc(all, netip.Addr.Is4)
	switch {
	case i >= 0:
		return all[i], true
	case len(all) > 0:
		return all[0], true
	}
	return netip.Addr{}, false
}
