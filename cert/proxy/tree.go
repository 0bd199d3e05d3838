package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The symbolic links of a tree.
const (
	current = "current" // what the program reads
	loaded  = "loaded"  // what it was last told to load
)

// versions of a tree have names that begin so, and so do links that are being made.
const (
	versionPrefix = "v-"
	partPrefix    = ".part-"
)

// grace is for how long a version stays that nothing points to any more. Processes of
// a program that is being reloaded read it until they end, and a version that is being
// written looks the same.
const grace = time.Minute

// A tree is a directory with versions of the files for a program, each in a directory
// of its own and never changed, and the link by which the program reads one of them.
// What is current changes in one rename for all certificates, so that nobody sees a
// chain of one generation and the key of another, and goes back by one rename.
type tree struct {
	dir string
	gid int // who may read besides the owner; -1: nobody
}

func newTree(dir, group string) (*tree, error) {
	t := &tree{dir, -1}
	if group == "" {
		return t, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return nil, fmt.Errorf("looking up who may read %s: %w", dir, err)
	}
	t.gid, err = strconv.Atoi(g.Gid)
	return t, err
}

func (t *tree) path(name string) string { return filepath.Join(t.dir, name) }

// open makes the directory, and removes what nothing points to.
func (t *tree) open() error {
	// Its names are no secret: what is in the versions is.
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < grace || e.Name() == t.target(current) || e.Name() == t.target(loaded) {
			continue
		}
		if strings.HasPrefix(e.Name(), versionPrefix) || strings.HasPrefix(e.Name(), partPrefix) {
			if err := os.RemoveAll(t.path(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// permit gives path its owner and mode: that of the group, if there is one.
func (t *tree) permit(path string, alone, group fs.FileMode) error {
	if t.gid < 0 {
		return os.Chmod(path, alone)
	}
	if err := os.Chown(path, -1, t.gid); err != nil {
		return err
	}
	return os.Chmod(path, group)
}

// permitted reports whether a file or directory is as permit leaves it.
func (t *tree) permitted(info fs.FileInfo, alone, group fs.FileMode) bool {
	if t.gid < 0 {
		return info.Mode().Perm() == alone
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Gid) == t.gid && info.Mode().Perm() == group
}

// target is the version that a link points to; "" if there is none.
func (t *tree) target(link string) string {
	name, err := os.Readlink(t.path(link))
	if err != nil || !strings.HasPrefix(name, versionPrefix) {
		return ""
	}
	if info, err := os.Stat(t.path(name)); err != nil || !info.IsDir() {
		return ""
	}
	return name
}

// point has a link point to a version, at once. "" removes it.
func (t *tree) point(link, version string) error {
	old := t.target(link)
	if version == "" {
		if err := os.Remove(t.path(link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else {
		part := t.path(partPrefix + link)
		if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(version, part); err != nil {
			return err
		}
		if err := os.Rename(part, t.path(link)); err != nil {
			return err
		}
	}
	if old != "" && old != version {
		now := time.Now()
		_ = os.Chtimes(t.path(old), now, now) // its grace begins; without, it ends early
	}
	return syncDir(t.dir)
}

// files are names and contents, given the path of the directory that they are in.
type files func(dir string) map[string][]byte

// holds reports whether a version has these files, all of them, readable by who may,
// and no others.
func (t *tree) holds(version string, f files) bool {
	if version == "" {
		return false
	}
	dir := t.path(version)
	want := f(dir)
	info, err := os.Lstat(dir)
	if err != nil || !t.permitted(info, 0o700, 0o750) {
		return false
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(want) {
		return false
	}
	for name, data := range want {
		if !t.has(filepath.Join(dir, name), data) {
			return false
		}
	}
	return true
}

// has reports whether a file has that content, and whom it is for.
func (t *tree) has(path string, data []byte) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || !t.permitted(info, 0o600, 0o640) || info.Size() != int64(len(data)) {
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, data)
}

// build writes a version. Files that are the same in the version before are the same
// files on disk, so that a renewal among thousands writes one.
func (t *tree) build(before string, f files) (version string, err error) {
	dir, err := os.MkdirTemp(t.dir, versionPrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if err := t.permit(dir, 0o700, 0o750); err != nil {
		return "", err
	}
	for name, data := range f(dir) {
		path, old := filepath.Join(dir, name), filepath.Join(t.path(before), name)
		if before != "" && t.has(old, data) && os.Link(old, path) == nil {
			continue
		}
		if err := t.write(path, data); err != nil {
			return "", err
		}
	}
	return filepath.Base(dir), syncDir(dir)
}

// write makes a file that is on the disk when it returns.
func (t *tree) write(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = t.permit(path, 0o600, 0o640)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// replace has a file, beside the versions, have that content, at once. The part has
// no suffix, by which a program could take it for one of its files.
func (t *tree) replace(name string, data []byte) error {
	if t.has(t.path(name), data) {
		return nil
	}
	part := t.path(partPrefix + strings.TrimSuffix(name, filepath.Ext(name)))
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.write(part, data); err != nil {
		return err
	}
	if err := os.Rename(part, t.path(name)); err != nil {
		return err
	}
	return syncDir(t.dir)
}

// maxPEM bounds what is read back of one file.
const maxPEM = 1 << 20

// pairs are the certificates that are in the files of a version whose names end with
// .pem. What is none is left out.
func (t *tree) pairs(version string) []certificate {
	if version == "" {
		return nil
	}
	var all []certificate
	paths, _ := filepath.Glob(filepath.Join(t.path(version), "*.pem")) // the pattern is well-formed
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(file, maxPEM))
		file.Close()
		if err != nil {
			continue
		}
		if c, err := (Pair{strings.TrimSuffix(filepath.Base(path), ".pem"), text, text}).checked(); err == nil {
			all = append(all, c)
		}
	}
	return all
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
