package mysql

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
)

// patience is how long a slow machine may need to start or stop the server.
const patience = time.Minute

// password is that of the user who reads the log, and is to be seen nowhere.
const password = "planted-password-4711"

// unsynced has MariaDB leave it to the machine, which stays on, to write to the disk.
func unsynced() []string { return []string{"--debug-no-sync", "--innodb-flush-method=nosync"} }

// mariaDB is a server of the test's own, on a socket.
type mariaDB struct {
	t        testing.TB
	dir      string
	settings []string
	as       *syscall.SysProcAttr
	cmd      *exec.Cmd
	exited   chan struct{}
	log      bytes.Buffer
	dsn      string // of the user who reads the log, with database app
	db       *sql.DB
}

// startMariaDB starts a server whose log is right but for settings, with a
// database app and a user who may read.
func startMariaDB(t testing.TB, settings ...string) *mariaDB {
	t.Helper()
	for _, program := range []string{"mariadbd", "mariadb-install-db"} {
		if _, err := find(program); err != nil {
			t.Skip("MariaDB is missing: Debian's package mariadb-server has it")
		}
	}
	// The server's user has to reach it, and a socket's path is short.
	dir, err := os.MkdirTemp("", "maria-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &mariaDB{t: t, dir: dir, settings: settings}
	name := ""
	if os.Getuid() == 0 {
		name = s.become()
	}
	args := []string{"--no-defaults", "--datadir=" + filepath.Join(dir, "data"), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"}
	if name != "" {
		args = append(args, "--user="+name)
	}
	install := s.command("mariadb-install-db", append(args, unsynced()...)...)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
	s.dsn = "reader:" + password + "@unix(" + filepath.Join(dir, "s") + ")/app"
	config, err := driver.ParseDSN("root@unix(" + filepath.Join(dir, "s") + ")/?multiStatements=true")
	if err != nil {
		t.Fatal(err)
	}
	config.Logger = &driver.NopLogger{}
	connector, err := driver.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	s.db = sql.OpenDB(connector)
	t.Cleanup(func() { s.db.Close() })
	s.start()
	t.Cleanup(s.kill)
	s.exec("CREATE DATABASE app", "CREATE USER reader@localhost IDENTIFIED BY '"+password+"'",
		"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO reader@localhost", "GRANT SELECT ON app.* TO reader@localhost")
	return s
}

func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", program))
}

// become has the server run as another user than root.
func (s *mariaDB) become() string {
	for _, name := range []string{"mysql", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(s.dir, uid, gid); err != nil {
			s.t.Fatal(err)
		}
		s.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return name
	}
	s.t.Skip("MariaDB does not run as root, and there is no user mysql or nobody")
	return ""
}

func (s *mariaDB) command(program string, args ...string) *exec.Cmd {
	path, err := find(program)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, s.as
	return cmd
}

// start starts the server, also after kill.
func (s *mariaDB) start() {
	s.t.Helper()
	args := append([]string{"--no-defaults", "--datadir=" + filepath.Join(s.dir, "data"), "--socket=" + filepath.Join(s.dir, "s"), "--skip-networking",
		"--log-bin=binlog", "--binlog-format=ROW", "--server-id=7", "--sync-binlog=1", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2",
		"--pid-file=" + filepath.Join(s.dir, "pid"), "--character-set-server=utf8mb4"}, append(unsynced(), s.settings...)...)
	s.cmd = s.command("mariadbd", args...)
	s.log.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), s.cmd
	s.exited = exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	deadline := time.After(patience)
	for s.db.PingContext(s.t.Context()) != nil {
		select {
		case <-deadline:
			s.kill()
			s.t.Fatalf("MariaDB does not answer:\n%s", s.log.String())
		case <-exited:
			s.t.Fatalf("MariaDB ended:\n%s", s.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill ends the server as a power cut would.
func (s *mariaDB) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// exec runs statements, one by one, in database app.
func (s *mariaDB) exec(statements ...string) {
	s.t.Helper()
	conn := s.conn()
	defer conn.Close()
	for _, statement := range statements {
		if _, err := conn.ExecContext(s.t.Context(), statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
}

// conn is a session of root in database app, if there is one.
func (s *mariaDB) conn() *sql.Conn {
	s.t.Helper()
	conn, err := s.db.Conn(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := conn.ExecContext(s.t.Context(), "USE app"); err != nil {
		var refused *driver.MySQLError
		if !errors.As(err, &refused) || refused.Number != unknownDatabase {
			s.t.Fatal(err)
		}
	}
	return conn
}

// value is that of an expression.
func (s *mariaDB) value(expression string) (value string) {
	s.t.Helper()
	if err := s.db.QueryRowContext(s.t.Context(), "SELECT "+expression).Scan(&value); err != nil {
		s.t.Fatal(err)
	}
	return value
}

// relay gives a socket an address on the loopback interface.
func relay(t testing.TB, socket string) (host string, port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", socket)
			if err != nil {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				}()
			}
		}
	}()
	address := ln.Addr().(*net.TCPAddr)
	return address.IP.String(), address.Port
}

// certificate is one for a server of that name, in files that anybody can read.
func certificate(t testing.TB, name string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "maria-tls-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return cert, key, pool
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func source(t testing.TB, o Options) *Source {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func begun(w *changetest.Watch) {
	w.Await("the first resync", func(n change.Notice) bool {
		return n.Kind == change.Resync && n.Key == nil && n.Reason == change.Announced
	})
}
