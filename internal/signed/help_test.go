package signed_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// credsOf makes the user of r and a creds file of it.
func credsOf(t testing.TB, s *fleetbustest.Server, r admin.UserRequest) string {
	t.Helper()
	public, seed, err := identity.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	r.Key = public
	creds, err := identity.CreateCreds(s.User(r).JWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), strings.ReplaceAll(r.Name, "/", "-")+".creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
