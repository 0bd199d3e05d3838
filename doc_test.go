package fleetbus_test

import (
	"go/ast"
	"testing"
)

// TestDocumented demands a comment for every package and for every exported name
// at the top of a file, methods included.
func TestDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		documented[s.dir()] = documented[s.dir()] || s.file.Doc != nil
		for _, decl := range s.file.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s:%d: %s is exported and has no comment: who uses it cannot know how", s.path, s.line(name.Pos()), name.Name)
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %q has no comment that says what it is for", dir)
		}
	}
}

// undocumented are the exported names of decl that nothing is said about. One
// comment may speak for a group.
func undocumented(decl ast.Decl) []*ast.Ident {
	var names []*ast.Ident
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d))) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			if d.Doc != nil || commented(spec) {
				continue
			}
			for _, name := range specNames(spec) {
				if name.IsExported() {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

func commented(spec ast.Spec) bool {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		return spec.Doc != nil || spec.Comment != nil
	case *ast.ValueSpec:
		return spec.Doc != nil || spec.Comment != nil
	}
	return false
}

// receiver is the name of the type that a method belongs to.
func receiver(d *ast.FuncDecl) string {
	expr := d.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}
