package amqp

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// python is the interpreter that Debian's packages are for.
const python = "/usr/bin/python3"

// needs skips unless the interpreter has a module.
func needs(t *testing.T, module string) {
	t.Helper()
	if err := exec.CommandContext(t.Context(), python, "-c", "import "+module).Run(); err != nil {
		t.Skipf("%s has no module %s: install python3-%s", python, module, strings.ReplaceAll(module, "_", "."))
	}
}

// run runs a script of testdata.
func run(t *testing.T, script string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, append([]string{filepath.Join("testdata", script)}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONWARNINGS=ignore")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// files are what a client of h presents and trusts, as files.
func (h *house) files(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, blocks ...[]byte) string {
		var b []byte
		for _, block := range blocks {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: block})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mine := h.config.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(mine.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return h.Founded().CA, write("client.crt", "CERTIFICATE", mine.Certificate...), write("client.key", "PRIVATE KEY", private)
}

// TestOslo has oslo.messaging call, cast and fan out, with a certificate and with a
// password, with the queues of its defaults and with those of quorum queues.
func TestOslo(t *testing.T) {
	needs(t, "oslo_messaging")
	h := start(t, real)
	ca, cert, key := h.files(t)
	// Of a "/" in a password oslo.messaging makes an address that it cannot read.
	const password = "rather-long-and-of-nova"
	hash, err := identity.HashPassword(password)
	if err != nil {
		t.Fatal(err)
	}
	h.User(admin.UserRequest{Name: "acme/nova", Role: "client", Password: hash})
	addr := h.Addr("amqp").String()
	for name, c := range map[string]struct{ login, method, more string }{
		"certificate": {"", "EXTERNAL", "ssl_cert_file = " + cert + "\nssl_key_file = " + key},
		"password":    {"acme.nova:" + password + "@", "AMQPLAIN", ""},
		"quorum":      {"nova:" + password + "@", "PLAIN", "rabbit_quorum_queue = true\namqp_durable_queues = true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "service.conf")
			text := fmt.Sprintf("[DEFAULT]\ntransport_url = rabbit://%s%s/\ncontrol_exchange = x-%s\n[oslo_messaging_rabbit]\nssl = true\nssl_ca_file = %s\nssl_enforce_hostname_verification = true\nrabbit_login_method = %s\n%s\n",
				c.login, addr, name, ca, c.method, c.more)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out := run(t, "oslo.py", file, "20", "compute-"+name); !strings.Contains(out, "calls 20 timed out 0\n") {
				t.Errorf("it said:\n%s", out)
			}
		})
	}
}

// TestPika has pika and kombu do what their users do with RabbitMQ.
func TestPika(t *testing.T) {
	needs(t, "pika")
	needs(t, "kombu")
	h := start(t, real)
	ca, cert, key := h.files(t)
	_, port, err := net.SplitHostPort(h.Addr("amqp").String())
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "clients.py", port, ca, cert, key, h.Password(admin.UserRequest{Name: "acme/worker", Role: "client"}))
	if !strings.HasSuffix(out, "\nend\n") {
		t.Errorf("it said:\n%s", out)
	}
}
