package attack

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// functions are the tests and the targets of each package, by its path in the module, and
// the packages whose code reads something.
func functions(t *testing.T) (tests map[string][]string, reads map[string]bool) {
	t.Helper()
	tests, reads = map[string][]string{}, map[string]bool{}
	reader := regexp.MustCompile(`json\.Unmarshal|json\.NewDecoder|binary\.(Big|Little)Endian\.Uint|pem\.Decode|x509\.Parse|bufio\.NewReader|\.Unmarshal\(`)
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := strings.TrimPrefix(filepath.ToSlash(rel), ".")
		if !strings.HasSuffix(path, "_test.go") {
			reads[pkg] = reads[pkg] || reader.Match(text)
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[pkg] = append(tests[pkg], f.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, reads
}

// TestTables holds the tables to the code: each test that they name exists, each test of
// package attack is named, each target is named, and each package that reads something has
// one or says why it has none.
func TestTables(t *testing.T) {
	tests, reads := functions(t)
	named := map[string]bool{}
	for _, r := range Rows() {
		if !slices.Contains(tests[r.Package], r.Test) {
			t.Errorf("%s: %s: package %q has no %s", r.On, r.Attack, r.Package, r.Test)
		}
		if named[r.Package+" "+r.Test] {
			t.Errorf("%s of %q is in two rows", r.Test, r.Package)
		}
		named[r.Package+" "+r.Test] = true
	}
	for _, name := range tests["internal/attack"] {
		if strings.HasPrefix(name, "Test") && name != "TestMain" && name != "TestTables" && !named["internal/attack "+name] {
			t.Errorf("%s is in no row", name)
		}
	}
	fuzzed := map[string]bool{}
	for _, p := range Parsers() {
		if len(p.Fuzz) == 0 || p.Reads == "" {
			t.Errorf("package %q has no target", p.Package)
		}
		fuzzed[p.Package] = true
		for _, target := range p.Fuzz {
			if !slices.Contains(tests[p.Package], target) {
				t.Errorf("package %q has no %s", p.Package, target)
			}
			named[p.Package+" "+target] = true
		}
	}
	for pkg, names := range tests {
		for _, name := range names {
			if strings.HasPrefix(name, "Fuzz") && !named[pkg+" "+name] {
				t.Errorf("%s of %q is not in Parsers: nobody runs it", name, pkg)
			}
		}
	}
	trusting := Trusting()
	for pkg := range reads {
		switch {
		case !reads[pkg]:
		case fuzzed[pkg] && trusting[pkg] != "":
			t.Errorf("package %q has a target, and says why it has none", pkg)
		case !fuzzed[pkg] && trusting[pkg] == "":
			t.Errorf("package %q reads something: it needs a target in Parsers, or a reason in Trusting", pkg)
		}
	}
	for pkg := range trusting {
		if !reads[pkg] {
			t.Errorf("package %q reads nothing, and is in Trusting", pkg)
		}
	}
	t.Logf("%d attacks, %d parsers", len(Rows()), len(Parsers()))
}
