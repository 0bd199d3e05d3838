package main

import (
	"bytes"
	"fmt"
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
	if o.Mode == "" && len(o.Listeners) == 0 {
		o.Listeners = []fleetbus.Listener{{Name: "nats", Addr: ":4222", Protocol: fleetbus.NATS()}}
	}
	return o
}

// writeConfig writes what was given by flags and variables to fleetbus.yaml in
// the data directory, so that serve needs none of them. It leaves a file alone
// that is there, and writes none if another is in use.
func (b *boot) writeConfig(c *config.Config, dir string) error {
	path := filepath.Join(dir, "fleetbus.yaml")
	if config.FindFile(b.file, b.a.getenv("FLEETBUS_CONFIG"), dir) != "" {
		return nil
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	listeners := false
	for _, s := range c.Show() {
		if s.Source == "default" || s.Key == "data_dir" {
			continue
		}
		listeners = listeners || strings.HasPrefix(s.Key, "listeners.") || s.Key == "mode"
		put(root, strings.Split(s.Key, "."), s.Value)
	}
	if !listeners {
		put(root, []string{"listeners", "nats", "addr"}, ":4222")
	}
	var buf bytes.Buffer
	buf.WriteString("# This node's settings. All of them, with their defaults: fleetbus config defaults\n")
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// put sets the value at a path of nested mappings.
func put(n *yaml.Node, path []string, value string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == path[0] {
			put(n.Content[i+1], path[1:], value)
			return
		}
	}
	child := &yaml.Node{Kind: yaml.MappingNode}
	if len(path) == 1 {
		child = &yaml.Node{Kind: yaml.ScalarNode, Value: value}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: path[0]}, child)
	if len(path) > 1 {
		put(child, path[1:], value)
	}
}
