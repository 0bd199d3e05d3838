// Package loopback gives tests addresses that no other test is given.
package loopback

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Addr returns a free TCP address of this machine. It is the test's alone until the
// test ends, while it listens there and while it does not.
func Addr(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Port(t)))
}

// Port returns the port of such an address.
func Port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		// Below the ports that those get who ask for any, and that connections come from.
		port := 12_000 + rand.IntN(20_000)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		// The same port of UDP, for which nobody has a use, is the mark for all
		// who ask here, in other processes too.
		mark, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			t.Cleanup(func() { mark.Close() })
			return port
		}
		mark.Close()
	}
	t.Fatal("there is no free port")
	return 0
}
