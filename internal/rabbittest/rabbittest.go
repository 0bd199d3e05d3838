// Package rabbittest runs a RabbitMQ of a test's own, with a registry of names of its own,
// on ports and in a directory of its own.
package rabbittest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// programs is where they are; those on the path change who they run as.
const programs = "/usr/lib/rabbitmq/bin/"

// patience is how long a start may take on a busy machine.
const patience = 2 * time.Minute

// A Server is a RabbitMQ that runs. Start makes it.
type Server struct {
	// Addr is where it listens in plain text, and TLSAddr where with TLS, for clients
	// that have a certificate, by which they may log in.
	Addr, TLSAddr string
	// CA, Cert and Key are files: the authority of its certificate, and a certificate for
	// the user "link" with its key.
	CA, Cert, Key string

	t   testing.TB
	dir string
	env []string
	cmd *exec.Cmd
}

// Start starts one, and skips the test if there is none on this machine. Its user guest
// may do everything.
func Start(t testing.TB) *Server {
	t.Helper()
	for _, program := range []string{programs + "rabbitmq-server", "epmd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("RabbitMQ is missing: %v", err)
		}
	}
	s := &Server{t: t, dir: t.TempDir(), Addr: loopback.Addr(t), TLSAddr: loopback.Addr(t)}
	s.certificates()
	registry := strconv.Itoa(loopback.Port(t))
	config := fmt.Sprintf(`listeners.tcp.1 = %s
listeners.ssl.1 = %s
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
disk_free_limit.absolute = 50MB
log.console = true
log.file = false
`, s.Addr, s.TLSAddr, s.CA, s.file("server.crt"), s.file("server.key"))
	s.write("rabbit.conf", []byte(config))
	s.write("plugins", []byte("[rabbitmq_auth_mechanism_ssl].\n"))
	s.env = append(os.Environ(), "HOME="+s.dir, "RABBITMQ_NODENAME=n@localhost", "RABBITMQ_MNESIA_BASE="+s.file("data"), "RABBITMQ_LOG_BASE="+s.file("log"),
		"RABBITMQ_CONFIG_FILE="+s.file("rabbit.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE="+s.file("plugins"), "RABBITMQ_PID_FILE="+s.file("pid"),
		"RABBITMQ_DIST_PORT="+strconv.Itoa(loopback.Port(t)), "ERL_EPMD_PORT="+registry, "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-start_epmd false",
		"RABBITMQ_CONF_ENV_FILE=/dev/null", "RUNNING_UNDER_SYSTEMD=1")
	epmd := s.start("epmd", "-port", registry, "-address", "127.0.0.1")
	t.Cleanup(func() { kill(epmd) })
	t.Cleanup(s.Kill)
	s.Run()
	return s
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.file(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// certificates makes an authority, and certificates for the server and the user link.
func (s *Server) certificates() {
	s.t.Helper()
	now := time.Now()
	authority, _, err := identity.NewAuthority("rabbit", now)
	if err != nil {
		s.t.Fatal(err)
	}
	s.CA, s.Cert, s.Key = s.file("ca.pem"), s.file("link.crt"), s.file("link.key")
	s.write("ca.pem", authority.ClientsPEM())
	for name, issue := range map[string]func(*x509.CertificateRequest) ([]byte, error){
		"server": func(csr *x509.CertificateRequest) ([]byte, error) {
			_, server, err := authority.SignNode(csr, "rabbit", []string{"127.0.0.1"}, time.Hour, now)
			return server, err
		},
		"link": func(csr *x509.CertificateRequest) ([]byte, error) {
			return authority.SignUser(csr, "rabbit", "link", time.Hour, now)
		},
	} {
		key, err := identity.NewKey()
		if err != nil {
			s.t.Fatal(err)
		}
		csr, err := identity.NewCSR(key)
		if err != nil {
			s.t.Fatal(err)
		}
		chain, err := issue(csr)
		if err != nil {
			s.t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			s.t.Fatal(err)
		}
		s.write(name+".crt", chain)
		s.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
}

func (s *Server) start(program string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Dir = s.env, s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := os.OpenFile(s.file("out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// kill kills a program and what it has started.
func kill(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
}

// Run starts a server that was killed, and returns when it takes clients.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = s.start(programs + "rabbitmq-server")
	if !await.True(patience, func() bool {
		c, err := amqp091.DialConfig("amqp://guest:guest@"+s.Addr+"/", amqp091.Config{Dial: dial})
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	}) {
		out, _ := os.ReadFile(s.file("out"))
		s.t.Fatalf("RabbitMQ does not start:\n%s", out)
	}
}

func dial(network, addr string) (net.Conn, error) {
	nc, err := net.DialTimeout(network, addr, time.Second)
	if err == nil {
		err = nc.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return nc, err
}

// Kill kills it, as a loss of power would.
func (s *Server) Kill() {
	if s.cmd != nil {
		kill(s.cmd)
		s.cmd = nil
	}
}

// Control runs rabbitmqctl, and returns what it prints.
func (s *Server) Control(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, programs+"rabbitmqctl", args...)
	cmd.Env, cmd.Dir = s.env, s.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("rabbitmqctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Dial connects as guest, in plain text. The connection is closed when the test ends.
func (s *Server) Dial() *amqp091.Connection {
	s.t.Helper()
	c, err := amqp091.Dial("amqp://guest:guest@" + s.Addr + "/")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// TLS is the configuration of a client that has the certificate of the user link.
func (s *Server) TLS() *tls.Config {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		s.t.Fatal(err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(ca)
	return config
}
