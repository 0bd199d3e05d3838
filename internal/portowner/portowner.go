// Package portowner says which program listens on a port, for the error that
// tells an operator that the port is in use.
package portowner

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Of returns the process that listens on addr, such as "pid 123 (nginx)". It
// returns "" if there is none, if addr is not host:port, if the process belongs
// to somebody whose processes may not be looked at, or where there is no Linux
// /proc. It is safe for concurrent use.
func Of(addr string) string { return of("/proc", addr) }

func of(proc, addr string) string {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ""
	}
	ip, _ := netip.ParseAddr(host) // a name, or none, stands for every address
	sockets := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		listening(filepath.Join(proc, "net", table), netip.AddrPortFrom(ip, uint16(port)), sockets)
	}
	if len(sockets) == 0 {
		return ""
	}
	return holder(proc, sockets)
}

// listening adds to sockets the links, as they stand in /proc/<pid>/fd, of the
// sockets in table that listen where want would.
func listening(table string, want netip.AddrPort, sockets map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	// The fields that count: 1 is the local address, 3 the state, 9 the inode
	// (proc_pid_net(5)).
	const stateListen = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != stateListen {
			continue
		}
		if local, ok := parseAddr(fields[1]); ok && collide(local, want) {
			sockets["socket:["+fields[9]+"]"] = true
		}
	}
}

// parseAddr reads an address such as 0100007F:1F90: 32-bit words in the byte
// order of the machine, and the port.
func parseAddr(s string) (netip.AddrPort, bool) {
	words, digits, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(words)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(digits, 16, 16)
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), ok && err == nil
}

// collide reports whether nobody can listen on both.
func collide(a, b netip.AddrPort) bool {
	every := func(ip netip.Addr) bool { return !ip.IsValid() || ip.IsUnspecified() }
	return a.Port() == b.Port() && (every(a.Addr()) || every(b.Addr()) || a.Addr() == b.Addr().Unmap())
}

// holder finds the process that has one of sockets open.
func holder(proc string, sockets map[string]bool) string {
	processes, err := os.ReadDir(proc)
	if err != nil {
		return ""
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name())
		open, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // somebody else's, or gone
		}
		for _, fd := range open {
			if link, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil && sockets[link] {
				return describe(pid, filepath.Join(dir, "comm"))
			}
		}
	}
	return ""
}

// describe names a process. A program chooses its own name, so that a terminal
// must not be shown what is in it unseen.
func describe(pid int, comm string) string {
	raw, err := os.ReadFile(comm)
	name := strings.TrimSuffix(string(raw), "\n")
	if err != nil || name == "" {
		return fmt.Sprintf("pid %d", pid)
	}
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
	return fmt.Sprintf("pid %d (%s)", pid, name)
}
