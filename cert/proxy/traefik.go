package proxy

import (
	"context"
	"encoding/json"
	"fmt"
)

// traefikFile is the dynamic configuration, in the directory that Traefik watches.
// JSON is YAML, too.
const traefikFile = "fleetbus.yaml"

// A traefik has all certificates in one file, PEM and all: Traefik watches the
// directory and not what symbolic links point to, and would read every version of a
// tree.
type traefik struct {
	Options
	tree *tree
}

func (t *traefik) Name() string { return t.Kind }

func (t *traefik) Close() error { return nil }

func (t *traefik) Snippet([]Pair) (string, error) {
	return fmt.Sprintf("# In the static configuration:\nproviders:\n  file:\n    directory: %s\n    watch: true\n", t.tree.dir), nil
}

func (t *traefik) text(pairs []Pair) ([]byte, error) {
	all, err := check(pairs)
	if err != nil {
		return nil, err
	}
	type pair struct {
		Chain string `json:"certFile"` // a path, or PEM
		Key   string `json:"keyFile"`
	}
	list := make([]pair, len(all))
	for i, c := range all {
		list[i] = pair{string(c.chain), string(c.key)}
	}
	if len(list) == 0 {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]any{"tls": map[string]any{"certificates": list}})
}

func (t *traefik) Plan(pairs []Pair) ([]Change, error) {
	text, err := t.text(pairs)
	if err != nil || t.tree.has(t.tree.path(traefikFile), text) {
		return nil, err
	}
	return []Change{{"write", t.tree.path(traefikFile)}}, nil
}

func (t *traefik) Install(_ context.Context, pairs []Pair) error {
	text, err := t.text(pairs)
	if err != nil {
		return err
	}
	if err := t.tree.open(); err != nil {
		return fmt.Errorf("preparing the directory for traefik: %w", err)
	}
	if err := t.tree.replace(traefikFile, text); err != nil {
		return fmt.Errorf("writing the certificates for traefik: %w", err)
	}
	return nil
}
