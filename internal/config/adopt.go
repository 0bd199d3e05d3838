package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Unset reports whether path is the file of the whole system and sets nothing, as
// packages install it: settings that are found for a new node belong into it.
func Unset(path string) bool { return path == systemFile && unset(path) }

func unset(path string) bool {
	data, err := readConfig(path)
	if err != nil {
		return false
	}
	root, problems, broken := parse(path, data)
	set := func(n *node) bool { return n.kind != null } // a section whose keys are comments is nothing
	return !broken && len(problems) == 0 && !slices.ContainsFunc(root.children, set)
}

// Adopt puts the settings of the file pending, if there is one, where they are read:
// at the end of the file of the whole system if that is there and sets nothing, for it
// wins over the file own, or else in own.
func Adopt(pending, own string) error { return adopt(pending, own, systemFile) }

func adopt(pending, own, system string) error {
	if !unset(system) {
		if err := os.Rename(pending, own); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("writing the configuration: %w", err)
		}
		return nil
	}
	settings, err := os.ReadFile(pending)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := extend(system, pending, settings); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := os.Remove(pending); err != nil {
		return fmt.Errorf("removing what was written to %q: %w", system, err)
	}
	return nil
}

// extend adds the settings of the file pending to the end of another that has none,
// all or nothing. Its owner and mode stay. Empty sections there that have settings now
// become comments, because a key stands in a file once.
func extend(path, pending string, settings []byte) (err error) {
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	added, _, _ := parse(pending, settings)
	var text bytes.Buffer
	for line := range bytes.Lines(bytes.TrimRight(before, "\n")) {
		if name, rest, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(rest) == "" && added.field(name) != nil {
			text.WriteByte('#')
		}
		text.Write(line)
	}
	fmt.Fprintf(&text, "\n\n%s", settings)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fleetbus-*.yaml")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text.Bytes())
	if err == nil {
		err = keepOwner(f, info)
	}
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
