package hardening

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// splitAddress takes an address apart as RabbitMQ does: a port alone, address:port, and
// addresses of IPv6 without brackets, too. host is empty if there is none, which is all
// interfaces.
func splitAddress(text string) (host string, port int, ok bool) {
	text = strings.TrimSpace(text)
	if n, err := strconv.Atoi(text); err == nil {
		return "", n, n > 0 && n < 65536
	}
	i := strings.LastIndex(text, ":")
	if i < 0 {
		return text, 0, false
	}
	n, err := strconv.Atoi(text[i+1:])
	if err != nil || n < 1 || n > 65535 {
		return text, 0, false
	}
	return strings.Trim(text[:i], "[]"), n, true
}

// everywhere reports whether an address is all interfaces.
func everywhere(host string) bool {
	host = strings.Trim(host, "[]")
	if host == "" || host == "*" || strings.EqualFold(host, "any") || strings.EqualFold(host, "undefined") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsUnspecified()
}

// local reports whether an address is loopback.
func local(host string) bool {
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") || host == "lo" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// listenerOn judges where a TLS listener is.
func (a *audit) listenerOn(host, port string, at place, fix string) {
	shown := net.JoinHostPort(host, port)
	switch ip, err := netip.ParseAddr(strings.Trim(host, "[]")); {
	case everywhere(host):
		a.fail("2", at, fix, "the TLS listener on port %s is on all interfaces", port)
	case local(host):
		a.add("2", Pass, at, "", "the TLS listener %s is on loopback", shown)
	case err != nil && len(a.o.Networks) > 0:
		a.unknown("2", at, "write an address", "whether %s is within the management network is not to be seen from a name", shown)
	case err != nil:
		a.add("2", Pass, at, "", "the TLS listener is at %s alone", shown)
	case len(a.o.Networks) == 0:
		a.add("2", Pass, at, "", "the TLS listener is at %s alone; --management-network CIDR also says whether that is in it", shown)
	default:
		for _, n := range a.o.Networks {
			if n.Contains(ip.WithZone("").Unmap()) {
				a.add("2", Pass, at, "", "the TLS listener is at %s, within %s", shown, n)
				return
			}
		}
		a.fail("2", at, fix, "the TLS listener is at %s, which is in no management network", shown)
	}
}

// yes reports whether a setting is on, as people write it.
func yes(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "yes", "true", "1", "on":
		return true
	}
	return false
}

// before reports whether a version is known and before another one.
func before(version string, major, minor int) (is, known bool) {
	parts := strings.SplitN(strings.TrimPrefix(strings.TrimSpace(version), "v"), ".", 3)
	if len(parts) == 1 {
		parts = append(parts, "0")
	}
	x, err1 := strconv.Atoi(parts[0])
	y, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return false, false
	}
	return x < major || x == major && y < minor, true
}
