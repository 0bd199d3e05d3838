package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Found is a program on this machine.
type Found struct {
	// Options to begin with. Dir is what the caller has to add.
	Options
	// Version is what the program says of itself, in one line.
	Version string
	// PID of the process that answers to a reload; 0: it is not running.
	PID int
	// User who runs it, by name or number.
	User string
	// Addrs are where it was seen speaking TLS, as host:port that can be dialed.
	Addrs []string
}

// Detect looks for the programs of all Kinds but files: those that run, one for each
// master process that is seen in /proc of Linux, and those that are only installed. It
// runs them to ask for their version, if nobody could have put another program in their
// place, and shakes hands at what they listen on. Whose files and sockets this process
// may not see, it finds less of. What it proposes is what the User of the program wants:
// show it to somebody before keys go there.
func Detect(ctx context.Context) []Found {
	var all []Found
	running := processes()
	for _, kind := range Kinds() {
		if kind == "files" {
			continue
		}
		installed := Found{Options: Options{Kind: kind, Binary: find(kind)}}
		some := false
		for _, p := range running {
			if p.name != kind || p.isWorker(running) {
				continue
			}
			f := installed
			f.running(ctx, p, running)
			f.asked(ctx)
			all, some = append(all, f), true
		}
		if !some && installed.Binary != kind { // otherwise it is nowhere
			installed.asked(ctx)
			all = append(all, installed)
		}
	}
	return all
}

// asked adds what the program and its configuration say.
func (f *Found) asked(ctx context.Context) {
	f.Version = version(ctx, f.Binary, f.Kind)
	if f.Kind == "haproxy" {
		f.Socket = adminSocket(f.Config)
	}
}

// running adds what can be seen of a process.
func (f *Found) running(ctx context.Context, p process, all []process) {
	f.PID = p.pid
	if exe, err := os.Readlink(p.path("exe")); err == nil && trusted(exe) {
		f.Binary = exe
	}
	f.User = p.uid
	if u, err := user.LookupId(p.uid); err == nil {
		f.User = u.Username
	}
	switch f.Kind {
	case "nginx":
		f.Config = p.argument("-c")
	case "haproxy":
		f.Config = p.argument("-f")
		if dir, err := os.Readlink(p.path("cwd")); err == nil && f.Config != "" && !filepath.IsAbs(f.Config) {
			f.Config = filepath.Join(dir, f.Config)
		}
		f.Reload.Socket, _, _ = strings.Cut(p.argument("-S"), ",")
		f.Reload.PIDFile = p.argument("-p")
	}
	if unit := p.unit(); unit != "" {
		f.Reload = Reload{Unit: unit}
	}
	f.Group = p.group()
	var addrs []string
	for _, q := range all {
		if q.parent == p.pid && q.name == p.name && f.Kind == "nginx" && f.Group == "" {
			f.Group = q.group() // its workers read the files of its map
		}
		if q.pid == p.pid || q.parent == p.pid {
			addrs = append(addrs, q.listens()...)
		}
	}
	slices.Sort(addrs)
	for _, addr := range slices.Compact(addrs) {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		// A server without a certificate for no name still answers in TLS.
		if _, err := Probe(limited, addr, ""); err == nil || strings.Contains(err.Error(), "remote error: tls") {
			f.Addrs = append(f.Addrs, addr)
		}
		cancel()
	}
}

// trusted reports whether nobody but root and who runs this process can replace a file.
func trusted(path string) bool {
	for {
		info, err := os.Stat(path)
		if err != nil {
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
			return false
		}
		// In a sticky directory such as /tmp, owners alone replace what is theirs.
		if info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
			return false
		}
		if parent := filepath.Dir(path); parent != path {
			path = parent
			continue
		}
		return true
	}
}

// versionFlag is how programs are asked what they are.
func versionFlag(kind string) string {
	return map[string]string{"nginx": "-v", "haproxy": "-v", "envoy": "--version"}[kind]
}

func version(ctx context.Context, binary, kind string) string {
	flag := versionFlag(kind)
	if flag == "" {
		flag = "version"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, flag)
	cmd.WaitDelay = time.Second
	out, _ := cmd.CombinedOutput() // of a program of this machine; none is no version
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	return string(line[:min(len(line), 200)])
}

// maxConfig bounds what is read of a program's configuration.
const maxConfig = 16 << 20

