package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAdopt(t *testing.T) {
	const ours = "advertise: eu-1.example.net\nlisteners:\n  nats:\n    addr: :4222\n"
	all := string(Defaults(false))
	for name, c := range map[string]struct {
		system, pending         string // empty: there is none
		wantSystem, wantPrivate string
	}{
		"no file of the system":        {"", ours, "", ours},
		"one that sets nothing":        {"# only\n# comments\n\n\n", ours, "# only\n# comments\n\n" + ours, ""},
		"all defaults":                 {all, ours, strings.Replace(all, "\nlisteners:\n", "\n#listeners:\n", 1) + "\n" + ours, ""},
		"one that sets something":      {"name: eu-1\n", ours, "name: eu-1\n", ours},
		"one that is wrong":            {"nam: eu-1\n{", ours, "nam: eu-1\n{", ours},
		"nothing pending":              {"# comments\n", "", "# comments\n", ""},
		"nothing pending, and no file": {"", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			system, pending, own := filepath.Join(dir, "system.yaml"), filepath.Join(dir, "pending"), filepath.Join(dir, "own.yaml")
			for path, text := range map[string]string{system: c.system, pending: c.pending} {
				if text != "" {
					if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := adopt(pending, own, system); err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]string{system: c.wantSystem, own: c.wantPrivate, pending: ""} {
				data, err := os.ReadFile(path)
				if want == "" && errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil || string(data) != want {
					t.Errorf("%s has %q, not %q, %v", filepath.Base(path), data, want, err)
				}
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
					t.Errorf("the mode of %s is %v, %v", filepath.Base(path), info.Mode(), err)
				}
			}
			if c.pending != "" && c.wantPrivate == "" {
				loaded, err := Load(Sources{File: system})
				if err != nil {
					t.Fatal(err)
				}
				if o := loaded.Options(); o.Advertise != "eu-1.example.net" || len(o.Listeners) != 1 {
					t.Errorf("the file sets %+v", o)
				}
			}
			left, err := filepath.Glob(filepath.Join(dir, ".fleetbus*"))
			if err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}
