package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issue writes a self-signed certificate and its key, both of mode 0600.
func issue(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return cert, key
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := issue(t, dir, "a")
	otherCert, otherKey := issue(t, dir, "b")
	open := filepath.Join(dir, "open.key")
	data, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, open, data)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(dir, "group.key")
	write(t, group, data)
	if err := os.Chmod(group, 0o640); err != nil {
		t.Fatal(err)
	}
	empty, broken := filepath.Join(dir, "empty"), filepath.Join(dir, "broken")
	write(t, empty, nil)
	write(t, broken, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")}))
	absent := filepath.Join(dir, "absent")

	for _, tt := range []struct {
		name, text, want string
	}{
		{"all is well", "{cert: CERT, key: KEY, ca: [CERT, OTHER]}", ""},
		{"the group may read the key", "{cert: CERT, key: GROUP, ca: [CERT]}", ""},
		{"everybody may read the key", "{cert: CERT, key: OPEN, ca: [CERT]}", `tls.key: "OPEN" is open to every user (mode 0644)` + "\n    fix: chmod 600 OPEN"},
		{"another key", "{cert: CERT, key: OTHERKEY, ca: [CERT]}", `tls.key: "CERT" and "OTHERKEY" are not a certificate and its key`},
		{"an absent certificate", "{cert: ABSENT, key: KEY, ca: [CERT]}", `tls.cert: "ABSENT" cannot be read: no such file`},
		{"a directory", "{cert: DIR, key: KEY, ca: [CERT]}", `tls.cert: "DIR" is not a regular file`},
		{"an empty authority", "{ca: [CERT, EMPTY]}", `tls.ca[1]: "EMPTY" holds no usable authority: no certificate in it`},
		{"a broken authority", "{ca: [BROKEN]}", `tls.ca[0]: "BROKEN" holds no usable authority: parsing a certificate`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			paths := strings.NewReplacer("CERT", cert, "OTHERKEY", otherKey, "OTHER", otherCert, "KEY", key,
				"OPEN", open, "GROUP", group, "ABSENT", absent, "DIR", dir, "EMPTY", empty, "BROKEN", broken)
			_, err := loadText(t, "\ntls: "+paths.Replace(tt.text), nil)
			if tt.want == "" && err != nil || tt.want != "" && err == nil {
				t.Fatalf("got %v", err)
			}
			if want := paths.Replace(tt.want); !strings.Contains(errorText(err), want) || err != nil && !strings.Contains(err.Error(), "fleetbus.yaml:2:") {
				t.Errorf("got %v\nwant %s", err, want)
			}
		})
	}
	if _, err := loadText(t, "", []string{"FLEETBUS_CLIENT_CREDS=" + open}); err == nil ||
		!strings.Contains(err.Error(), "FLEETBUS_CLIENT_CREDS: client.creds: ") {
		t.Errorf("credentials that everybody may read: got %v", err)
	}
}
