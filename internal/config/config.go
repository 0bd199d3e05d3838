// Package config turns a file, variables of the environment and flags into
// fleetbus.Options, or into one list of all that is wrong with them.
//
// A flag beats a variable, a variable beats the file, the file beats the
// default; setting the same key twice is never an error. All of them are written
// into one tree whose nodes remember where they come from, which is then decoded
// once, so that every problem has its place.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus"
)

// Sources are what a configuration is read from. The zero value is a
// configuration of defaults.
type Sources struct {
	// File is the path of a YAML file; empty for none.
	File string
	// Env are variables as os.Environ returns them.
	Env []string
	// Flags are parsed flags; those that AddFlags made and that were given count.
	Flags *pflag.FlagSet
}

// A Config is a valid configuration. Get one from Load. It does not change and
// is safe for concurrent use.
type Config struct {
	target   *target
	root     *node
	warnings []string
}

// ManagesCertificates reports whether this node manages the certificates of accounts.
func (c *Config) ManagesCertificates() bool { return c.target.manage }

// Log says how to write the log.
type Log struct {
	// Level is the least severe level that is written.
	Level slog.Level
	// Format is "text" or "json".
	Format string

	level string
}

// A Setting is the value of one key and where it comes from.
type Setting struct {
	// Key is the path of the key.
	Key string `json:"key"`
	// Value is its effective value; a list is comma-separated, a secret masked, and
	// a default that depends on the machine is given in words and parentheses.
	Value string `json:"value"`
	// Source is where the value was set: a place in the file, a variable, a flag,
	// or "default".
	Source string `json:"source"`
}

// Load reads the sources and checks all of them, including the files that they
// name. Its error is a *ProblemList.
func Load(sources Sources) (*Config, error) {
	root := &node{kind: mapping}
	var problems []Problem
	broken := false
	if sources.File != "" {
		data, err := readConfig(sources.File)
		if err != nil {
			problems = []Problem{{Place: Place{Source: sources.File}, Text: reason(err), Fix: "name a file that can be read, or none"}}
			broken = true
		} else {
			root, problems, broken = parse(sources.File, data)
		}
	}
	return load(root, problems, broken, sources)
}

// load completes the tree of a file with the other sources and decodes it.
func load(root *node, problems []Problem, broken bool, sources Sources) (*Config, error) {
	warnings := putEnv(root, sources.Env)
	putFlags(root, sources.Flags)
	t, found := decode(root, broken)
	problems = append(problems, found...)
	problems = append(problems, checkFiles(root, &t.options, &t.hub, &t.queues)...)
	if len(problems) > 0 {
		list := &ProblemList{problems}
		list.sort()
		return nil, list
	}
	if err := t.log.Level.UnmarshalText([]byte(t.log.level)); err != nil {
		return nil, &ProblemList{[]Problem{{Place: root.at("log.level"), Key: "log.level", Text: err.Error()}}}
	}
	return &Config{target: t, root: root, warnings: warnings}, nil
}

// readConfig reads a file up to one byte more than parse accepts.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	return data, nil
}

// reason is what err says besides the path, which the reader sees anyway.
func reason(err error) string {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return "cannot be read: " + pathErr.Err.Error()
	}
	return "cannot be read: " + err.Error()
}

// Options are the settings of the server, with everything unset left to its
// default. Services has the links to a hub. Other services, and Logger, are for the
// caller to add; slices are shared by all calls and are not to be changed.
func (c *Config) Options() fleetbus.Options { return c.target.options }

// Log says how to write the log.
func (c *Config) Log() Log { return c.target.log }

// Warnings are sentences about what was ignored, such as unknown variables.
func (c *Config) Warnings() []string { return c.warnings }

// Show lists every key with its effective value and source.
func (c *Config) Show() []Setting {
	var listeners []string
	for _, l := range c.target.options.Listeners {
		listeners = append(listeners, l.Name)
	}
	var out []Setting
	for _, k := range settings(listeners) {
		s := Setting{Key: k.Path, Value: k.Default, Source: byDefault}
		if s.Value == "" {
			s.Value = "(" + k.Otherwise + ")"
		}
		if n := c.root.find(strings.Split(k.Path, ".")); n != nil && n.kind != null {
			s.Value, s.Source = k.shown(strings.Join(n.texts(), ",")), n.place.String()
		}
		out = append(out, s)
	}
	return out
}

// find returns the node at path, nil if there is none.
func (n *node) find(path []string) *node {
	for _, name := range path {
		if n = n.field(name); n == nil {
			return nil
		}
	}
	return n
}

// systemFile is where a package manager puts the configuration.
const systemFile = "/etc/fleetbus/fleetbus.yaml"

// FindFile returns the configuration file to load: the explicit one, else env,
// the value of FLEETBUS_CONFIG, else /etc/fleetbus/fleetbus.yaml or fleetbus.yaml
// in dataDir if they exist, else "". An explicit file need not exist: Load says
// so. Empty arguments are skipped.
func FindFile(explicit, env, dataDir string) string {
	switch {
	case explicit != "":
		return explicit
	case env != "":
		return env
	}
	candidates := []string{systemFile}
	if dataDir != "" {
		candidates = append(candidates, filepath.Join(dataDir, "fleetbus.yaml"))
	}
	for _, path := range candidates {
		// A file that cannot be looked at is chosen too, so that Load reports it.
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
	return ""
}
