package localcheck

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/human"
	"github.com/fleetbus/fleetbus/internal/iface"
	"github.com/fleetbus/fleetbus/internal/portowner"
)

// A Machine is this one, and the node that is on it, or will be. What is empty is not
// looked at.
type Machine struct {
	// Dir is the data directory.
	Dir string
	// Node is the node's name, for results that go elsewhere.
	Node string
	// Advertise is the name or address under which others reach it.
	Advertise string
	// Ports are the addresses that it listens at, or will.
	Ports []Port
	// MaxFile, MaxMemory and Reserve are the store's limits, in bytes.
	MaxFile, MaxMemory, Reserve int64
	// Connections are the most that it allows.
	Connections int
	// Cert and Key are files of its own certificate.
	Cert, Key string
	// Server is the process that runs the node; 0 if none does.
	Server int
	// Env has the variables of the environment.
	Env []string

	now    func() time.Time
	addrs  func() ([]net.Addr, error)
	lookup func(ctx context.Context, host string) ([]string, error)
	synced func() (bool, error)
	statfs func(dir string, into *syscall.Statfs_t) error
}

// A Port is an address to listen at, and what for.
type Port struct{ Name, Addr string }

// look is what has been found so far.
type look struct {
	m   Machine
	all []doctor.Result
}

// Look looks at everything that a machine can see of itself. It needs no server, and ends
// soon after ctx is done.
func (m Machine) Look(ctx context.Context) []doctor.Result {
	if m.now == nil {
		m.now = time.Now
	}
	if m.lookup == nil {
		m.lookup = net.DefaultResolver.LookupHost
	}
	if m.addrs == nil {
		m.addrs = net.InterfaceAddrs
	}
	if m.synced == nil {
		m.synced = clockSynced
	}
	if m.statfs == nil {
		m.statfs = syscall.Statfs
	}
	l := &look{m: m}
	for _, check := range []func(context.Context){l.dataDir, l.disk, l.files, l.memory, l.clock, l.ports, l.everywhere, l.names, l.proxy, l.secrets, l.certificate} {
		check(ctx)
	}
	for i := range l.all {
		l.all[i].Node = m.Node
	}
	return l.all
}

// found adds what a check found.
func (l *look) found(code string, state doctor.State, subject, fix, format string, args ...any) {
	c, _ := explain.Of(code)
	l.all = append(l.all, doctor.Result{Group: c.Group, Check: c.Check, State: state, Code: code, Subject: subject, Evidence: fmt.Sprintf(format, args...), Fix: fix})
}

// ok adds that a check found nothing.
func (l *look) ok(check, subject, format string, args ...any) {
	l.all = append(l.all, doctor.Result{Group: explain.GroupOf(check), Check: check, State: doctor.OK, Subject: subject, Evidence: fmt.Sprintf(format, args...)})
}

// plain adds that a check came to a state that is no finding of its own.
func (l *look) plain(check string, state doctor.State, code, subject, format string, args ...any) {
	l.ok(check, subject, format, args...)
	r := &l.all[len(l.all)-1]
	r.State, r.Code = state, code
}

// take adds what the older checks found.
func (l *look) take(findings []doctor.Finding) (n int) {
	for _, f := range findings {
		l.found(f.Code, doctor.StateOf(f.Severity), f.Subject, f.Fix, "%s", f.Text)
	}
	return len(findings)
}

// dataDir looks at the directory itself.
func (l *look) dataDir(context.Context) {
	dir := l.m.Dir
	findings := checkDir(dir)
	if _, err := os.Stat(dir); err != nil {
		l.take(findings)
		return
	}
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT): // told of below
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != ownerOf(dir):
		l.plain("data-dir", doctor.Unknown, "NOT-MEASURED", dir, "whether it can be written to is not for this user to see: run it as the user that the server runs as")
	case err != nil:
		l.found("DATA-DIR-READONLY", doctor.Fail, dir, "chown -R fleetbus "+dir+", or mount it for writing", "no file can be made there: %v", err)
		return
	}
	if l.take(findings) == 0 && err == nil {
		l.ok("data-dir", dir, "a file was made there and removed; nobody else may enter")
	}
}

func ownerOf(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(s.Uid)
}

