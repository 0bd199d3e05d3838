package hardening

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// pems makes what files of a set are called after: an authority, certificates that it
// signed, and others that are wrong in one way.
func pems(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	var serial int64
	make1 := func(name string, edit func(*x509.Certificate), parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(0, 11, 0), BasicConstraintsValid: true}
		if edit != nil {
			edit(c)
		}
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		all[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		return made, key
	}
	authority := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }
	ca, caKey := make1("ca", authority, nil, nil)
	make1("otherca", authority, nil, nil)
	make1("public", func(c *x509.Certificate) {
		authority(c)
		c.Subject = pkix.Name{CommonName: "ISRG Root X1", Organization: []string{"Internet Security Research Group"}}
	}, nil, nil)
	broker := func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"ctl1.example.net"}, []net.IP{net.ParseIP("10.20.0.11")}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	make1("broker", broker, ca, caKey)
	make1("soon", func(c *x509.Certificate) { broker(c); c.NotAfter = now.AddDate(0, 0, 10) }, ca, caKey)
	make1("ended", func(c *x509.Certificate) { broker(c); c.NotAfter = now.AddDate(0, 0, -1) }, ca, caKey)
	make1("elsewhere", func(c *x509.Certificate) { broker(c); c.IPAddresses = nil }, ca, caKey)
	make1("misplaced", func(c *x509.Certificate) {
		broker(c)
		c.DNSNames, c.IPAddresses = nil, []net.IP{net.ParseIP("10.20.0.99")}
	}, ca, caKey)
	make1("nameless", func(c *x509.Certificate) { broker(c); c.IPAddresses, c.DNSNames = nil, nil }, ca, caKey)
	make1("service", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, ca, caKey)
	all["many"] = bytes.Repeat(all["ca"], 4)
	all["mixed"] = append(slices.Clone(all["ca"]), all["broker"]...)
	return all
}

// A set is files in a directory of a test.
type set struct {
	files map[string]string
	modes map[string]fs.FileMode
	names []string
	pems  map[string][]byte
}

// load reads a set: names of files may be followed by a mode, and by what makes its PEM.
func load(t *testing.T, name string, made map[string][]byte) *set {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	s := &set{map[string]string{}, map[string]fs.FileMode{}, nil, made}
	for _, f := range a.Files {
		words := strings.Fields(f.Name)
		data := string(f.Data)
		s.modes[words[0]] = 0o640
		for _, w := range words[1:] {
			if n, err := strconv.ParseUint(w, 8, 32); err == nil {
				s.modes[words[0]] = fs.FileMode(n)
			} else {
				data = string(made[w])
			}
		}
		s.names = append(s.names, words[0])
		s.files[words[0]] = data
	}
	return s
}

// write writes a set to a directory.
func (s *set) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range s.files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(data, "-> "); ok {
			if err := os.Symlink(to, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, s.modes[name]); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// verdicts are the rules that something is wrong by, such as "1:fail 13:warn".
func verdicts(r Report) string {
	var all []string
	for _, f := range r.Findings {
		if f.Verdict == Fail || f.Verdict == Warn {
			all = append(all, f.Rule+":"+string(f.Verdict))
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

func audited(t *testing.T, kind Kind, s *set, o Options) Report {
	t.Helper()
	o.Now = now
	r, err := Audit(kind, []string{s.write(t)}, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func show(t *testing.T, r Report) {
	t.Helper()
	for _, f := range r.Findings {
		if f.Verdict != Pass && f.Verdict != NotApplicable {
			t.Logf("%s %s: %s %q %s", f.Rule, f.Verdict, f.Where(), f.Evidence, f.Text)
		}
	}
}

// TestHardened has sets that keep every rule.
func TestHardened(t *testing.T) {
	made := pems(t)
	for _, c := range []struct {
		file string
		kind Kind
	}{{"rabbitmq.txtar", RabbitMQ}, {"classic.txtar", RabbitMQ}, {"qpid.txtar", Qpid}, {"openstack.txtar", OpenStack}} {
		for _, ends := range []string{"\n", "\r\n"} {
			s := load(t, c.file, made)
			for name, data := range s.files {
				s.files[name] = strings.ReplaceAll(data, "\n", ends)
			}
			r := audited(t, c.kind, s, Options{})
			if r.Failed+r.Warned+r.Unread+r.Missing > 0 {
				t.Errorf("%s: %d failed, %d warned, %d unread", c.file, r.Failed, r.Warned, r.Unread)
				show(t, r)
			}
			passed := 0
			for _, f := range r.Findings {
				if f.Verdict == Pass {
					passed++
				}
			}
			if passed < 12 {
				t.Errorf("%s: only %d findings say that a rule is kept", c.file, passed)
			}
		}
	}
}
