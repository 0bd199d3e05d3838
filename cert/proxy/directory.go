package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// A directory is a program that reads a tree of files. What is particular to one is in
// the functions.
type directory struct {
	Options
	tree *tree
	// files are those of certificates.
	files func([]certificate) files
	// test is a command that fails if the program would not take what is current.
	test []string
	// load has the program take it, which served before, and says in a plan how.
	load   func(ctx context.Context, before, now []certificate) error
	loads  func(before, now []certificate) []Change
	advise func([]certificate) string
}

// pemLayout is what programs read that take both from one file.
const pemLayout = "{id}.pem"

func newDirectory(o Options, t *tree) (Proxy, error) {
	d := &directory{Options: o, tree: t}
	d.files, d.load, d.loads, d.test = d.layout, d.reload, d.reloads, o.Test
	switch o.Kind {
	case "nginx":
		d.nginx()
	case "haproxy":
		d.haproxy()
	case "envoy":
		d.files, d.advise = envoyFiles, d.envoySnippet
	case "files":
		d.advise = d.filesSnippet
	}
	if d.Layout == (Layout{}) {
		d.Layout.PEM = pemLayout
	}
	for _, name := range []string{d.Layout.PEM, d.Layout.Chain, d.Layout.Key} {
		if name != "" && (!strings.Contains(name, "{id}") || !validID.MatchString(strings.ReplaceAll(name, "{id}", "id"))) {
			return nil, fmt.Errorf("%q is no name for the files of certificates: it has to be one of a file, with {id} in it", name)
		}
	}
	return d, nil
}

func (d *directory) Name() string { return d.Kind }

func (d *directory) Close() error { return nil }

func (d *directory) Snippet(pairs []Pair) (string, error) {
	all, err := check(pairs)
	if err != nil {
		return "", err
	}
	return d.advise(all), nil
}

// layout are the files that the Layout names.
func (d *directory) layout(all []certificate) files {
	return func(string) map[string][]byte {
		out := map[string][]byte{}
		for _, c := range all {
			for name, data := range map[string][]byte{d.Layout.PEM: c.pem(), d.Layout.Chain: c.chain, d.Layout.Key: c.key} {
				if name != "" {
					out[strings.ReplaceAll(name, "{id}", c.id)] = data
				}
			}
		}
		return out
	}
}

// have is what was last loaded. It is known where files have the layout for it.
func (d *directory) have() []certificate {
	if d.Kind == "envoy" || d.Layout.PEM != pemLayout {
		return nil
	}
	return d.tree.pairs(d.tree.target(loaded))
}

// done reports whether the program was told of exactly these, or never of any, and
// there are none.
func (d *directory) done(all []certificate) bool {
	version := d.tree.target(current)
	if version == "" && len(all) == 0 {
		return true
	}
	return version == d.tree.target(loaded) && d.tree.holds(version, d.files(all))
}

func (d *directory) Plan(pairs []Pair) ([]Change, error) {
	all, err := check(pairs)
	if err != nil || d.done(all) {
		return nil, err
	}
	var plan []Change
	dir := d.tree.path(current)
	want := d.files(all)(dir)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if path := dir + "/" + name; !d.tree.has(path, want[name]) {
			plan = append(plan, Change{"write", path})
		}
	}
	if entries, err := os.ReadDir(dir); err == nil {
		for _, e := range entries {
			if _, ok := want[e.Name()]; !ok {
				plan = append(plan, Change{"remove", dir + "/" + e.Name()})
			}
		}
	}
	plan = append(plan, Change{"point", dir + " to a new version, which has all of it at once"})
	if len(d.test) > 0 {
		plan = append(plan, Change{"run", command(d.test)})
	}
	return append(plan, d.loads(d.have(), all)...), nil
}

func (d *directory) Install(ctx context.Context, pairs []Pair) error {
	all, err := check(pairs)
	if err != nil {
		return err
	}
	if err := d.tree.open(); err != nil {
		return fmt.Errorf("preparing the directory for %s: %w", d.Kind, err)
	}
	if d.done(all) {
		return nil
	}
	before := state{d.have(), d.tree.target(loaded)}
	untold := d.tree.target(current) != before.version // it was interrupted
	now, refused := d.change(ctx, before, all)
	if now.version == "" || now.version == before.version && !untold {
		return refused
	}
	if untold { // nobody knows how much of what was current was loaded
		before.all = nil
	}
	if err := d.load(ctx, before.all, now.all); err != nil {
		return errors.Join(refused, fmt.Errorf("the certificates are at %s, but %s was not made to load them: %w", d.tree.path(current), d.Kind, err))
	}
	if err := d.tree.point(loaded, now.version); err != nil {
		return errors.Join(refused, err)
	}
	return refused
}

