// Package proxytest runs the programs of package proxy for tests: each as a process of
// the test, on a loopback port, in a directory of its own, and without privileges.
package proxytest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert/proxy"
)

// patience is how long a slow machine may need to start or stop a program.
const patience = time.Minute

// Pair makes a certificate for names, signed by itself, with a new key and serial.
func Pair(t testing.TB, id string, names ...string) proxy.Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, key, id, names)
}

// Weak makes one whose RSA key is so short that OpenSSL refuses it, in its default of
// Debian.
func Weak(t testing.TB, id string, names ...string) proxy.Pair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, key, id, names)
}

func sign(t testing.TB, key crypto.Signer, id string, names []string) proxy.Pair {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: id},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return proxy.Pair{
		ID:    id,
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
}

// A Server is a program that runs until the test ends. NGINX, HAProxy and Caddy make
// one.
type Server struct {
	// Options make a proxy.Proxy of it.
	Options proxy.Options
	// Addr is where it speaks TLS.
	Addr string
	// Dir is its own, for what a configuration needs.
	Dir string

	t      testing.TB
	argv   []string
	as     *syscall.Credential
	cmd    *exec.Cmd
	exited chan struct{}
	log    output
}

// output can be read while a program writes it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// NGINX starts nginx, in whose one server all certificates are served, by the map. It
// skips the test if there is no nginx.
func NGINX(t testing.TB, first ...proxy.Pair) *Server {
	t.Helper()
	s := prepare(t, "nginx")
	s.Options.Config = filepath.Join(s.Dir, "nginx.conf")
	s.argv = []string{s.Options.Binary, "-c", s.Options.Config}
	s.Configure(s.NGINXConfig(fmt.Sprintf("include %s/current/map.conf;", s.Options.Dir), "$fleetbus_certificate"))
	s.begin(first)
	return s
}

// NGINXConfig is a configuration with one server for the certificate of that path, and
// extra in its http block.
func (s *Server) NGINXConfig(extra, certificate string) string {
	return fmt.Sprintf(`daemon off;
pid %[1]s/nginx.pid;
error_log stderr notice;
worker_processes 2;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	%[3]s
	server {
		listen %[2]s ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[4]s;
		return 204;
	}
}
`, s.Dir, s.Addr, extra, certificate)
}

// HAProxy starts HAProxy as a master with a worker, with an admin socket and a master
// socket. It skips the test if there is no HAProxy.
func HAProxy(t testing.TB, first ...proxy.Pair) *Server {
	t.Helper()
	s := prepare(t, "haproxy")
	s.Options.Config = filepath.Join(s.Dir, "haproxy.cfg")
	s.Options.Socket = filepath.Join(s.Dir, "admin.sock")
	s.Options.Reload.Socket = filepath.Join(s.Dir, "master.sock")
	s.argv = []string{s.Options.Binary, "-W", "-f", s.Options.Config, "-S", s.Options.Reload.Socket}
	s.Configure(fmt.Sprintf(`global
	stats socket %s mode 600 level admin
defaults
	mode http
	timeout connect 5s
	timeout client 5s
	timeout server 5s
frontend all
	bind %s ssl crt %s/current
	http-request return status 204
`, s.Options.Socket, s.Addr, s.Options.Dir))
	s.begin(first)
	return s
}

// Caddy starts Caddy, which asks for every certificate: the proxy.Proxy of its Options
// has to be there in time. It skips the test if there is no Caddy.
func Caddy(t testing.TB) *Server {
	t.Helper()
	s := prepare(t, "caddy")
	s.Options.Listen = "127.0.0.1:0"
	s.Options.Config = filepath.Join(s.Dir, "Caddyfile")
	s.argv = []string{s.Options.Binary, "run", "--adapter", "caddyfile", "--config", s.Options.Config}
	_, port, _ := net.SplitHostPort(s.Addr)
	s.Configure(fmt.Sprintf(`{
	admin off
	auto_https disable_redirects
	skip_install_trust
	storage file_system %s/storage
}
https://:%s {
	bind 127.0.0.1
	tls {
		import %s/get_certificate
	}
	respond 204
}
`, s.Dir, port, s.Options.Dir))
	return s
}

// prepare finds the program, a directory and a port.
func prepare(t testing.TB, kind string) *Server {
	t.Helper()
	s := &Server{t: t, Options: proxy.Options{Kind: kind}}
	for _, name := range []string{kind, "/usr/sbin/" + kind} {
		if path, err := exec.LookPath(name); err == nil {
			s.Options.Binary = path
		}
	}
	if s.Options.Binary == "" {
		t.Skipf("%s is not installed here", kind)
	}
	var err error
	if s.Dir, err = os.MkdirTemp("", kind+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.Dir) })
	s.Options.Dir = filepath.Join(s.Dir, "certificates")
	if os.Getuid() == 0 {
		s.become("nobody")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = ln.Addr().String()
	ln.Close()
	return s
}

// become has the program run as a user without privileges, whose group may read the
// certificates.
func (s *Server) become(name string) {
	s.t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		s.t.Fatal(err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		s.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	s.Options.Group = g.Name
	if err := os.Chown(s.Dir, uid, gid); err != nil {
		s.t.Fatal(err)
	}
}

// Configure writes the program's configuration.
func (s *Server) Configure(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.Options.Config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// begin installs what there has to be before the program starts, and starts it.
func (s *Server) begin(first []proxy.Pair) {
	s.t.Helper()
	o := s.Options
	o.Socket, o.Reload = "", proxy.Reload{Command: []string{"true"}}
	p, err := proxy.New(o)
	if err == nil {
		err = errors.Join(p.Install(s.t.Context(), first), p.Close())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.Start()
}

// Start starts the program and waits until it listens.
func (s *Server) Start() {
	s.t.Helper()
	if s.Options.Kind == "nginx" {
		s.ownPIDFile()
	}
	s.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	s.cmd.Dir = s.Dir
	s.cmd.Env = append(os.Environ(), "HOME="+s.Dir, "XDG_CONFIG_HOME="+s.Dir, "XDG_DATA_HOME="+s.Dir)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		_ = cmd.Wait() // it is stopped by a signal
		close(exited)
	}()
	s.t.Cleanup(func() { stop(s.t, cmd, exited) })
	for deadline := time.Now().Add(patience); ; {
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-exited:
			s.t.Fatalf("%s ended: %s", s.Options.Kind, s.Log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s does not listen: %s", s.Options.Kind, s.Log())
		}
	}
}

// ownPIDFile makes the file before nginx -t does so for root, whose it would be.
func (s *Server) ownPIDFile() {
	s.t.Helper()
	path := filepath.Join(s.Dir, "nginx.pid")
	err := os.WriteFile(path, nil, 0o644)
	if err == nil && s.as != nil {
		err = os.Chown(path, int(s.as.Uid), int(s.as.Gid))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Stop ends the program and waits for it. Start starts it again.
func (s *Server) Stop() {
	s.t.Helper()
	stop(s.t, s.cmd, s.exited)
}

func stop(t testing.TB, cmd *exec.Cmd, exited chan struct{}) {
	t.Helper()
	select {
	case <-exited:
	default:
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	}
	select {
	case <-exited:
	case <-time.After(patience):
		t.Errorf("%s did not end when it was asked to", cmd.Path)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind
}

// Log is what the program said.
func (s *Server) Log() string { return strings.TrimSpace(s.log.String()) }
