package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// unprivilegedCommand: unprivileged DIR AS sets DIR to a directory that everybody can
// see, with a directory "run" of a user without privileges in it, and AS to a program
// that runs another as that user.
func unprivilegedCommand(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "fleetbus-proxy-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	ts.Check(os.Chmod(dir, 0o755))
	ts.Check(os.Mkdir(filepath.Join(dir, "run"), 0o755))
	as := ""
	if os.Getuid() == 0 {
		u, err := user.Lookup("nobody")
		ts.Check(err)
		uid, err := strconv.Atoi(u.Uid)
		ts.Check(err)
		gid, err := strconv.Atoi(u.Gid)
		ts.Check(err)
		ts.Check(os.Chown(filepath.Join(dir, "run"), uid, gid))
		as = fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups", uid, gid)
	}
	path := filepath.Join(dir, "as")
	// The user may not see the directory of the script.
	ts.Check(os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\ncd %s\nexec %s \"$@\"\n", dir, as), 0o755))
	ts.Setenv(args[0], dir)
	ts.Setenv(args[1], path)
}

type clientsKey struct{}

// handshakes are those of clients that go on until they are told to stop.
type handshakes struct {
	end func()
	all sync.WaitGroup

	mu     sync.Mutex
	done   int
	failed []string
}

// handshakesCommand: handshakes ID NAME ADDRESS ROOTS has clients shake hands for a name
// at an address, one after the other, with a server that has to be vouched for by one of
// the roots of a file.
func handshakesCommand(ts *testscript.TestScript, _ bool, args []string) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile(args[3]))) {
		ts.Fatalf("%s has no certificate", args[3])
	}
	stop := make(chan struct{})
	h := &handshakes{}
	h.end = sync.OnceFunc(func() {
		close(stop)
		h.all.Wait()
	})
	ts.Value(clientsKey{}).(map[string]*handshakes)[args[0]] = h
	ts.Defer(h.end)
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: args[1]}
	for range 2 {
		h.all.Go(func() { h.shake(stop, config, args[2]) })
	}
}

func (h *handshakes) shake(stop <-chan struct{}, config *tls.Config, addr string) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return
		case <-pace.C:
		}
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", addr, config)
		if err == nil {
			err = conn.Close()
		}
		h.mu.Lock()
		if h.done++; err != nil {
			h.failed = append(h.failed, time.Now().Format(time.TimeOnly)+" "+err.Error())
		}
		h.mu.Unlock()
	}
}

// heldCommand: held ID N ends those handshakes: none may have failed, of N at least.
func heldCommand(ts *testscript.TestScript, _ bool, args []string) {
	h := ts.Value(clientsKey{}).(map[string]*handshakes)[args[0]]
	least, err := strconv.Atoi(args[1])
	ts.Check(err)
	h.end()
	ts.Logf("%d handshakes, %d failed", h.done, len(h.failed))
	if h.done < least || len(h.failed) > 0 {
		ts.Fatalf("of %d handshakes failed %d: %q", h.done, len(h.failed), h.failed[:min(len(h.failed), 5)])
	}
}