// existing is the nearest directory above that is there, for what is not made yet.
func existing(dir string) string {
	for dir != "" {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	return dir
}

// fileSystems are those that tell what they are. The others are local disks.
func fileSystems() map[int64]string {
	return map[int64]string{
		0x6969: "NFS", 0xff534d42: "SMB", 0xfe534d42: "SMB", 0x01021997: "9P", 0x00c36400: "Ceph", 0x65735546: "FUSE", 0x5346414f: "AFS",
		0x01021994: "tmpfs", 0x858458f6: "ramfs",
		0xef53: "ext4", 0x58465342: "XFS", 0x9123683e: "btrfs", 0x2fc12fc1: "ZFS", 0x794c7630: "overlay", 0xf2f52010: "F2FS", 0xca451a4e: "bcachefs",
	}
}

// disk looks at the file system of the data directory.
func (l *look) disk(context.Context) {
	dir := existing(l.m.Dir)
	var s syscall.Statfs_t
	if err := l.m.statfs(dir, &s); err != nil {
		for _, check := range []string{"disk-space", "inodes", "file-system"} {
			l.plain(check, doctor.Unknown, "NOT-MEASURED", dir, "the file system does not tell: %v", err)
		}
		return
	}
	block := max(blockSize(&s), 1)
	free, size := int64(s.Bavail)*block, int64(s.Blocks)*block
	if l.take(diskFindings(dir, free, l.m.Reserve)) == 0 {
		l.ok("disk-space", dir, "%s of %s are free", human.Size(free), human.Size(size))
	}
	switch {
	case s.Files == 0: // it has no fixed number of them
		l.ok("inodes", dir, "the file system has no fixed number of inodes")
	case s.Ffree < s.Files/20:
		l.found("INODES-LOW", doctor.Warn, dir, "remove small files there: du --inodes -xs "+dir+"/*", "%d of %d inodes are free", s.Ffree, s.Files)
	default:
		l.ok("inodes", dir, "%d of %d inodes are free", s.Ffree, s.Files)
	}
	name := fileSystems()[int64(s.Type)&0xffffffff]
	if !typesKnown {
		name = "?"
	}
	switch name {
	case "?":
		l.plain("file-system", doctor.Unknown, "NOT-MEASURED", dir, "which file systems are shared or in memory is known on Linux only")
	case "NFS", "SMB", "9P", "Ceph", "FUSE", "AFS":
		l.found("FILE-SYSTEM-SHARED", doctor.Warn, dir, "move the data directory to a local disk: --data-dir DIR", "the data directory is on %s", name)
	case "tmpfs", "ramfs":
		l.found("FILE-SYSTEM-VOLATILE", doctor.Warn, dir, "move the data directory to a disk: --data-dir DIR", "the data directory is in memory (%s): it is gone when the machine restarts", name)
	case "":
		l.ok("file-system", dir, "type %#x", s.Type)
	default:
		l.ok("file-system", dir, "%s", name)
	}
	if l.m.MaxFile > size {
		l.found("STORE-OVERSTATED", doctor.Warn, dir, "lower store.max_file, or remove it", "store.max_file is %s, and the file system has %s", human.Size(l.m.MaxFile), human.Size(size))
	}
}

// files looks at how many files the server may open.
func (l *look) files(context.Context) {
	most, of := uint64(0), "this command"
	if l.m.Server != 0 {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(l.m.Server), "limits"))
		for line := range strings.SplitSeq(string(data), "\n") {
			if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
				if fields := strings.Fields(rest); len(fields) > 1 {
					of = "the server"
					if most, err = strconv.ParseUint(fields[1], 10, 64); fields[1] == "unlimited" {
						most, err = 1<<62, nil
					}
				}
			}
		}
		if err != nil {
			most = 0
		}
	}
	if most == 0 {
		var r syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
			l.plain("file-limit", doctor.Unknown, "NOT-MEASURED", "files", "the limit of open files is not known: %v", err)
			return
		}
		most = r.Max
	}
	l.judgeFiles(most, of)
}

// spare are files besides those of connections: streams, listeners, logs.
const spare = 1000

func (l *look) judgeFiles(most uint64, of string) {
	if need := uint64(max(l.m.Connections, 0) + spare); most < need {
		l.found("FILES-LIMITED", doctor.Warn, "files", fmt.Sprintf("LimitNOFILE=%d in the unit, or lower limits.connections", need),
			"%s may open %d files, and %d connections are allowed", of, most, l.m.Connections)
		return
	}
	l.ok("file-limit", "files", "%s may open %d files", of, most)
}

