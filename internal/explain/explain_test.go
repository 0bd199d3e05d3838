package explain

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// codesIn are the codes that a Go file has as words in quotes, with where the first stands.
func codesIn(t *testing.T, path string, into map[string]string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`^[A-Z][A-Z0-9]+(-[A-Z0-9]+)+$`)
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil && word.MatchString(text) && into[text] == "" {
				into[text] = path
			}
		}
		return true
	})
}

// goFiles calls each for every Go file of the module.
func goFiles(t *testing.T, each func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			each(path, string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEveryCode holds the table against the source: every code that a finding or a result
// can have is explained, and nothing is explained that there is not.
func TestEveryCode(t *testing.T) {
	used := map[string]string{}
	goFiles(t, func(path, text string) {
		speaks := strings.Contains(text, module+"/doctor\"") || strings.Contains(path, "/doctor/")
		if speaks && !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, "fleetbustest.go") {
			codesIn(t, path, used)
		}
	})
	if len(used) < 80 {
		t.Fatalf("only %d codes were found in the source", len(used))
	}
	for code, path := range used {
		if _, ok := Of(code); !ok {
			t.Errorf("%s: nobody explains %s: add it to codes.txt", path, code)
		}
	}
	for _, c := range All() {
		if used[c.Code] == "" {
			t.Errorf("%s is explained, and nothing has it", c.Code)
		}
	}
}

const module = "github.com/fleetbus/fleetbus"

func TestTable(t *testing.T) {
	groups := map[string]string{}
	seen := map[string]bool{}
	for _, c := range All() {
		if seen[c.Code] {
			t.Errorf("%s is there twice", c.Code)
		}
		seen[c.Code] = true
		if !slices.Contains(Groups(), c.Group) {
			t.Errorf("%s is in group %q", c.Code, c.Group)
		}
		if g := groups[c.Check]; g != "" && g != c.Group {
			t.Errorf("check %s is in the groups %s and %s", c.Check, g, c.Group)
		}
		groups[c.Check] = c.Group
		for what, text := range map[string]string{"means": c.Means, "matters": c.Matters, "measured": c.Measured, "fix": c.Fix} {
			if len(text) < 8 || strings.Contains(text, "\n") {
				t.Errorf("%s: %s: %q", c.Code, what, text)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	for code, want := range map[string]string{"CLOCKSKEW": "CLOCK-SKEW", "DISK-FUL": "DISK-FULL", "certificate": "CERTIFICATE-NAME", "PORT-IN-USE": "PORT-HELD"} {
		if got := Nearest(code); !slices.Contains(got, want) {
			t.Errorf("%s: %v", code, got)
		}
	}
	if got := Nearest("XXXXXXXXXXXX"); len(got) > 0 {
		t.Errorf("near to nothing: %v", got)
	}
	if c, ok := Of("clock_skew"); !ok || c.Code != "CLOCK-SKEW" {
		t.Errorf("%+v", c)
	}
	if GroupOf("inodes") != "node" || GroupOf("nothing") != "" {
		t.Error("the groups of checks are wrong")
	}
}

// TestInjected counts the codes for which a test injects the fault: those that stand in
// the files faults_test.go and in the scripts doctor.txtar. That nobody answered, or may
// not be asked, is no fault.
func TestInjected(t *testing.T) {
	word := regexp.MustCompile(`[A-Z]+(-[A-Z]+)+`)
	injected := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "faults_test.go") && d.Name() != "doctor.txtar" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, code := range word.FindAllString(string(text), -1) {
			if _, ok := Of(code); ok && !strings.HasPrefix(code, "NOT-") {
				injected[code] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the faults of %d codes of %d are injected", len(injected), len(All()))
	if len(injected) < 40 {
		t.Errorf("the faults of only %d codes are injected by tests, not 40", len(injected))
	}
}
