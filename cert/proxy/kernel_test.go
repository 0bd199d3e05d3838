package proxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

// kernel writes an address as the kernel does.
func kernel(addr netip.AddrPort) string {
	raw, text := addr.Addr().AsSlice(), ""
	for i := 0; i < len(raw); i += 4 {
		text += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(raw[i:]))
	}
	return fmt.Sprintf("%s:%04X", text, addr.Port())
}

func TestKernelAddr(t *testing.T) {
	for listens, dial := range map[string]string{
		"127.0.0.1:8080": "127.0.0.1:8080", "0.0.0.0:443": "127.0.0.1:443", "192.0.2.7:443": "192.0.2.7:443",
		"[::]:443": "[::1]:443", "[2001:db8::7]:443": "[2001:db8::7]:443", "[::ffff:192.0.2.7]:443": "192.0.2.7:443",
	} {
		if got, ok := kernelAddr(kernel(netip.MustParseAddrPort(listens))); !ok || got != dial {
			t.Errorf("who listens on %s is dialed at %s, want %s", listens, got, dial)
		}
	}
}

func FuzzKernelAddr(f *testing.F) {
	f.Add(kernel(netip.MustParseAddrPort("127.0.0.1:8080")))
	f.Add(kernel(netip.MustParseAddrPort("[2001:db8::7]:443")))
	f.Add(":")
	f.Fuzz(func(t *testing.T, text string) {
		if addr, ok := kernelAddr(text); ok {
			if _, err := netip.ParseAddrPort(addr); err != nil {
				t.Errorf("%q is read as %q: %v", text, addr, err)
			}
		}
	})
}