// memory holds the store's limit against what there is.
func (l *look) memory(context.Context) {
	limit, from := memoryLimit("/proc", "/sys/fs/cgroup")
	if limit == 0 {
		l.plain("memory", doctor.Unknown, "NOT-MEASURED", "memory", "the system does not tell how much memory there is")
		return
	}
	if l.m.MaxMemory > limit {
		l.found("MEMORY-OVERSTATED", doctor.Warn, "memory", "lower store.max_memory, or raise the limit of the container",
			"streams in memory may take %s, and %s is %s", human.Size(l.m.MaxMemory), from, human.Size(limit))
		return
	}
	l.ok("memory", "memory", "%s is %s", from, human.Size(limit))
}

// memoryLimit is the least that bounds this process, and what it is.
func memoryLimit(proc, cgroup string) (limit int64, from string) {
	data, _ := os.ReadFile(filepath.Join(proc, "meminfo"))
	for line := range strings.SplitSeq(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			limit, from = kb<<10, "the machine's memory"
		}
	}
	own, _ := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	for line := range strings.SplitSeq(strings.TrimSpace(string(own)), "\n") {
		_, path, ok := strings.Cut(line, "::")
		for ok && path != "" {
			data, err := os.ReadFile(filepath.Join(cgroup, path, "memory.max"))
			if n, bad := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && bad == nil && (limit == 0 || n < limit) {
				limit, from = n, "the limit of its control group"
			}
			if path == "/" {
				break
			}
			path = filepath.Dir(path)
		}
	}
	return limit, from
}

// clock asks whether something keeps it right, and holds it against the authority.
func (l *look) clock(context.Context) {
	n := 0
	for _, f := range checkClock(l.m.Dir, l.m.now()) {
		n += l.take([]doctor.Finding{f})
	}
	if _, err := os.Stat(filepath.Join(l.m.Dir, "admin", "ca.pem")); err == nil && n == 0 {
		l.ok("authority", l.m.Dir, "the authority of the fleet is valid now")
	}
	switch synced, err := l.m.synced(); {
	case err != nil:
		l.plain("clock", doctor.Unknown, "NOT-MEASURED", "clock", "the system does not tell whether the clock is synchronized: %v", err)
	case !synced:
		l.found("CLOCK-UNSYNCED", doctor.Warn, "clock", "timedatectl set-ntp true", "the system says that its clock is not synchronized")
	default:
		l.ok("clock", "clock", "the system says that its clock is synchronized")
	}
}

// ports tries every address that the node is to listen at.
func (l *look) ports(ctx context.Context) {
	for _, p := range l.m.Ports {
		subject := p.Name + " " + p.Addr
		if _, port, err := net.SplitHostPort(p.Addr); err != nil || port == "0" {
			continue
		}
		addr, err := iface.Resolve(p.Addr)
		if err != nil {
			l.found("PORT-DENIED", doctor.Fail, subject, "name an interface that has an address: "+p.Name+".addr", "it cannot be listened at: %v", err)
			continue
		}
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		owner := ""
		if err == nil {
			ln.Close()
		} else if errors.Is(err, syscall.EADDRINUSE) {
			owner = portowner.Of(addr)
		}
		switch {
		case err == nil && l.m.Server != 0:
			l.found("PORT-UNUSED", doctor.Fail, subject, "look into the log of the server for why that listener ended, and restart it", "the server runs, and nobody listens there")
		case err == nil:
			l.ok("ports", subject, "it is free")
		case errors.Is(err, syscall.EADDRINUSE) && l.m.Server != 0 && strings.HasPrefix(owner, fmt.Sprintf("pid %d ", l.m.Server)):
			l.ok("ports", subject, "the server of this node has it")
		case errors.Is(err, syscall.EADDRINUSE) && owner == "" && l.m.Server != 0:
			l.plain("ports", doctor.Unknown, "NOT-MEASURED", subject, "somebody has it, and this user may not see who: run it as root")
		case errors.Is(err, syscall.EADDRINUSE):
			if owner == "" {
				owner = "a process of another user"
			}
			l.found("PORT-HELD", doctor.Fail, subject, "stop that program, or choose another port: "+p.Name+".addr", "%s has it", owner)
		default:
			l.found("PORT-DENIED", doctor.Fail, subject, "use an address of this machine, and a port above 1023: "+p.Name+".addr", "it cannot be listened at: %v", errors.Unwrap(err))
		}
	}
}

