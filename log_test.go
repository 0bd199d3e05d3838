package fleetbus_test

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logKeys is the closed list of the keys of attributes in logs: who searches them has
// these to search for. docs/monitoring.md says what they hold.
func logKeys() []string {
	return []string{
		"account", "adapter", "after", "applied", "aside", "by", "certificate", "client", "closed", "code", "count", "duration",
		"error", "filter", "fleet", "free", "generation", "group", "hub", "id", "issuer", "kind", "limit", "list", "listener",
		"listeners", "lost", "manager", "name", "needs_restart", "node", "not_after", "notices", "panic", "path",
		"principal", "reason", "region", "remote", "request", "reserve", "role", "rule", "sequence", "server", "service", "session",
		"size", "source", "statements", "stream", "subject", "target", "took",
	}
}

// TestLogKeys holds every call of a logger to logKeys.
func TestLogKeys(t *testing.T) {
	unused := map[string]bool{}
	for _, k := range logKeys() {
		unused[k] = true
	}
	calls := 0
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !logs(call) {
				return true
			}
			args := call.Args
			if name := method(call); name != "With" {
				calls++
				if len(args) == 0 {
					return true
				}
				// A few are handed what they say by those who call them.
				if text, ok := literal(args[0]); ok && (text == "" || strings.HasSuffix(text, ".")) {
					t.Errorf("%s:%d: message %q is empty, or ends with a full stop", s.path, s.line(call.Pos()), text)
				}
				args = args[1:]
			}
			for i := 0; i < len(args); i += 2 {
				key, ok := literal(args[i])
				if !ok {
					break // attributes that are made elsewhere
				}
				delete(unused, key)
				if !slices.Contains(logKeys(), key) {
					t.Errorf("%s:%d: key %q is none of logKeys", s.path, s.line(call.Pos()), key)
				}
			}
			return true
		})
	}
	for key := range unused {
		t.Errorf("nothing has key %q", key)
	}
	if calls < 100 {
		t.Errorf("there are only %d calls of loggers: are they recognized?", calls)
	}
}

// method is the name of the method that is called.
func method(call *ast.CallExpr) string {
	if f, ok := call.Fun.(*ast.SelectorExpr); ok {
		return f.Sel.Name
	}
	return ""
}

// logs reports whether it is a logger that is called.
func logs(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	if f.Sel.Name == "log" { // of a session of MQTT
		return true
	}
	if !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "With"}, f.Sel.Name) {
		return false
	}
	switch x := f.X.(type) {
	case *ast.Ident:
		return strings.Contains(strings.ToLower(x.Name), "log")
	case *ast.SelectorExpr:
		return strings.Contains(strings.ToLower(x.Sel.Name), "log")
	case *ast.CallExpr:
		return logs(x)
	}
	return false
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}
