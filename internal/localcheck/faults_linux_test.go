package localcheck

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/smalldisk"
)

// sound is a machine on which nothing is wrong. Of the test's machine it believes all but
// the clock, which few test machines keep, and the size of its disk.
func sound(t *testing.T) Machine {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	now := time.Now()
	authority, _, err := identity.NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "admin"), 0o700), os.Mkdir(filepath.Join(dir, "offline"), 0o700),
		os.WriteFile(filepath.Join(dir, "admin", "ca.pem"), authority.ClientsPEM(), 0o600),
		os.WriteFile(filepath.Join(dir, "authority.json"), []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	m := Machine{
		Dir: dir, Advertise: "bus.example.net", Ports: []Port{{"nats", freePort(t)}}, MaxFile: 1 << 20, MaxMemory: 1 << 20, Connections: 100,
		lookup: func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil },
		synced: func() (bool, error) { return true, nil },
		statfs: func(dir string, s *syscall.Statfs_t) error {
			*s = syscall.Statfs_t{Type: 0xef53, Bsize: 4096, Frsize: 4096, Blocks: 1 << 30, Bavail: 1 << 29, Files: 1000, Ffree: 500}
			return nil
		},
	}
	m.Cert, m.Key = certificate(t, "bus.example.net", now.Add(-time.Hour), now.Add(90*24*time.Hour))
	return m
}