// everywhere tells of a listener of AMQP on all interfaces of a machine that has several:
// the security guides want it on the management network alone.
func (l *look) everywhere(context.Context) {
	for _, p := range l.m.Ports {
		name := strings.TrimPrefix(p.Name, "listeners.")
		if name != "amqp" && !strings.HasPrefix(name, "amqp-") {
			continue
		}
		host, _, err := net.SplitHostPort(p.Addr)
		if err != nil {
			continue
		}
		subject := p.Name + " " + p.Addr
		if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
			l.ok("exposure", subject, "it is at one address alone")
			continue
		}
		mine, err := l.m.addrs()
		if err != nil {
			l.plain("exposure", doctor.Unknown, "NOT-MEASURED", subject, "the addresses of this machine are not known: %v", err)
			continue
		}
		if all := networks(mine); len(all) > 1 {
			l.found("AMQP-EVERYWHERE", doctor.Warn, subject, "--listeners-amqp-addr ADDRESS:5671, with that of the management network", "it is on all interfaces, which are in %s", strings.Join(all, ", "))
			continue
		}
		l.ok("exposure", subject, "it is on all interfaces, and the machine is in one network")
	}
}

// networks are those that addresses are in, without loopback and those of one link; of a
// machine with both kinds of IP, those of IPv4.
func networks(addrs []net.Addr) (all []string) {
	var six []string
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || prefix.Addr().IsLoopback() || prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		text := prefix.Masked().String()
		switch {
		case prefix.Addr().Unmap().Is4() && !slices.Contains(all, text):
			all = append(all, text)
		case !prefix.Addr().Unmap().Is4() && !slices.Contains(six, text):
			six = append(six, text)
		}
	}
	if len(all) == 0 {
		return six
	}
	return all
}

// names looks the advertised name up.
func (l *look) names(ctx context.Context) {
	host := l.m.Advertise
	if host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err == nil {
		l.ok("names", host, "an address, not a name")
		return
	}
	addrs, err := l.m.lookup(ctx, host)
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown) && unknown.IsNotFound:
		l.found("NAME-UNKNOWN", doctor.Warn, host, "add it to DNS, or set advertise to an address", "the advertised name has no address: %v", err)
		return
	case err != nil:
		l.plain("names", doctor.Unknown, "NOT-ANSWERED", host, "the name could not be looked up: %v", err)
		return
	}
	mine, err := net.InterfaceAddrs()
	here := func(addr string) bool {
		ip, bad := netip.ParseAddr(addr)
		return bad == nil && (ip.IsLoopback() || slices.ContainsFunc(mine, func(a net.Addr) bool {
			prefix, bad := netip.ParsePrefix(a.String())
			return bad == nil && prefix.Addr().Unmap() == ip.Unmap()
		}))
	}
	if err == nil && !slices.ContainsFunc(addrs, here) {
		l.found("NAME-ELSEWHERE", doctor.OK, host, "", "it leads to %s, which is not of this machine: right behind address translation", strings.Join(addrs, ", "))
		return
	}
	l.ok("names", host, "it leads to %s", strings.Join(addrs, ", "))
}

