package iface

import (
	"errors"
	"net"
	"testing"
)

func TestResolve(t *testing.T) {
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	lo := ""
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 && i.Flags&net.FlagUp != 0 {
			lo = i.Name
		}
	}
	if lo == "" {
		t.Skip("there is no loopback interface")
	}
	if got, err := Resolve("%" + lo + ":5671"); err != nil || got != "127.0.0.1:5671" {
		t.Errorf("of %s it makes %q, %v", lo, got, err)
	}
	for _, same := range []string{":5671", "10.0.0.1:5671", "[::1]:5671", "nonsense"} {
		if got, err := Resolve(same); err != nil || got != same {
			t.Errorf("of %s it makes %q, %v", same, got, err)
		}
	}
	if _, err := Resolve("%no-such:5671"); !errors.Is(err, ErrNoAddress) {
		t.Errorf("of an interface that is not there it says: %v", err)
	}
	if _, err := Resolve("%" + lo); err == nil {
		t.Error("an address without a port is one")
	}
}

func TestFirst(t *testing.T) {
	of := func(all ...string) (list []net.Addr) {
		for _, a := range all {
			ip, n, err := net.ParseCIDR(a)
			if err != nil {
				t.Fatal(err)
			}
			n.IP = ip
			list = append(list, n)
		}
		return list
	}
	for want, list := range map[string][]net.Addr{
		"10.0.0.1":   of("fe80::1/64", "fd00::1/64", "10.0.0.1/24", "10.0.1.1/24"),
		"fd00::1":    of("fe80::1/64", "fd00::1/64"),
		"invalid IP": of("fe80::1/64", "169.254.0.1/16"),
	} {
		if got, _ := first(list); got.String() != want {
			t.Errorf("of %v it takes %v", list, got)
		}
	}
}
