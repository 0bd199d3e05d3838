package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/config"
	"github.com/fleetbus/fleetbus/internal/manual"
)

// TestManual checks that the man pages have every command, flag and setting, and that
// man has no complaint.
func TestManual(t *testing.T) {
	a, _, _ := testApp("")
	root := newRootCommand(a)
	dir := t.TempDir()
	if err := manual.Write(dir, root); err != nil {
		t.Fatal(err)
	}
	plain := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, "man", "man"+name[len(name)-1:], name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.NewReplacer(`\-`, "-", `\fB`, "", `\fR`, "", `\(aq`, "'").Replace(string(data))
	}
	overview := plain("fleetbus.1")
	for _, top := range root.Commands() {
		if !top.IsAvailableCommand() {
			continue
		}
		if !strings.Contains(overview, "fleetbus-"+top.Name()+"(1)") {
			t.Errorf("fleetbus.1 lacks %s", top.Name())
		}
		page := plain("fleetbus-" + top.Name() + ".1")
		leaves(top, func(c *cobra.Command) {
			if c.IsAvailableCommand() && !strings.Contains(page, c.CommandPath()) {
				t.Errorf("the page of %s lacks %s", top.Name(), c.CommandPath())
			}
		})
	}
	if !strings.Contains(plain("fleetbus-account.1"), ".SS \"fleetbus account export\"") {
		t.Error("a command that has others below it is missing")
	}
	if !strings.Contains(overview, "EXIT CODES") || !strings.Contains(plain("fleetbus-account.1"), "--dry-run") {
		t.Error("the pages lack exit codes, or flags")
	}
	settings := plain("fleetbus.yaml.5")
	for _, k := range config.Keys() {
		if !strings.Contains(settings, ".TP\n"+k.Path+" (") {
			t.Errorf("fleetbus.yaml.5 lacks %s", k.Path)
		}
	}
	if serve := plain("fleetbus-serve.1"); strings.Contains(serve, "--cluster-routes") || !strings.Contains(serve, "--config") {
		t.Error("the page of serve repeats the settings, or lacks its own flags")
	}

	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("man is missing, which has an opinion on pages")
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man", "*", "*"))
	if err != nil || len(pages) < 20 {
		t.Fatalf("there are %d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		cmd := exec.CommandContext(t.Context(), man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=80")
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil || said.Len() > 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(page), err, &said)
		}
	}
}
