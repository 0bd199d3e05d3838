// Package home keeps the directory of a node.
package home

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/ledger"
)

// A Home is a node's directory.
//
//	node.json        which fleet, which node; written last, so that a directory
//	                 without it is no home
//	authority.json   the authority's secrets
//	box.nk           what the fleet's newer secrets are sealed to
//	genesis.snapshot the fleet's state when the node was made
//	ledger.snapshot  the fleet's state as it was followed
//	accounts/        account tokens, as the engine wants them
//	store/ local/    streams, of mesh and of local mode
//	admin/           the credentials that init made
//	offline/         the operator's keys that belong elsewhere
//	run.json         where the running server listens
//	loaded.json      which configuration it read
//	lock             held by the running server
type Home struct {
	// Dir is its path, and Node what node.json holds.
	Dir  string
	Node NodeFile
	lock *os.File
}

// NodeFile is what node.json holds.
type NodeFile struct {
	Fleet   string        `json:"fleet"`
	Cluster string        `json:"cluster"`
	Node    identity.Node `json:"node"`
	// Founder is the node that starts the cluster by itself.
	Founder bool `json:"founder"`
	// Peers are the routes that were known when the home was made; the ledger
	// knows better once it has been followed.
	Peers []string `json:"peers,omitempty"`
}

// Path is that of a file in the directory.
func (h *Home) Path(elem ...string) string {
	return filepath.Join(append([]string{h.Dir}, elem...)...)
}

// Initialized reports whether dir holds a node.
func Initialized(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, "node.json"))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, fmt.Errorf("looking for a node in %q: %w", dir, err)
}

// Lock makes dir, if it is missing, and takes its lock.
func Lock(dir string) (*Home, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing the data directory to others: %w", err)
	}
	h := &Home{Dir: dir}
	lock, err := os.OpenFile(h.Path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(h.Path("lock"))
		lock.Close()
		if len(holder) > 0 {
			return nil, fmt.Errorf("%w: %q, by process %s", ErrInUse, dir, holder)
		}
		return nil, fmt.Errorf("%w: %q", ErrInUse, dir)
	}
	if err := lock.Truncate(0); err == nil {
		fmt.Fprintf(lock, "%d", os.Getpid())
	}
	h.lock = lock
	return h, nil
}

// ErrInUse says that another process has the data directory.
var ErrInUse = errors.New("the data directory is in use")

// ErrInitialized says that a directory already holds a node.
var ErrInitialized = errors.New("the data directory already holds a node")

// Close lets go of the lock.
func (h *Home) Close() { h.lock.Close() }

// A ReadableError is a file of secrets that others can read.
type ReadableError struct {
	Path string
	Mode fs.FileMode
}

// Error names both.
func (e *ReadableError) Error() string {
	return fmt.Sprintf("%q can be read by others (mode %v)", e.Path, e.Mode)
}

// Load reads which node this is, and the authority. Secrets that others can read are
// a *ReadableError.
func (h *Home) Load() (*identity.Authority, error) {
	if err := ReadJSON(h.Path("node.json"), &h.Node); err != nil {
		return nil, err
	}
	path := h.Path("authority.json")
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, &ReadableError{path, info.Mode().Perm()}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	authority := new(identity.Authority)
	if err := authority.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("reading the authority %q: %w", path, err)
	}
	return authority, nil
}

// Write makes the directory a home. The file that says so comes last.
func (h *Home) Write(n NodeFile, authority *identity.Authority, snapshot []byte, sequence uint64) error {
	secrets, err := authority.Marshal()
	if err != nil {
		return fmt.Errorf("encoding the authority: %w", err)
	}
	if err := WriteFile(h.Path("authority.json"), secrets, 0o600); err != nil {
		return err
	}
	if err := ledger.WriteSnapshot(h.Path("genesis.snapshot"), sequence, snapshot); err != nil {
		return err
	}
	h.Node = n
	return WriteJSON(h.Path("node.json"), n)
}

// Running is what run.json holds while a server runs.
type Running struct {
	PID       int               `json:"pid"`
	Node      string            `json:"node"`
	Fleet     string            `json:"fleet"`
	Started   time.Time         `json:"started"`
	Listeners map[string]string `json:"listeners"`
	Cluster   string            `json:"cluster,omitempty"`
	Monitor   string            `json:"monitor,omitempty"`
}

// ReadJSON reads a file of JSON into a value.
func ReadJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	return nil
}

// WriteJSON writes a value as WriteFile does, for its owner alone.
func WriteJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %q: %w", path, err)
	}
	return WriteFile(path, append(data, '\n'), 0o600)
}

// WriteFile writes a file so that after a crash it is there whole, or not at all.
func WriteFile(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("writing %q: %w", path, err)
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
