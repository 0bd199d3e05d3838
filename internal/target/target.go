// Package target is a machine that serves certificates, as its directory says: who it
// is, what serves there, and how it comes to the bus.
package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/identity"
)

// The files in a target's directory.
const (
	settingsFile = "target.json"
	credsFile    = "target.creds"
	caFile       = "ca.pem"
	keyFile      = "target.key"
	snapshots    = "snapshots"
)

// Settings are what a target knows of itself, besides its secrets.
type Settings struct {
	Name string `json:"name"` // account/name
	// Servers are host:port of nodes.
	Servers []string `json:"servers"`
	// Signer is whose certificates it takes.
	Signer string `json:"signer"`
	// Proxy is the program that serves. Nil: this one does, or none.
	Proxy *proxy.Options `json:"proxy,omitempty"`
	// Addrs are where that program is seen serving. Empty: 127.0.0.1:443.
	Addrs []string `json:"addrs,omitempty"`
	// Default is the name whose certificate is for clients that ask for none of those
	// there are.
	Default string `json:"default,omitempty"`
}

// A Target is the one of a directory. Open makes one. It is not safe for concurrent use.
type Target struct {
	Settings
	// Dir is its directory.
	Dir string
	// Advice is what the operator has to put into the configuration of the proxy, once.
	Advice string

	account, name string
	proxy         proxy.Proxy // nil: there is none, or it has nothing to do yet
}

// Exists reports whether there is a target in a directory: its settings and, which come
// last, its credentials.
func Exists(dir string) bool {
	for _, path := range []string{filepath.Join(dir, settingsFile), CredsPath(dir)} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// Prepare makes the directory of a target. A proxy that runs as another user has to get
// through to its certificates, but sees nothing else: each secret is the owner's alone.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("making the directory of a target: %w", err)
	}
	return nil
}

// Write makes a target of a directory, but for its credentials, and opens it. ca is the
// PEM of the authority that nodes are verified with.
func Write(dir string, s Settings, ca string) (*Target, error) {
	text, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = write(filepath.Join(dir, caFile), []byte(ca))
	}
	if err == nil {
		err = write(filepath.Join(dir, settingsFile), append(text, '\n'))
	}
	if err != nil {
		return nil, fmt.Errorf("making a target: %w", err)
	}
	return Open(dir)
}

// Open opens the target of a directory. The error is fs.ErrNotExist if there is none.
func Open(dir string) (*Target, error) {
	t := &Target{Dir: dir}
	path := t.path(settingsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("opening a target: %w", err)
	}
	if err := json.Unmarshal(text, &t.Settings); err != nil {
		return nil, fmt.Errorf("opening a target: reading %q: %w", path, err)
	}
	if t.account, t.name, err = identity.SplitName(t.Name); err != nil {
		return nil, fmt.Errorf("opening a target: reading %q: %w", path, err)
	}
	if len(t.Servers) == 0 {
		return nil, fmt.Errorf("opening a target: reading %q: it has no servers", path)
	}
	if t.Proxy != nil {
		if t.Advice, err = proxy.Advise(*t.Proxy); err != nil {
			return nil, fmt.Errorf("opening a target: %w", err)
		}
	}
	return t, nil
}

// Close ends what runs in this process for the proxy, since Options.
func (t *Target) Close() error {
	if t.proxy == nil {
		return nil
	}
	return t.proxy.Close()
}

func (t *Target) path(name string) string { return filepath.Join(t.Dir, name) }

// Creds is the path of the target's credentials.
func (t *Target) Creds() string { return CredsPath(t.Dir) }

// CredsPath is where a target has its credentials.
func CredsPath(dir string) string { return filepath.Join(dir, credsFile) }

// CA is the path of the authority that nodes are verified with.
func (t *Target) CA() string { return t.path(caFile) }

// Enrolled reports whether the target is in a group, as far as it knows.
func (t *Target) Enrolled() bool {
	_, err := os.Stat(t.path(keyFile))
	return err == nil
}

// Key is what the target is in its groups by, since the last Enroll.
func (t *Target) Key() (*cert.TargetKey, error) { return cert.ReadTargetKey(t.path(keyFile)) }

// Options are those of the store of the target's certificates, which starts from what is
// in its directory. The proxy is at work from here on, until Close.
func (t *Target) Options(key *cert.TargetKey, log *slog.Logger) (cert.Options, error) {
	o := cert.Options{Key: key, Dir: t.path(snapshots), Default: t.Default, Logger: log}
	if t.Proxy == nil {
		return o, nil
	}
	var err error
	if t.proxy, err = proxy.New(*t.Proxy); err != nil {
		return o, err
	}
	o.Program = &program{t.proxy, t.Addrs}
	return o, nil
}

// A program puts the certificates of a store into a proxy, and looks at what it serves.
type program struct {
	proxy.Proxy
	addrs []string
}

// Install has the proxy serve pairs.
func (p *program) Install(ctx context.Context, pairs []cert.Pair) error {
	all := make([]proxy.Pair, 0, len(pairs))
	for _, c := range pairs {
		all = append(all, proxy.Pair{ID: c.ID, Chain: c.Chain, Key: c.Key})
	}
	return p.Proxy.Install(ctx, all)
}

// Probe is the serial number of what the proxy serves for a name, at each address: the
// first that differs from the others counts.
func (p *program) Probe(ctx context.Context, name string) (serial string, err error) {
	addrs := p.addrs
	if len(addrs) == 0 {
		addrs = []string{"127.0.0.1:443"}
	}
	for _, addr := range addrs {
		leaf, err := proxy.Probe(ctx, addr, name)
		if err != nil {
			return serial, fmt.Errorf("looking at what %s serves at %s: %w", p.Name(), addr, err)
		}
		if s := proxy.Serial(leaf); serial == "" {
			serial = s
		} else if s != serial {
			return s, nil
		}
	}
	return serial, nil
}

// write makes or replaces a file that its owner alone reads, at once.
func write(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".target-*") // its mode is 0600
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	defer os.Remove(file.Name()) // there is none once it has its name
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return nil
}

// forget removes a file, if it is there.
func forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