func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// certificate writes one, and its key.
func certificate(t *testing.T, name string, from, to time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// addresses are those of a machine, as prefixes.
func addresses(all ...string) func() ([]net.Addr, error) {
	return func() (addrs []net.Addr, err error) {
		for _, text := range all {
			ip, network, err := net.ParseCIDR(text)
			if err != nil {
				return nil, err
			}
			addrs = append(addrs, &net.IPNet{IP: ip, Mask: network.Mask})
		}
		return addrs, nil
	}
}

// TestEverywhere has listeners of AMQP that are well: at one address, on a machine that is
// in one network, and of another protocol.
func TestEverywhere(t *testing.T) {
	for _, c := range []struct {
		port  Port
		addrs []string
	}{
		{Port{"listeners.amqp", "127.0.0.1:1"}, []string{"10.0.0.5/24", "192.0.2.5/24"}},
		{Port{"listeners.amqp", "[::]:1"}, []string{"127.0.0.1/8", "10.0.0.5/24", "10.0.0.6/24", "2001:db8::5/64", "fe80::1/64"}},
		{Port{"listeners.nats", ":1"}, []string{"10.0.0.5/24", "192.0.2.5/24"}},
	} {
		l := &look{m: Machine{Ports: []Port{c.port}, addrs: addresses(c.addrs...)}}
		if l.everywhere(t.Context()); len(foundIn(l.all)) > 0 {
			t.Errorf("%v on %v: %+v", c.port, c.addrs, l.all)
		}
	}
}

// foundIn are the codes of results, those of what was only noted too.
func foundIn(all []doctor.Result) (codes []string) {
	for _, r := range all {
		if r.Code != "" {
			codes = append(codes, r.Code)
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

func TestSound(t *testing.T) {
	all := sound(t).Look(t.Context())
	if codes := foundIn(all); len(codes) > 0 {
		t.Errorf("found on a machine that is sound: %v\n%+v", codes, all)
	}
	for _, r := range all {
		if r.Group == "" || r.Check == "" || r.Evidence == "" || r.Subject == "" {
			t.Errorf("a result says too little: %+v", r)
		}
	}
	if len(all) < 12 {
		t.Errorf("only %d checks", len(all))
	}
}

// TestFaults does to a machine what goes wrong with machines. Real are the faults of
// files, directories, disks, ports and certificates; what only a whole machine has, a
// clock, a name server, a file system of another, is put in the place of the call that
// asks for it.
func TestFaults(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	disk := func(change func(*syscall.Statfs_t)) func(*testing.T, *Machine) {
		return func(_ *testing.T, m *Machine) {
			before := m.statfs
			m.statfs = func(dir string, s *syscall.Statfs_t) error {
				err := before(dir, s)
				change(s)
				return err
			}
		}
	}
	for _, f := range []struct {
		code   string
		inject func(*testing.T, *Machine)
	}{
		{"DATA-DIR-MISSING", func(_ *testing.T, m *Machine) { m.Dir += "-of-nobody" }},
		{"DATA-DIR-OPEN", func(_ *testing.T, m *Machine) { must(os.Chmod(m.Dir, 0o755)) }},
		{"DATA-DIR-UNREADABLE", func(_ *testing.T, m *Machine) { m.Dir = filepath.Join(m.Dir, "authority.json", "data") }},
		{"DATA-DIR-READONLY", func(t *testing.T, m *Machine) {
			dir := smalldisk.Mount(t, "1m")
			must(os.Chmod(dir, 0o700))
			must(syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
			m.Dir = dir
		}},
		{"DISK-FULL", func(t *testing.T, m *Machine) {
			m.Dir, m.statfs, m.MaxFile = smalldisk.Mount(t, "8m"), syscall.Statfs, 0
			must(os.Chmod(m.Dir, 0o700))
			must(os.WriteFile(filepath.Join(m.Dir, "much"), make([]byte, 7<<20), 0o600))
		}},
		{"DISK-LOW", func(t *testing.T, m *Machine) {
			m.Dir, m.statfs, m.MaxFile, m.Reserve = smalldisk.Mount(t, "8m"), syscall.Statfs, 0, 1<<20
			must(os.Chmod(m.Dir, 0o700))
		}},
		{"STORE-OVERSTATED", func(t *testing.T, m *Machine) {
			m.Dir, m.statfs, m.MaxFile = smalldisk.Mount(t, "8m"), syscall.Statfs, 1<<30
			must(os.Chmod(m.Dir, 0o700))
		}},
		{"FILE-SYSTEM-VOLATILE", func(t *testing.T, m *Machine) {
			m.Dir, m.statfs = smalldisk.Mount(t, "8m"), syscall.Statfs
			must(os.Chmod(m.Dir, 0o700))
		}},
		{"INODES-LOW", func(t *testing.T, m *Machine) {
			m.Dir, m.statfs, m.MaxFile = smalldisk.Mount(t, "8m,nr_inodes=100"), syscall.Statfs, 0
			must(os.Chmod(m.Dir, 0o700))
			for i := range 96 {
				must(os.WriteFile(filepath.Join(m.Dir, fmt.Sprint(i)), nil, 0o600))
			}
		}},
		{"FILE-SYSTEM-SHARED", disk(func(s *syscall.Statfs_t) { s.Type = 0x6969 })},
		{"NOT-MEASURED", func(_ *testing.T, m *Machine) {
			m.statfs = func(string, *syscall.Statfs_t) error { return syscall.EIO }
		}},
		{"FILES-LIMITED", func(_ *testing.T, m *Machine) { m.Connections = 1 << 40 }},
		{"MEMORY-OVERSTATED", func(_ *testing.T, m *Machine) { m.MaxMemory = 1 << 60 }},
		{"CLOCK-UNSYNCED", func(_ *testing.T, m *Machine) { m.synced = func() (bool, error) { return false, nil } }},
		{"CLOCK-BEHIND", func(_ *testing.T, m *Machine) { m.now = func() time.Time { return time.Now().AddDate(-1, 0, 0) } }},
		{"AUTHORITY-EXPIRED", func(_ *testing.T, m *Machine) { m.now = func() time.Time { return time.Now().AddDate(11, 0, 0) } }},
		{"AUTHORITY-UNREADABLE", func(_ *testing.T, m *Machine) {
			must(os.WriteFile(filepath.Join(m.Dir, "admin", "ca.pem"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600))
		}},
		{"PORT-HELD", func(t *testing.T, m *Machine) {
			ln, err := net.Listen("tcp", m.Ports[0].Addr)
			must(err)
			t.Cleanup(func() { ln.Close() })
		}},
		{"PORT-DENIED", func(_ *testing.T, m *Machine) { m.Ports = []Port{{"nats", "192.0.2.1:4222"}} }},
		{"AMQP-EVERYWHERE", func(_ *testing.T, m *Machine) {
			_, port, err := net.SplitHostPort(m.Ports[0].Addr)
			must(err)
			m.Ports = []Port{{"listeners.amqp", ":" + port}}
			m.addrs = addresses("127.0.0.1/8", "10.0.0.5/24", "192.0.2.5/24", "fe80::1/64")
		}},
		{"KEY-DIR-OPEN", func(_ *testing.T, m *Machine) { must(os.Chmod(filepath.Dir(m.Key), 0o777)) }},
		{"NAME-UNKNOWN", func(_ *testing.T, m *Machine) {
			m.lookup = func(_ context.Context, host string) ([]string, error) {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
		}},
		{"NAME-ELSEWHERE", func(_ *testing.T, m *Machine) {
			m.lookup = func(context.Context, string) ([]string, error) { return []string{"192.0.2.7"}, nil }
		}},
		{"NOT-ANSWERED", func(_ *testing.T, m *Machine) {
			m.lookup = func(_ context.Context, host string) ([]string, error) {
				return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
			}
		}},
		{"PROXY-OWN-NAME", func(_ *testing.T, m *Machine) { m.Env = []string{"HTTPS_PROXY=http://proxy.example.net:3128"} }},
		{"SECRET-OPEN", func(_ *testing.T, m *Machine) { must(os.Chmod(filepath.Join(m.Dir, "authority.json"), 0o640)) }},
		{"CERTIFICATE-EXPIRED", func(t *testing.T, m *Machine) {
			m.Cert, m.Key = certificate(t, m.Advertise, time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
		}},
		{"CERTIFICATE-ENDS", func(t *testing.T, m *Machine) {
			m.Cert, m.Key = certificate(t, m.Advertise, time.Now().AddDate(0, 0, -80), time.Now().AddDate(0, 0, 3))
		}},
		{"CERTIFICATE-NAME", func(t *testing.T, m *Machine) {
			m.Cert, m.Key = certificate(t, "other.example.net", time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 90))
		}},
		{"CERTIFICATE-UNREADABLE", func(t *testing.T, m *Machine) {
			_, m.Key = certificate(t, m.Advertise, time.Now(), time.Now().AddDate(0, 0, 90))
		}},
	} {
		t.Run(f.code, func(t *testing.T) {
			m := sound(t)
			f.inject(t, &m)
			all := doctor.Fold(m.Look(t.Context()))
			codes := foundIn(all)
			if !slices.Contains(codes, f.code) {
				t.Fatalf("found %v, not %s\n%+v", codes, f.code, all)
			}
			for _, r := range all {
				c, known := explain.Of(r.Code)
				if r.Code != "" && (!known || c.Means == "") {
					t.Errorf("%s is not explained", r.Code)
				}
				if (r.State == doctor.Warn || r.State == doctor.Fail) && r.Fix == "" {
					t.Errorf("%s has no fix", r.Code)
				}
			}
			// A small disk in memory is small, and in memory; nothing else brings more along.
			also := map[string]string{"DISK-FULL": "FILE-SYSTEM-VOLATILE", "DISK-LOW": "FILE-SYSTEM-VOLATILE", "STORE-OVERSTATED": "DISK-FULL FILE-SYSTEM-VOLATILE",
				"FILE-SYSTEM-VOLATILE": "DISK-FULL", "INODES-LOW": "DISK-FULL FILE-SYSTEM-VOLATILE"}
			for _, code := range codes {
				if code != f.code && !strings.Contains(also[f.code], code) {
					t.Errorf("%s brings %s along", f.code, code)
				}
			}
		})
	}
}

// TestOwner says who has a port.
func TestOwner(t *testing.T) {
	m := sound(t)
	ln, err := net.Listen("tcp", m.Ports[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	holder := func() doctor.Result {
		l := &look{m: m}
		l.ports(t.Context())
		return l.all[0]
	}
	if r := holder(); !strings.Contains(r.Evidence, fmt.Sprintf("pid %d ", os.Getpid())) {
		t.Errorf("the holder is not named: %s", r.Evidence)
	}
	m.Server = os.Getpid() // it is the node itself
	if r := holder(); r.State != doctor.OK {
		t.Errorf("of its own server: %+v", r)
	}
	ln.Close()
	if r := holder(); r.Code != "PORT-UNUSED" {
		t.Errorf("of a server that does not listen: %+v", r)
	}
}

func TestDirect(t *testing.T) {
	for _, c := range []struct {
		host, exceptions string
		want             bool
	}{
		{"bus.example.net", "", false},
		{"bus.example.net", "other.net, BUS.example.net", true},
		{"bus.example.net", ".example.net", true},
		{"bus.example.net", "*.example.net", true},
		{"bus.example.net", "example.net", true},
		{"bus.example.net", "ample.net", false},
		{"bus.example.net", "bus.example.net:443", true},
		{"bus.example.net", "*", true},
		{"192.0.2.7", "192.0.2.0/24", true},
		{"192.0.2.7", "198.51.100.0/24,192.0.2.8", false},
		{"127.0.0.1", "", true},
		{"localhost", "", true},
	} {
		if got := direct(c.host, c.exceptions); got != c.want {
			t.Errorf("%s by %q: %t", c.host, c.exceptions, got)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	proc, group := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want int64) {
		t.Helper()
		if got, _ := memoryLimit(proc, group); got != want {
			t.Errorf("%d, not %d", got, want)
		}
	}
	check(0)
	write(filepath.Join(proc, "meminfo"), "MemTotal:        2048 kB\n")
	check(2 << 20)
	write(filepath.Join(proc, "self", "cgroup"), "0::/a/b\n")
	write(filepath.Join(group, "a", "b", "memory.max"), "max\n")
	check(2 << 20)
	write(filepath.Join(group, "a", "memory.max"), "1048576\n")
	check(1 << 20)
}
