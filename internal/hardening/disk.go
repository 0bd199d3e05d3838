package hardening

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The most that is read.
const (
	maxFiles = 20_000
	maxFile  = 8 << 20
	maxAll   = 512 << 20 // of all files together
	maxDepth = 16
)

// A file is one that was found.
type file struct {
	// Path is as it is shown, Real where it is.
	Path, Real string
	// Abs is its path on the machine that it is of, as far as that is known.
	Abs string
	// top is the directory that was given, above which directories are not looked at.
	top  string
	Data []byte
	Mode fs.FileMode
	UID  int
	// Link is what it is a symbolic link to.
	Link string
	// used is set when it was judged.
	used bool
	// gone is a symbolic link that leads nowhere here.
	gone bool
	// asked is set if it was given by itself, and not only its directory.
	asked bool
}

// disk has the files that were found.
type disk struct {
	root  string
	files []*file
	size  int // of files, in bytes
	full  bool
}

func newDisk(root string) *disk {
	if root != "" {
		root = filepath.Clean(root)
	}
	return &disk{root: root}
}

// below is where a path of the machine is on this one.
func (d *disk) below(path string) string {
	if d.root == "" || path == d.root || strings.HasPrefix(path, d.root+string(filepath.Separator)) {
		return path
	}
	return filepath.Join(d.root, path)
}

// add reads a path that was given: a file, or all of a directory.
func (d *disk) add(a *audit, path string) {
	real := path
	if _, err := os.Lstat(path); d.root != "" && filepath.IsAbs(path) || err != nil {
		real = d.below(path)
	}
	info, err := os.Stat(real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.missing(path, err)
		return
	case err != nil:
		a.unread(path, 0, "it cannot be looked at: %v", cause(err))
		return
	case !info.IsDir():
		d.read(a, real, filepath.Dir(real), true)
		return
	}
	d.walk(a, real, real, 0)
}

func (d *disk) walk(a *audit, dir, top string, depth int) {
	if depth > maxDepth {
		a.unread(dir, 0, "directories are more than %d deep", maxDepth)
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		a.unread(dir, 0, "the directory cannot be read: %v", cause(err))
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			d.walk(a, path, top, depth+1)
			continue
		}
		if len(d.files) >= maxFiles {
			if !d.full {
				a.unread(dir, 0, "there are more than %d files", maxFiles)
			}
			d.full = true
			return
		}
		if interesting(path) {
			d.read(a, path, top, false)
		}
	}
}

// interesting reports whether a file of a directory may be one that is judged.
func interesting(path string) bool {
	name := strings.ToLower(filepath.Base(path))
	if strings.HasSuffix(name, "~") || strings.HasSuffix(name, ".rpmsave") || strings.HasSuffix(name, ".rpmnew") || strings.HasSuffix(name, ".dpkg-dist") || strings.HasSuffix(name, ".orig") || strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, ".j2") || strings.HasSuffix(name, ".dpkg-old") || strings.HasSuffix(name, ".bak") || strings.HasSuffix(name, ".sample") || strings.HasSuffix(name, ".example") {
		return false
	}
	switch name {
	case ".erlang.cookie", "enabled_plugins", "config", "passwd", "iptables", "ip6tables", "qpidd", "qpidd.acl", "rules.v4", "rules.v6", "rabbitmq", "rabbitmq-env":
		return true
	}
	for _, end := range []string{".conf", ".config", ".json", ".ini", ".service", ".nft", ".rules", ".pem", ".crt", ".cer", ".key", ".acl", ".cookie", ".cnf", ".sasldb", ".iptables"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return strings.Contains(name, ".conf.") || strings.Contains(name, "iptables") || strings.Contains(path, "apparmor.d") || strings.Contains(name, "acl")
}

// read reads one file; only a failure on one that was asked for is a finding at once.
func (d *disk) read(a *audit, path, top string, asked bool) *file {
	if f := d.at(path); f != nil {
		return f
	}
	f := &file{Path: path, Real: path, top: top, UID: -1, Abs: d.abs(path), asked: asked}
	link, err := os.Lstat(path)
	if err == nil && link.Mode()&fs.ModeSymlink != 0 {
		f.Link, _ = os.Readlink(path)
		// A link of a copy leads to where it would lead on its machine.
		if filepath.IsAbs(f.Link) && d.rootOf(path) != "" {
			f.Real = filepath.Join(d.rootOf(path), f.Link)
		}
	}
	h, err := d.open(f)
	if err != nil && f.Link != "" && errors.Is(err, fs.ErrNotExist) {
		f.gone = true
		return f
	}
	if err != nil {
		if asked || !errors.Is(err, fs.ErrNotExist) {
			a.unread(path, 0, "it cannot be read: %v", cause(err))
		}
		return nil
	}
	defer h.Close()
	info, err := h.Stat()
	if err != nil || !info.Mode().IsRegular() {
		if asked {
			a.unread(path, 0, "it is no file")
		}
		return nil
	}
	f.Mode = info.Mode()
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		f.UID = int(s.Uid)
	}
	f.Data, err = io.ReadAll(io.LimitReader(h, maxFile+1))
	switch {
	case err != nil:
	case len(f.Data) > maxFile:
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	case d.size+len(f.Data) > maxAll:
		err = fmt.Errorf("all files have more than %d bytes together", maxAll)
	}
	if err != nil {
		a.unread(path, 0, "it cannot be read: %v", cause(err))
		return nil
	}
	d.files = append(d.files, f)
	d.size += len(f.Data)
	return f
}

