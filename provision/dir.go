package provision

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of a machine, in the directory of its identity; only their owner reads
// them. PendingFile is there while a request goes on.
const (
	CredsFile   = "machine.creds"
	certFile    = "machine.crt"
	keyFile     = "machine.key"
	caFile      = "ca.pem"
	PendingFile = "request.json"
)

// A Dir is the directory of a machine's identity.
type Dir string

// Path is that of a file in it.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// Settled reports whether there is an identity.
func (d Dir) Settled() bool {
	_, err := os.Stat(d.Path(CredsFile))
	return err == nil
}

// Keys are those of a request that was cut off, or new ones, which are kept before
// anything is asked.
func (d Dir) Keys() (*Keys, error) {
	data, err := os.ReadFile(d.Path(PendingFile))
	if err == nil {
		return ParseKeys(data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	k, err := NewKeys()
	if err != nil {
		return nil, err
	}
	if data, err = k.Marshal(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	return k, d.write(PendingFile, data)
}

// Settle writes an identity, once try says that it is good, and forgets the request.
func (d Dir) Settle(id *Identity, try func() error) error {
	err := errors.Join(d.write(caFile, id.CA), d.write(certFile, id.Cert), d.write(keyFile, id.Key))
	if err == nil {
		err = try()
	}
	if err == nil {
		err = d.write(CredsFile, id.Creds) // by which it is Settled
	}
	if err == nil {
		err = os.Remove(d.Path(PendingFile))
	}
	return err
}

// write puts data into a file, all of it or none.
func (d Dir) write(name string, data []byte) error {
	f, err := os.CreateTemp(string(d), ".fleetbus-*") // of mode 0600
	if err != nil {
		return fmt.Errorf("writing %q: %w", d.Path(name), err)
	}
	defer os.Remove(f.Name()) // once it has its name there is nothing to remove
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), d.Path(name))
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", d.Path(name), err)
	}
	return nil
}
