package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// osloProgram calls by oslo.messaging.
//
//go:embed oslo.py
var osloProgram []byte

// python is Debian's, which has oslo.messaging if anything has.
const python = "/usr/bin/python3"

// hasOslo reports whether oslo.messaging is installed.
func hasOslo(ctx context.Context) bool {
	return exec.CommandContext(ctx, python, "-c", "import oslo_messaging").Run() == nil
}

// osloCalls has oslo.messaging itself do n calls over TLS, as its defaults are, and returns how
// long each took, in milliseconds.
func (b *amqpBroker) osloCalls(ctx context.Context, n int) ([]float64, error) {
	program, settings := filepath.Join(b.dir, "oslo.py"), filepath.Join(b.dir, "oslo.conf")
	ca := filepath.Join(b.dir, "oslo-ca.pem")
	var text bytes.Buffer
	login := "guest:guest@"
	files := map[string][]byte{program: osloProgram, ca: b.trustPEM}
	fmt.Fprintf(&text, "[oslo_messaging_rabbit]\nssl = true\nssl_ca_file = %s\n", ca)
	if certs := b.config.TLSClientConfig.Certificates; len(certs) > 0 {
		login = ""
		cert, key := filepath.Join(b.dir, "oslo.crt"), filepath.Join(b.dir, "oslo.key")
		der, err := x509.MarshalPKCS8PrivateKey(certs[0].PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("writing a key: %w", err)
		}
		files[key] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		for _, der := range certs[0].Certificate {
			files[cert] = append(files[cert], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		fmt.Fprintf(&text, "ssl_cert_file = %s\nssl_key_file = %s\nrabbit_login_method = EXTERNAL\n", cert, key)
	}
	fmt.Fprintf(&text, "[DEFAULT]\ntransport_url = rabbit://%s%s/\n", login, b.addrs[0])
	files[settings] = text.Bytes()
	for path, data := range files {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("writing settings: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, python, program, settings, fmt.Sprint(n))
	cmd.Env = b.env
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("calling by oslo.messaging: %w\n%s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	var times []float64
	if err := json.Unmarshal(out, &times); err != nil || len(times) != n {
		return nil, fmt.Errorf("calling by oslo.messaging: it printed %d bytes that are not %d times", len(out), n)
	}
	return times, nil
}