// errNoFile says that something is neither a file nor a directory, such as a pipe, at which whoever
// opens it waits for a writer.
var errNoFile = errors.New("it is no file")

// open opens a file. No link of a copy leads out of the copy.
func (d *disk) open(f *file) (*os.File, error) {
	root := d.rootOf(f.Path)
	if root == "" {
		if info, err := os.Stat(f.Real); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
			return nil, errNoFile
		}
		return os.Open(f.Real)
	}
	top, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	path, err := filepath.Rel(root, f.Real)
	if err != nil {
		return nil, err
	}
	if info, err := top.Stat(path); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil, errNoFile
	}
	return top.Open(path)
}

func (d *disk) at(path string) *file {
	i := slices.IndexFunc(d.files, func(f *file) bool { return f.Path == path })
	if i < 0 {
		return nil
	}
	return d.files[i]
}

// rootOf is the root of the machine that a file is of: what was said, or what stands
// before /etc, /usr, /lib or /var in its path; empty for this machine's own.
func (d *disk) rootOf(path string) string {
	if d.root != "" {
		return d.root
	}
	slashed := filepath.ToSlash(path)
	for _, top := range []string{"/etc/", "/var/lib/", "/usr/lib/", "/lib/systemd/"} {
		if i := strings.Index(slashed, top); i > 0 {
			return path[:i]
		}
	}
	for _, top := range []string{"etc/", "var/lib/"} {
		if strings.HasPrefix(slashed, top) {
			return "."
		}
	}
	return ""
}

// abs is the path on the machine that a file is of.
func (d *disk) abs(path string) string {
	root := d.rootOf(path)
	if rest := strings.TrimPrefix(path, root); root != "" && rest != path {
		return rest
	}
	if root == "." {
		return "/" + path
	}
	return path
}

// find is a file that another one names: below the root, beside those that were given, or
// on this machine if that is where they are.
func (d *disk) find(a *audit, named string, by *file) *file {
	if f := d.look(a, named, by); f != nil && !f.gone {
		return f
	}
	return nil
}

// look is find, and has links that lead nowhere, too.
func (d *disk) look(a *audit, named string, by *file) *file {
	named = strings.TrimSpace(named)
	if named == "" {
		return nil
	}
	root, path := d.rootOf(by.Path), ""
	if !filepath.IsAbs(named) {
		path = filepath.Join(filepath.Dir(by.Path), named)
		if inside, err := filepath.Rel(root, path); root != "" && (err != nil || !filepath.IsLocal(inside)) {
			path = "" // no file of a copy has one read that is not
		}
	} else if root != "" {
		path = filepath.Join(root, named)
	}
	if path != "" {
		if _, err := os.Lstat(path); err == nil {
			return d.read(a, path, by.top, true)
		}
	}
	// A copy need not have the directories of the machine: the file with the most of the
	// path in common is it, if there is only one.
	best, most, tie := (*file)(nil), 0, false
	for _, f := range d.files {
		n := common(f.Path, named)
		switch {
		case n > most:
			best, most, tie = f, n, false
		case n == most && n > 0:
			tie = true
		}
	}
	if best != nil && !tie {
		return best
	}
	if _, err := os.Lstat(named); err == nil && filepath.IsAbs(named) && root == "" {
		return d.read(a, named, filepath.Dir(named), true)
	}
	return nil
}

// common counts the names that two paths have in common at their ends.
func common(x, y string) (n int) {
	a, b := strings.Split(filepath.ToSlash(x), "/"), strings.Split(filepath.ToSlash(y), "/")
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] && a[len(a)-1-n] != "" {
		n++
	}
	return n
}

