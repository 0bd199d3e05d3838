//go:build amqp091

package amqp

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// TestIntegration runs the integration tests that amqp091-go brings along, against a
// listener in clear: FLEETBUS_RUN is which.
func TestIntegration(t *testing.T) {
	from, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/rabbitmq/amqp091-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "amqp091-go")
	if err := os.CopyFS(dir, os.DirFS(strings.TrimSpace(string(from)))); err != nil {
		t.Fatal(err)
	}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"plain"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Plaintext: true, Protocol: &Protocol{Options: Options{Account: "plain"}}})
	})
	hash, err := identity.HashPassword("guest")
	if err != nil {
		t.Fatal(err)
	}
	s.User(admin.UserRequest{Name: "plain/guest", Role: "client", Password: hash})
	cmd := exec.CommandContext(t.Context(), "go", "test", "-tags", "integration", "-count=1", "-timeout=9m", "-v", "-run", os.Getenv("FLEETBUS_RUN"), ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "AMQP_URL=amqp://guest:guest@"+s.Addr("amqp").String()+"/", "GOFLAGS=-mod=mod")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