// adminSocket is the first socket of level admin in a configuration of HAProxy.
func adminSocket(config string) string {
	if config == "" {
		config = "/etc/haproxy/haproxy.cfg"
	}
	// Who runs HAProxy says what its configuration is. It could be a pipe.
	file, err := os.OpenFile(config, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	for lines := bufio.NewScanner(io.LimitReader(file, maxConfig)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 3 || f[0] != "stats" || f[1] != "socket" {
			continue
		}
		path := strings.TrimPrefix(f[2], "unix@")
		if i := slices.Index(f, "level"); filepath.IsAbs(path) && i > 0 && i+1 < len(f) && f[i+1] == "admin" {
			return path
		}
	}
	return ""
}

// A process is one of Linux.
type process struct {
	pid, parent int
	name        string
	args        []string
	uid, gid    string // effective
}

// isWorker reports whether the process is of a master that is among all.
func (p process) isWorker(all []process) bool {
	return slices.ContainsFunc(all, func(q process) bool { return q.pid == p.parent && q.name == p.name })
}

// processes are those of the programs. Those of containers
// are left out: their paths and addresses are not those of this machine. Elsewhere than
// on Linux there are none to be seen.
func processes() []process {
	var all []process
	const namespace = "/ns/pid"
	ours, _ := os.Readlink("/proc/self" + namespace) // empty elsewhere
	dirs, _ := filepath.Glob("/proc/[0-9]*")         // the pattern is well-formed
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// Whose namespace may not be seen is no container of ours.
		if theirs, err := os.Readlink(dir + namespace); err == nil && theirs != ours {
			continue
		}
		p := process{pid: pid}
		if p.status(); !slices.Contains(Kinds(), p.name) {
			continue
		}
		if args, err := os.ReadFile(dir + "/cmdline"); err == nil {
			p.args = strings.Split(string(args), "\x00")
		}
		all = append(all, p)
	}
	return all
}

// status reads who the process is. It is left empty if there is none any more.
func (p *process) status() {
	text, err := os.ReadFile(p.path("status"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		switch f := strings.Fields(line); {
		case len(f) == 2 && f[0] == "Name:":
			p.name = f[1]
		case len(f) > 1 && f[0] == "State:" && f[1] == "Z": // it ended
			p.name = ""
			return
		case len(f) == 2 && f[0] == "PPid:":
			p.parent, _ = strconv.Atoi(f[1]) // the kernel writes numbers
		case len(f) == 5 && f[0] == "Uid:":
			p.uid = f[2]
		case len(f) == 5 && f[0] == "Gid:":
			p.gid = f[2]
		}
	}
}

func (p process) path(name string) string { return "/proc/" + strconv.Itoa(p.pid) + "/" + name }

// argument is the value of a flag. nginx writes its arguments into its title, which is
// one argument then.
func (p process) argument(flag string) string {
	args := p.args
	if len(args) > 0 && strings.HasPrefix(args[0], "nginx: ") {
		args = strings.Fields(args[0])
	}
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// unit is the service of systemd that the process is of.
func (p process) unit() string {
	text, err := os.ReadFile(p.path("cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if name := filepath.Base(strings.TrimSpace(line)); strings.HasSuffix(name, ".service") && strings.Contains(line, "/system.slice/") {
			return name
		}
	}
	return ""
}

// group is that of a process that is not root and could not read what only root may.
func (p process) group() string {
	if p.uid == "0" || p.uid == strconv.Itoa(os.Geteuid()) {
		return ""
	}
	g, err := user.LookupGroupId(p.gid)
	if err != nil {
		return ""
	}
	return g.Name
}

// listens are the TCP addresses that the process accepts connections at, by which it can
// be dialed.
func (p process) listens() []string {
	sockets := map[string]bool{}
	links, _ := filepath.Glob(p.path("fd/*")) // the pattern is well-formed
	for _, link := range links {
		target, _ := os.Readlink(link)
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			sockets[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var addrs []string
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		file, err := os.Open(p.path(table))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			f := strings.Fields(lines.Text())
			const listening = "0A"
			if len(f) < 10 || f[3] != listening || !sockets[f[9]] {
				continue
			}
			if addr, ok := kernelAddr(f[1]); ok {
				addrs = append(addrs, addr)
			}
		}
		file.Close()
	}
	return addrs
}

// kernelAddr reads an address as /proc/net/tcp has it: words of hexadecimal in the byte
// order of the machine, a colon, and the port. That of all interfaces is that of
// loopback to who dials.
func kernelAddr(text string) (string, bool) {
	digits, portDigits, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(portDigits, 16, 16)
	if err != nil || len(digits) != 8 && len(digits) != 32 {
		return "", false
	}
	raw := make([]byte, 0, 16)
	for i := 0; i < len(digits); i += 8 {
		word, err := strconv.ParseUint(digits[i:i+8], 16, 32)
		if err != nil {
			return "", false
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	ip, _ := netip.AddrFromSlice(raw)
	switch ip = ip.Unmap(); {
	case ip.IsUnspecified() && ip.Is4():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
	}
	return net.JoinHostPort(ip.String(), strconv.FormatUint(port, 10)), true
}