// proxy asks whether a proxy of the environment would take requests to this node.
func (l *look) proxy(context.Context) {
	get := func(names ...string) string {
		for _, name := range names {
			for _, line := range l.m.Env {
				if v, ok := strings.CutPrefix(line, name+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
	plain, secure := get("HTTP_PROXY", "http_proxy"), get("HTTPS_PROXY", "https_proxy")
	switch {
	case plain == "" && secure == "":
		l.ok("proxy", "environment", "no proxy is set")
	case secure == "" || l.m.Advertise == "" || direct(l.m.Advertise, get("NO_PROXY", "no_proxy")):
		l.ok("proxy", "environment", "a proxy is set, and not for HTTPS to the advertised name")
	default:
		l.found("PROXY-OWN-NAME", doctor.Warn, l.m.Advertise, "add "+l.m.Advertise+" to NO_PROXY", "requests over HTTPS to the advertised name go by way of a proxy")
	}
}

// direct reports whether requests to a host go by no proxy, as Go programs read NO_PROXY.
func direct(host, exceptions string) bool {
	host = strings.ToLower(host)
	ip, err := netip.ParseAddr(host)
	if host == "localhost" || err == nil && ip.IsLoopback() {
		return true
	}
	for one := range strings.SplitSeq(strings.ToLower(exceptions), ",") {
		one = strings.TrimSpace(one)
		if name, _, err := net.SplitHostPort(one); err == nil {
			one = name
		}
		if prefix, bad := netip.ParsePrefix(one); bad == nil && err == nil && prefix.Contains(ip) {
			return true
		}
		suffix := strings.TrimPrefix(strings.TrimPrefix(one, "*"), ".")
		if one == "*" || one != "" && host == one || suffix != "" && strings.HasSuffix(host, "."+suffix) {
			return true
		}
	}
	return false
}

// secrets looks at the modes of files.
func (l *look) secrets(context.Context) {
	if _, err := os.Stat(l.m.Dir); err != nil {
		return
	}
	found, n := checkSecrets(l.m.Dir)
	if l.m.Key != "" {
		n++
		if info, err := os.Stat(l.m.Key); err == nil && info.Mode().Perm()&0o007 != 0 {
			found = append(found, openSecret(l.m.Key, info.Mode()))
		}
	}
	open := l.keyDirs()
	if l.take(found) == 0 && !open {
		l.ok("key-files", l.m.Dir, "%s that nobody else may read", human.Count(n, "file"))
	}
}

// keyDirs tells of a directory above the node's own key in which others may put another
// file in its place.
func (l *look) keyDirs() (open bool) {
	if l.m.Key == "" {
		return false
	}
	path, err := filepath.Abs(l.m.Key)
	if err != nil {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			l.found("KEY-DIR-OPEN", doctor.Fail, dir, "chmod go-w "+dir, "others may put another file in the place of %s (mode %04o)", filepath.Base(path), info.Mode().Perm())
			open = true
		}
		if dir == filepath.Dir(dir) {
			return open
		}
	}
}

// soon is how long before its end a certificate of one's own files is a finding.
const soon = 7 * 24 * time.Hour

// certificate looks at the files of the node's own certificate.
func (l *look) certificate(context.Context) {
	if l.m.Cert == "" {
		l.plain("certificate", doctor.Skipped, "", "files", "no certificate of its own is set: the fleet's authority makes them")
		return
	}
	subject, n := l.m.Cert, len(l.all)
	pair, err := tls.LoadX509KeyPair(l.m.Cert, l.m.Key)
	if err != nil {
		l.found("CERTIFICATE-UNREADABLE", doctor.Fail, subject, "correct tls.cert and tls.key", "%v", err)
		return
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		l.found("CERTIFICATE-UNREADABLE", doctor.Fail, subject, "correct tls.cert and tls.key", "%v", err)
		return
	}
	now := l.m.now()
	left := leaf.NotAfter.Sub(now)
	switch {
	case left <= 0:
		l.found("CERTIFICATE-EXPIRED", doctor.Fail, subject, "put a newer certificate there", "it ended at %s", human.Time(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		l.found("CERTIFICATE-EXPIRED", doctor.Fail, subject, "look at the clock of this machine", "it begins at %s", human.Time(leaf.NotBefore))
	case left < min(soon, leaf.NotAfter.Sub(leaf.NotBefore)/4):
		l.found("CERTIFICATE-ENDS", doctor.Warn, subject, "put a newer certificate there", "it ends at %s, in %s", human.Time(leaf.NotAfter), human.Duration(left))
	}
	if l.m.Advertise != "" {
		if err := leaf.VerifyHostname(l.m.Advertise); err != nil {
			names := slices.Clone(leaf.DNSNames)
			for _, ip := range leaf.IPAddresses {
				names = append(names, ip.String())
			}
			l.found("CERTIFICATE-NAME", doctor.Fail, subject, "issue it for "+l.m.Advertise+", or set advertise", "it is for %s, and the node advertises %s", strings.Join(names, ", "), l.m.Advertise)
		}
	}
	for i := range l.all[n:] {
		l.all[n+i].Because = []string{"CLOCK-BEHIND", "AUTHORITY-EXPIRED"}
	}
	if len(l.all) == n {
		l.ok("certificate", subject, "it ends at %s, and has the advertised name", human.Time(leaf.NotAfter))
	}
}