// neighbors reads, for files that are in the places where they are on a machine, those
// beside them that are judged too: units, packet filters, the cookie.
func (d *disk) neighbors(a *audit) {
	roots := map[string]bool{}
	for _, f := range d.files {
		if root := d.rootOf(f.Path); root != "" {
			roots[root] = true
		} else if strings.HasPrefix(f.Path, "/etc/") {
			roots["/"] = true
		}
	}
	paths := []string{"etc/selinux/config", "etc/nftables.conf", "etc/sysconfig/nftables.conf", "etc/iptables/rules.v4", "etc/sysconfig/iptables", "etc/passwd"}
	patterns := []string{}
	switch a.kind {
	case RabbitMQ:
		paths = append(paths, "var/lib/rabbitmq/.erlang.cookie")
		patterns = append(patterns, "{}/rabbitmq-server.service", "{}/rabbitmq-server.service.d/*.conf")
	case Qpid:
		paths = append(paths, "etc/sasl2/qpidd.conf", "etc/qpid/qpidd.conf", "etc/qpidd.conf", "var/lib/qpidd/qpidd.sasldb")
		patterns = append(patterns, "{}/qpidd.service", "{}/qpidd.service.d/*.conf")
	}
	for root := range roots {
		all := []string{}
		for _, p := range paths {
			all = append(all, filepath.Join(root, p))
		}
		for _, p := range patterns {
			for _, dir := range []string{"usr/lib/systemd/system", "lib/systemd/system", "etc/systemd/system"} {
				// The pattern is well-formed.
				found, _ := filepath.Glob(filepath.Join(root, strings.ReplaceAll(p, "{}", dir)))
				all = append(all, found...)
			}
		}
		for _, p := range all {
			if _, err := os.Stat(p); err == nil && d.at(p) == nil && !d.same(p) {
				d.read(a, p, root, false)
			}
		}
	}
}

// same reports whether a file was read by another path: /lib is a link to /usr/lib on many
// machines.
func (d *disk) same(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(d.files, func(f *file) bool {
		other, err := os.Stat(f.Path)
		return err == nil && os.SameFile(info, other)
	})
}

// user is the number of a user on the machine that a file is of, by its passwd.
func (d *disk) user(name string, by *file) (uid int, ok bool) {
	root := d.rootOf(by.Path)
	for _, f := range d.files {
		if filepath.Base(f.Path) != "passwd" || !strings.HasSuffix(f.Abs, "/etc/passwd") || d.rootOf(f.Path) != root {
			continue
		}
		for line := range strings.SplitSeq(string(f.Data), "\n") {
			fields := strings.Split(line, ":")
			if len(fields) > 2 && fields[0] == name {
				if _, err := fmt.Sscan(fields[2], &uid); err == nil {
					return uid, true
				}
			}
		}
	}
	return 0, false
}

// modes judges the mode of a file, its owner, and the directories above it. more are the
// bits of the mode that it may not have.
func (a *audit) modes(rule string, f *file, what string, more fs.FileMode, verdict Verdict) bool {
	f.used = true
	before := len(a.r.Findings)
	at := place{file: f.Path, text: fmt.Sprintf("mode %04o", f.Mode.Perm())}
	if bad := f.Mode.Perm() & more; bad != 0 {
		v := verdict
		if bad&0o022 != 0 {
			v = Fail
		}
		a.add(rule, v, at, fmt.Sprintf("chmod %04o %s", f.Mode.Perm()&^more, f.Abs), "%s may be used by others: the mode is %04o", what, f.Mode.Perm())
	}
	a.owner(rule, f, what)
	for dir := filepath.Dir(f.Path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			a.fail(rule, place{file: dir, text: fmt.Sprintf("mode %04o", info.Mode().Perm())}, "chmod go-w "+dir,
				"others may put another file in the place of %s: the mode of the directory is %04o", filepath.Base(f.Path), info.Mode().Perm())
		}
		if dir == f.top || dir == filepath.Dir(dir) || !strings.HasPrefix(dir, f.top) && f.top != "" {
			break
		}
	}
	return len(a.r.Findings) == before
}

// owner judges who owns a file, where that says something: not in a copy that somebody
// made who is not root, and not on a machine whose users are not known.
func (a *audit) owner(rule string, f *file, what string) {
	if f.UID <= 0 || f.UID == os.Geteuid() {
		return
	}
	known := false
	for _, name := range a.daemon {
		uid, ok := a.disk.user(name, f)
		if ok && uid == f.UID {
			return
		}
		known = known || ok
	}
	if known {
		a.fail(rule, place{file: f.Path, text: fmt.Sprintf("uid %d", f.UID)}, fmt.Sprintf("chown %s %s", a.daemon[0], f.Abs),
			"%s is of the user with number %d, neither root nor %s", what, f.UID, strings.Join(a.daemon, " nor "))
	}
}

// permissionBits are bits of a mode.
func permissionBits(bits uint32) fs.FileMode { return fs.FileMode(bits) }