// A state is a version that the program's test admits, and what is in it. No version:
// there is none yet.
type state struct {
	all     []certificate
	version string
}

// change makes all current, or as much of it as the test admits: a certificate that
// the program refuses, or a removed one that its configuration still names, shall not
// keep the others from being renewed.
func (d *directory) change(ctx context.Context, from state, all []certificate) (state, error) {
	version, err := d.put(ctx, from.version, all)
	if err == nil {
		return state{all, version}, nil
	}
	ids := changed(from.all, all)
	if len(from.all) == 0 || len(ids) < 2 || ctx.Err() != nil {
		return from, err
	}
	if broken := d.tested(ctx, from.all); broken != nil {
		return from, err // not for the sake of a certificate
	}
	return d.halves(ctx, from, all, ids)
}

// try makes current what ids are in all, and halves them until those that the test
// refuses are found.
func (d *directory) try(ctx context.Context, from state, all []certificate, ids []string) (state, error) {
	next := compose(from.all, all, ids)
	version, err := d.put(ctx, from.version, next)
	switch {
	case err == nil:
		return state{next, version}, nil
	case len(ids) == 1:
		return from, fmt.Errorf("certificate %q stays as it was: %w", ids[0], err)
	case ctx.Err() != nil:
		return from, err
	}
	return d.halves(ctx, from, all, ids)
}

func (d *directory) halves(ctx context.Context, from state, all []certificate, ids []string) (state, error) {
	from, err1 := d.try(ctx, from, all, ids[:len(ids)/2])
	from, err2 := d.try(ctx, from, all, ids[len(ids)/2:])
	return from, errors.Join(err1, err2)
}

// put makes all current and tests it. If the test fails, the version that it came from
// is current again.
func (d *directory) put(ctx context.Context, from string, all []certificate) (version string, err error) {
	f := d.files(all)
	version = d.tree.target(current)
	if !d.tree.holds(version, f) {
		version = from
	}
	if !d.tree.holds(version, f) {
		if version, err = d.tree.build(from, f); err != nil {
			return "", fmt.Errorf("writing the certificates for %s: %w", d.Kind, err)
		}
	}
	if err := d.tree.point(current, version); err != nil {
		return "", fmt.Errorf("writing the certificates for %s: %w", d.Kind, err)
	}
	if err := d.tested(ctx, all); err != nil {
		if version == from {
			return "", err
		}
		if back := d.tree.point(current, from); back != nil {
			return "", errors.Join(err, back)
		}
		return "", errors.Join(err, os.RemoveAll(d.tree.path(version)))
	}
	return version, nil
}

// tested has the program test its configuration with what is current, which is all.
func (d *directory) tested(ctx context.Context, all []certificate) error {
	if len(d.test) == 0 {
		return nil
	}
	if err := run(ctx, d.Timeout, secrets(all), d.test...); err != nil {
		return fmt.Errorf("%s would not take the certificates: %w", d.Kind, err)
	}
	return nil
}

// changed are the ids that are not the same in both.
func changed(before, now []certificate) []string {
	old, kept := byID(before), byID(now)
	var ids []string
	for _, c := range now {
		if b, ok := old[c.id]; !ok || !b.equal(c) {
			ids = append(ids, c.id)
		}
	}
	for _, c := range before {
		if _, ok := kept[c.id]; !ok {
			ids = append(ids, c.id)
		}
	}
	return ids
}

// compose is what there is if only those of ids change.
func compose(before, now []certificate, ids []string) []certificate {
	old, kept := byID(before), byID(now)
	var all []certificate
	for _, c := range now {
		if b, ok := old[c.id]; slices.Contains(ids, c.id) || ok && b.equal(c) {
			all = append(all, c)
		} else if ok {
			all = append(all, b)
		}
	}
	for _, c := range before {
		if _, ok := kept[c.id]; !ok && !slices.Contains(ids, c.id) {
			all = append(all, c)
		}
	}
	return all
}

func byID(all []certificate) map[string]certificate {
	index := make(map[string]certificate, len(all))
	for _, c := range all {
		index[c.id] = c
	}
	return index
}

func secrets(all []certificate) [][]byte {
	keys := make([][]byte, len(all))
	for i, c := range all {
		keys[i] = c.key
	}
	return keys
}
