// Command sbom writes what a Go program was made of, as CycloneDX, and the licenses
// of its modules.
//
// usage: sbom PROGRAM SBOM LICENSES
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: sbom PROGRAM SBOM LICENSES")
	}
	info, err := buildinfo.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("reading what %q was made of: %w", args[0], err)
	}
	program, err := os.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("reading %q: %w", args[0], err)
	}
	dirs, err := directories()
	if err != nil {
		return err
	}
	var texts bytes.Buffer
	for _, m := range modules(info) {
		if err := licenses(&texts, m, dirs[m.Path]); err != nil {
			return err
		}
	}
	bill, err := json.MarshalIndent(describe(info, program, os.Getenv("VERSION")), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding what the program was made of: %w", err)
	}
	if err := os.WriteFile(args[1], append(bill, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing what the program was made of: %w", err)
	}
	if err := os.WriteFile(args[2], texts.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the licenses: %w", err)
	}
	return nil
}

// A bill is a document of CycloneDX 1.6, without what changes from one run to the
// next: a serial number and a time.
type bill struct {
	Schema   string `json:"$schema"`
	Format   string `json:"bomFormat"`
	Spec     string `json:"specVersion"`
	Version  int    `json:"version"`
	Metadata struct {
		Component component `json:"component"`
	} `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

func describe(info *buildinfo.BuildInfo, program []byte, version string) bill {
	sum := sha256.Sum256(program)
	b := bill{Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6", Version: 1}
	main := component{
		Ref: purl(info.Main.Path, version), Type: "application", Name: info.Main.Path, Version: version, PURL: purl(info.Main.Path, version),
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
	}
	for _, s := range info.Settings {
		if !strings.HasPrefix(s.Key, "vcs") { // the same sources may be in another repository
			main.Properties = append(main.Properties, property{"go:build:" + s.Key, s.Value})
		}
	}
	b.Metadata.Component = main
	tree := dependency{Ref: main.Ref}
	for _, m := range modules(info) {
		c := component{Ref: purl(m.Path, m.Version), Type: "library", Name: m.Path, Version: m.Version, PURL: purl(m.Path, m.Version)}
		if m.Sum != "" {
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		b.Components = append(b.Components, c)
		tree.DependsOn = append(tree.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{tree}
	return b
}

// modules are those that are in the program, and the standard library, which has
// faults and versions like any other.
func modules(info *buildinfo.BuildInfo) []*debug.Module {
	all := []*debug.Module{{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, m)
	}
	return all
}

func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// directories are where the sources of modules are.
func directories() (map[string]string, error) {
	dirs := map[string]string{}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("looking for the standard library: %w", err)
	}
	dirs["std"] = strings.TrimSpace(string(root))
	out, err := exec.Command("go", "list", "-m", "-json=Path,Dir", "all").Output()
	if err != nil {
		return nil, fmt.Errorf("looking for the sources of modules: %w", err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Dir string }
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading the list of modules: %w", err)
		}
		dirs[m.Path] = m.Dir
	}
}

// legal are the names of files that go along with a program.
var legal = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

func licenses(w io.Writer, m *debug.Module, dir string) error {
	if dir == "" {
		return fmt.Errorf("collecting licenses: the sources of %s are not here", m.Path)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("collecting licenses: %w", err)
	}
	found := false
	for _, e := range entries {
		if e.IsDir() || !legal.MatchString(e.Name()) || filepath.Ext(e.Name()) == ".go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("collecting licenses: %w", err)
		}
		found = true
		fmt.Fprintf(w, "==== %s %s: %s\n\n%s\n\n", m.Path, m.Version, e.Name(), bytes.TrimSpace(text))
	}
	// Debian's Go has its license elsewhere.
	if !found && m.Path != "std" {
		return fmt.Errorf("collecting licenses: %s has none in %q", m.Path, dir)
	}
	return nil
}
