// Package rules has the rules of a provisioner in a file, in YAML or JSON, which may
// change.
package rules

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/fleetbus/fleetbus/provision"
)

// look is how often the file is looked at.
const look = 2 * time.Second

// A File is a file of rules. Open one.
type File struct {
	// Live are the rules in it.
	Live provision.Live

	path string
	log  *slog.Logger
	sum  [sha256.Size]byte
}

// Open reads the rules at path. log is told when they change, and when they cannot be
// taken.
func Open(path string, log *slog.Logger) (*File, error) {
	f := &File{path: path, log: log}
	_, err := f.read()
	return f, err
}

// read takes the rules, and reports whether they have changed.
func (f *File) read() (changed bool, err error) {
	data, err := os.ReadFile(f.path)
	if err != nil {
		return false, fmt.Errorf("reading the rules: %w", err)
	}
	sum := sha256.Sum256(data)
	if sum == f.sum {
		return false, nil
	}
	f.sum = sum
	// JSON is YAML, too.
	var tree any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		return false, fmt.Errorf("reading the rules %q: %w", f.path, err)
	}
	plain, err := json.Marshal(tree)
	if err != nil {
		return false, fmt.Errorf("reading the rules %q: %w", f.path, err)
	}
	parsed, err := provision.ParseRules(bytes.NewReader(plain))
	if err != nil {
		return false, fmt.Errorf("reading the rules %q: %w", f.path, err)
	}
	f.Live.Set(parsed)
	return true, nil
}

// Follow reads the file when it changes, until ctx is done. Bad rules are logged, and
// the last good ones hold.
func (f *File) Follow(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := f.read(); {
		case err != nil:
			f.log.Error("the rules are not taken: the last good ones hold", "error", err)
		case changed:
			f.log.Info("the rules have changed")
		}
	}
}
