package probe_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/hardening/probe"
)

// verdicts are what was found, as rule:verdict, those of rules alone if some are named.
func verdicts(t *testing.T, addr string, o probe.Options, rules ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.Management = append([]string{}, o.Management...)
	found, err := probe.Probe(ctx, addr, o)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range found {
		if len(rules) == 0 || slices.Contains(rules, f.Rule) {
			all = append(all, f.Rule+":"+string(f.Verdict))
			t.Logf("%s %s: %s", f.Rule, f.Verdict, f.Text)
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// pki is an authority with certificates of a broker and of a client, in files.
type pki struct {
	dir            string
	roots          *x509.CertPool
	broker, client tls.Certificate
}

func newPKI(t *testing.T, ends time.Duration) pki {
	t.Helper()
	p := pki{dir: t.TempDir(), roots: x509.NewCertPool()}
	create := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(ends),
			BasicConstraintsValid: true, IsCA: parent == nil, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		if parent == nil {
			c.KeyUsage, parent, signer = x509.KeyUsageCertSign, c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(filepath.Join(p.dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return made, key
	}
	ca, key := create("ca", nil, nil)
	p.roots.AddCert(ca)
	for name, into := range map[string]*tls.Certificate{"broker": &p.broker, "client": &p.client} {
		create(name, ca, key)
		pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, name+".pem"), filepath.Join(p.dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		*into = pair
	}
	return p
}

// A fake is a broker that says hello with some mechanisms, and lets guest in or not.
type fake struct {
	config     *tls.Config // nil is in clear
	mechanisms string
	guest      bool
}

func (f fake) listen(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if f.config != nil {
		ln = tls.NewListener(ln, f.config)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			f.serve(conn)
		}
	}()
	return ln.Addr().String()
}

func (f fake) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	r := bufio.NewReader(conn)
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:4]) != "AMQP" {
		return
	}
	frame := func(body string) string {
		return fmt.Sprintf("\x01\x00\x00%s%s\xce", []byte{0, 0, byte(len(body) >> 8), byte(len(body))}, body)
	}
	_, _ = io.WriteString(conn, frame("\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00"+string(rune(len(f.mechanisms)))+f.mechanisms+"\x00\x00\x00\x05en_US"))
	if _, err := r.ReadByte(); err == nil && f.guest {
		_, _ = io.WriteString(conn, frame("\x00\x0a\x00\x1e\x07\xff\x00\x02\x00\x00\x00\x3c"))
		_, _ = io.Copy(io.Discard, r)
	}
}

func TestFakes(t *testing.T) {
	p, ending := newPKI(t, 100*24*time.Hour), newPKI(t, 5*24*time.Hour)
	mutual := func(p pki) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{p.broker}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.roots, MinVersion: tls.VersionTLS12}
	}
	open := &tls.Config{Certificates: []tls.Certificate{p.broker}, MinVersion: tls.VersionTLS12}
	anyCert := &tls.Config{Certificates: []tls.Certificate{p.broker}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	old := mutual(p)
	old.MinVersion = tls.VersionTLS10
	only12 := mutual(p)
	only12.MaxVersion = tls.VersionTLS12
	client := probe.Options{Certificate: &p.client}
	for _, c := range []struct {
		name string
		f    fake
		o    probe.Options
		want string
	}{
		{"clear", fake{nil, "PLAIN AMQPLAIN", true}, probe.Options{}, "11:fail 1:fail 25:unknown 6:unknown"},
		{"clear, EXTERNAL", fake{nil, "PLAIN EXTERNAL", false}, probe.Options{}, "11:pass 13:fail 1:fail 25:unknown 6:unknown"},
		{"mutual", fake{mutual(p), "EXTERNAL", false}, probe.Options{}, "11:unknown 13:unknown 1:pass 25:unknown 3:pass 6:pass 9:pass"},
		{"mutual, 1.2", fake{only12, "EXTERNAL", false}, probe.Options{}, "11:unknown 13:unknown 1:pass 25:unknown 3:pass 6:pass 9:pass"},
		{"mutual, known", fake{mutual(p), "EXTERNAL", false}, client, "11:pass 13:pass 1:pass 25:unknown 3:pass 6:pass 9:pass"},
		{"mutual, passwords", fake{mutual(p), "EXTERNAL PLAIN", true}, client, "11:fail 13:warn 1:pass 25:unknown 3:pass 6:pass 9:pass"},
		{"ending", fake{mutual(ending), "EXTERNAL", false}, probe.Options{Hosts: []string{"bus.example.net"}}, "11:unknown 13:unknown 1:pass 25:unknown 3:pass 6:fail 9:warn"},
		{"no certificate", fake{open, "PLAIN ANONYMOUS", false}, probe.Options{}, "11:pass 13:fail 13:warn 1:pass 25:unknown 3:fail 6:pass 9:pass"},
		{"any certificate", fake{anyCert, "EXTERNAL", false}, probe.Options{}, "11:unknown 13:unknown 1:pass 25:unknown 3:fail 6:pass 9:pass"},
		{"old versions", fake{old, "EXTERNAL", false}, client, "11:pass 13:pass 1:pass 25:unknown 3:pass 6:fail 9:pass"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := verdicts(t, c.f.listen(t), c.o); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
		})
	}
	if _, err := probe.Probe(t.Context(), "127.0.0.1:1", probe.Options{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody is there: %v", err)
	}
}

