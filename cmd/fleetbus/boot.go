package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/config"
)

// boot is what the commands that run or make a node have in common: the
// configuration, from a file, the environment and flags.
type boot struct {
	a    *app
	file string
}

// add gives cmd the flags of every key.
func (b *boot) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.file, "config", "", "configuration file")
	config.AddFlags(cmd.Flags())
}

// load reads the configuration. The data directory always has a value.
func (b *boot) load(cmd *cobra.Command) (*config.Config, fleetbus.Options, error) {
	dir := cmd.Flags().Lookup("data-dir").Value.String()
	if dir == "" {
		var err error
		if dir, err = b.a.dataDir(); err != nil {
			return nil, fleetbus.Options{}, err
		}
	}
	if err := keepConfig(dir); err != nil {
		return nil, fleetbus.Options{}, err
	}
	c, err := config.Load(config.Sources{
		File: config.FindFile(b.file, b.a.getenv("FLEETBUS_CONFIG"), dir), Env: b.a.env, Flags: cmd.Flags(),
	})
	if err != nil {
		return nil, fleetbus.Options{}, err
	}
	for _, w := range c.Warnings() {
		b.a.hint("warning: %s", w)
	}
	o := c.Options()
	if o.Dir == "" {
		o.Dir = dir
	}
	return c, o, nil
}

// serveLine is the command that runs the node in dir.
func (a *app) serveLine(dir string) string {
	if usual, err := (&app{env: a.env}).dataDir(); err == nil && usual == dir {
		return "fleetbus serve"
	}
	return "fleetbus serve --data-dir " + dir
}

// logger writes to stderr, in the configured form. level can be changed while it
// is used.
func (b *boot) logger(l config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(l.Level)
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(b.a.stderr, opts))
	}
	return slog.New(slog.NewTextHandler(b.a.stderr, opts))
}

// standard are the settings of a node that nothing was said about: in the mesh,
// with a listener for NATS clients.
func standard(o fleetbus.Options) fleetbus.Options {
	o.SourceTypes = sourceTypes()
	if (o.Mode == "" || o.Mode == fleetbus.Hub) && len(o.Listeners) == 0 {
		o.Listeners = []fleetbus.Listener{{Name: "nats", Addr: ":4222", Protocol: fleetbus.NATS()}}
	}
	return o
}

// pendingConfig is the name of a configuration while its node is being made, so
// that one of an attempt that was cut off is neither lost nor read by the next.
const pendingConfig = ".fleetbus.yaml"

// settle makes a node in dir with create, and writes what was given by flags and
// variables to fleetbus.yaml there, so that serve needs none of them.
func (b *boot) settle(c *config.Config, dir string, create func() error) error {
	if err := b.writeConfig(c, dir); err != nil {
		return err
	}
	if err := create(); err != nil {
		return err
	}
	return keepConfig(dir)
}

// keepConfig gives a pending configuration its name once its node is made.
func keepConfig(dir string) error {
	if there, err := fleetbus.Initialized(dir); err != nil || !there {
		return nil // whoever needs the node says why it cannot be read
	}
	err := os.Rename(filepath.Join(dir, pendingConfig), filepath.Join(dir, "fleetbus.yaml"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// writeConfig writes the pending configuration, but none if a file is in use.
func (b *boot) writeConfig(c *config.Config, dir string) error {
	path := filepath.Join(dir, pendingConfig)
	if config.FindFile(b.file, b.a.getenv("FLEETBUS_CONFIG"), dir) != "" {
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
	if err := (secretFile{path, buf.Bytes(), 0o600}).write(true); err != nil {
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
