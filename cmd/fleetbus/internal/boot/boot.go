// Package boot is what commands that make or run a node share: its settings, from a file,
// the environment and flags, and what this program can do.
package boot

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/config"
	"github.com/fleetbus/fleetbus/internal/home"
)

// Flags is what the commands that run or make a node have in common: the
// configuration, from a file, the environment and flags.
type Flags struct {
	App  *command.App
	file string
}

// Add gives cmd the flags of every key.
func (b *Flags) Add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.file, "config", "", "configuration file")
	config.AddFlags(cmd.Flags())
}

// Load reads the configuration. The data directory always has a value.
func (b *Flags) Load(cmd *cobra.Command) (*config.Config, fleetbus.Options, error) {
	dir := cmd.Flags().Lookup("data-dir").Value.String()
	if dir == "" {
		var err error
		if dir, err = b.App.DataDir(); err != nil {
			return nil, fleetbus.Options{}, err
		}
	}
	if err := keepConfig(dir); err != nil {
		return nil, fleetbus.Options{}, err
	}
	c, err := config.Load(config.Sources{
		File: b.Path(dir), Env: b.App.Env, Flags: cmd.Flags(),
	})
	if err != nil {
		return nil, fleetbus.Options{}, err
	}
	for _, w := range c.Warnings() {
		b.App.Hint("warning: %s", w)
	}
	o := c.Options()
	if o.Dir == "" {
		o.Dir = dir
	}
	return c, o, nil
}

// Path is that of the configuration file of the node in dir, empty if there is none.
func (b *Flags) Path(dir string) string {
	return config.FindFile(b.file, b.App.Getenv("FLEETBUS_CONFIG"), dir)
}

// ServeLine is the command that runs the node in dir.
func ServeLine(a *command.App, dir string) string {
	if usual, err := (&command.App{Env: a.Env}).DataDir(); err == nil && usual == dir {
		return "fleetbus serve"
	}
	return "fleetbus serve --data-dir " + dir
}

// Logger writes to stderr, in the configured form. level can be changed while it
// is used.
func (b *Flags) Logger(l config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(l.Level)
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(b.App.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(b.App.Stderr, opts))
}

// Standard are the settings of a node that nothing was said about: in the mesh,
// with a listener for NATS clients.
func Standard(o fleetbus.Options) fleetbus.Options {
	o.SourceTypes = SourceTypes()
	if (o.Mode == "" || o.Mode == fleetbus.Hub) && len(o.Listeners) == 0 {
		o.Listeners = []fleetbus.Listener{{Name: "nats", Addr: ":4222", Protocol: fleetbus.NATS()}}
	}
	return o
}

// Failure turns what fleetbus says of its options, and of the machine, into one
// failure; what says what was being done.
func Failure(what string, err error) error {
	if err == nil {
		return nil
	}
	code, fix := command.ExitFailed, ""
	var problem *fleetbus.OptionError
	switch {
	case errors.As(err, &problem):
		code, fix = command.ExitConfig, problem.Hint
	case errors.Is(err, fleetbus.ErrInUse):
		code, fix = command.ExitConflict, "stop that process, or choose another directory with --data-dir"
	case errors.Is(err, syscall.EADDRINUSE):
		code, fix = command.ExitConflict, "stop what listens there, or choose another port"
	case errors.Is(err, os.ErrPermission):
		code, fix = command.ExitDenied, "run it as the owner of the data directory, or choose another with --data-dir"
	case errors.Is(err, syscall.ENOSPC):
		fix = "free space there, or choose another directory with --data-dir"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrNotExist):
		fix = "choose another directory with --data-dir"
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return command.Fail(code, fix, "%s: %v", what, err)
}

// pendingConfig is the name of a configuration while its node is being made, so
// that one of an attempt that was cut off is neither lost nor read by the next.
const pendingConfig = ".fleetbus.yaml"

// Settle makes a node in dir with create, and writes what was given by flags and
// variables to fleetbus.yaml there, so that serve needs none of them.
func (b *Flags) Settle(c *config.Config, dir string, create func() error) error {
	if err := b.writeConfig(c, dir); err != nil {
		return err
	}
	if err := create(); err != nil {
		return err
	}
	return errors.Join(keepConfig(dir), home.Give(dir))
}

// keepConfig gives a pending configuration its name once its node is made.
func keepConfig(dir string) error {
	if there, err := fleetbus.Initialized(dir); err != nil || !there {
		return nil // whoever needs the node says why it cannot be read
	}
	return config.Adopt(filepath.Join(dir, pendingConfig), filepath.Join(dir, "fleetbus.yaml"))
}

// writeConfig writes the pending configuration, but none if a file is in use.
func (b *Flags) writeConfig(c *config.Config, dir string) error {
	path := filepath.Join(dir, pendingConfig)
	if file := b.Path(dir); file != "" && !config.Unset(file) {
		return nil
	}
	lists := map[string]bool{}
	for _, k := range config.Keys() {
		lists[k.Path] = k.Type == config.List
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	listeners := false
	for _, s := range c.Show() {
		if s.Source == "default" || s.Key == "data_dir" {
			continue
		}
		listeners = listeners || strings.HasPrefix(s.Key, "listeners.") || s.Key == "mode"
		value := scalar(s.Value)
		if lists[s.Key] {
			value = &yaml.Node{Kind: yaml.SequenceNode}
			for item := range strings.SplitSeq(s.Value, ",") {
				value.Content = append(value.Content, scalar(item))
			}
		}
		put(root, strings.Split(s.Key, "."), value)
	}
	if !listeners {
		put(root, []string{"listeners", "nats", "addr"}, scalar(":4222"))
	}
	var buf bytes.Buffer
	buf.WriteString("# This node's settings. All of them, with their defaults: fleetbus config defaults\n")
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	if err := (command.SecretFile{Path: path, Data: buf.Bytes(), Mode: 0o600}).Write(true); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// put sets the value at a path of nested mappings.
func put(n *yaml.Node, path []string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == path[0] {
			put(n.Content[i+1], path[1:], value)
			return
		}
	}
	if len(path) == 1 {
		n.Content = append(n.Content, scalar(path[0]), value)
		return
	}
	child := &yaml.Node{Kind: yaml.MappingNode}
	n.Content = append(n.Content, scalar(path[0]), child)
	put(child, path[1:], value)
}