// TestOurs holds our own listener against the rules.
func TestOurs(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: &amqp.Protocol{Logger: slog.New(slog.DiscardHandler)}})
	})
	cert := s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})
	if got := verdicts(t, s.Addr("amqp").String(), probe.Options{Certificate: &cert}, "1", "6", "11", "13", "3"); got != "11:pass 13:pass 1:pass 3:fail 6:pass" {
		// Who has no certificate is greeted, so that the refusal says what is missing.
		t.Error(got)
	}
}

// free are ports that nobody has.
func free(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // when all are known, so that each is another
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// TestRabbitMQ asks a real one, first as it comes and then hardened.
func TestRabbitMQ(t *testing.T) {
	const server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	if _, err := os.Stat(server); err != nil {
		t.Skip("RabbitMQ is missing: install rabbitmq-server")
	}
	p := newPKI(t, 100*24*time.Hour)
	for _, c := range []struct {
		name, rules       string
		settings, plugins string
		o                 probe.Options
		want              string
	}{
		{"as it comes", "1 3 11 13", "listeners.tcp = none\nssl_options.verify = verify_none\n", "[].", probe.Options{}, "11:fail 13:warn 1:pass 3:fail"},
		{"hardened", "1 3 6 11 13", "listeners.tcp = none\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\nauth_mechanisms.1 = EXTERNAL\nssl_options.versions.1 = tlsv1.3\nssl_options.versions.2 = tlsv1.2\n", "[rabbitmq_auth_mechanism_ssl].", probe.Options{Certificate: &p.client}, "11:pass 13:pass 1:pass 3:pass 6:pass"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ports := free(t, 3)
			write := func(name, text string) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
			addr := "127.0.0.1:" + ports[0]
			config := write("rabbitmq.conf", c.settings+fmt.Sprintf("listeners.ssl.1 = %s\nssl_options.cacertfile = %[2]s/ca.pem\nssl_options.certfile = %[2]s/broker.pem\nssl_options.keyfile = %[2]s/broker.key\ndisk_free_limit.absolute = 1MB\n", addr, p.dir))
			run := func(env []string, name string, args ...string) {
				cmd := exec.Command(name, args...)
				cmd.Env = append(os.Environ(), env...)
				cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
				log, err := os.Create(filepath.Join(dir, filepath.Base(name)+".log"))
				if err != nil {
					t.Fatal(err)
				}
				cmd.Stdout, cmd.Stderr = log, log
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
					_ = cmd.Wait()
					_ = log.Close()
				})
			}
			run(nil, "epmd", "-port", ports[2], "-address", "127.0.0.1")
			run([]string{"HOME=" + dir, "RABBITMQ_NODENAME=probe@localhost", "RABBITMQ_MNESIA_BASE=" + dir + "/mnesia", "RABBITMQ_LOG_BASE=" + dir, "RABBITMQ_CONFIG_FILE=" + config,
				"RABBITMQ_ENABLED_PLUGINS_FILE=" + write("plugins", c.plugins), "RABBITMQ_PID_FILE=" + dir + "/pid", "RABBITMQ_DIST_PORT=" + ports[1], "ERL_EPMD_PORT=" + ports[2],
				"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-start_epmd false", "RABBITMQ_CONF_ENV_FILE=/dev/null", "RUNNING_UNDER_SYSTEMD=1"}, server)
			if !await.True(time.Minute, func() bool {
				conn, err := net.DialTimeout("tcp", addr, time.Second)
				if err == nil {
					conn.Close()
				}
				return err == nil
			}) {
				t.Fatal("RabbitMQ does not listen")
			}
			if got := verdicts(t, addr, c.o, strings.Fields(c.rules)...); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
		})
	}
}
