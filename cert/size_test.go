package cert_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxProgram is how large a program may be that serves certificates and does nothing
// else, in bytes.
const maxProgram = 8_000_000

// consumer is such a program.
const consumer = `package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
)

func run(ctx context.Context) error {
	key, err := cert.ReadTargetKey("target.key")
	if err != nil {
		return err
	}
	store, err := cert.Open(cert.Options{Key: key, Dir: "certs"})
	if err != nil {
		return err
	}
	nc, err := nats.Connect("tls://bus.example", nats.UserCredentials("target.creds"), nats.CustomInboxPrefix(key.Inbox()))
	if err != nil {
		return err
	}
	defer nc.Close()
	go func() { fmt.Fprintln(os.Stderr, store.Run(ctx, nc)) }()
	listener, err := net.Listen("tcp", ":443")
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_ = tls.Server(conn, store.TLSConfig(nil)).Handshake()
		}()
	}
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
`

// TestSize builds a program that serves certificates, as its users would, and weighs it.
func TestSize(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a program")
	}
	dir := must(os.MkdirTemp(".", ".size-"))(t) // in the module, for its dependencies
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(consumer), 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "consumer")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./"+filepath.Base(dir))
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if info := must(os.Stat(binary))(t); info.Size() > maxProgram {
		t.Errorf("a program that serves certificates has %d bytes, and %d are allowed", info.Size(), maxProgram)
	} else {
		t.Logf("%d bytes", info.Size())
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "./"+filepath.Base(dir))
	out := must(list.Output())(t)
	for _, bad := range []string{"nats-server", "certmagic", "acmez", "libdns", "miekg/dns", "go.uber.org/zap"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("it links %s", bad)
		}
	}
}
