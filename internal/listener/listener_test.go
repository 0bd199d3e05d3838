package listener

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// settings are those of a server with a certificate that it signed itself, which asks for
// one.
func settings(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
}

// TestLongHandshake has clients say more than a handshake has: the listener reads so much,
// tells so much of it, and takes those that are as they should be.
func TestLongHandshake(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	refused := make(chan error, 10)
	config := settings(t)
	w, err := Listen(ctx, Options{
		Name: "x", Addr: "127.0.0.1:0", TLS: config, Handshakes: 4, Timeout: 20 * time.Second, Logger: slog.New(slog.DiscardHandler),
		Refused: func(_, _ string, err error) { refused <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", w.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// A hello of 60,000 bytes, which the library would wait for.
	hello := []byte{1, 0, 0xea, 0x60}
	hello = append(hello, make([]byte, 50_000)...)
	var records bytes.Buffer
	for rest := hello; len(rest) > 0; {
		n := min(len(rest), 16<<10)
		records.Write([]byte{22, 3, 1, byte(n >> 8), byte(n)})
		records.Write(rest[:n])
		rest = rest[n:]
	}
	conn := dial()
	_, _ = conn.Write(records.Bytes()) // it may be closed before the end
	if err := <-refused; !errors.Is(err, errTalkative) {
		t.Errorf("a long hello was refused for: %v", err)
	}
	// A chain of 100,000 bytes.
	chain := tls.Certificate{PrivateKey: config.Certificates[0].PrivateKey, Certificate: [][]byte{config.Certificates[0].Certificate[0], make([]byte, 50_000), make([]byte, 50_000)}}
	_ = tls.Client(dial(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{chain}}).Handshake()
	if err := <-refused; !errors.Is(err, errTalkative) {
		t.Errorf("a long chain was refused for: %v", err)
	}
	// One that is as it should be may say as much as it likes afterwards.
	secure := tls.Client(dial(), &tls.Config{InsecureSkipVerify: true})
	go func() { _, _ = secure.Write(make([]byte, 10*handshakeBytes)) }()
	in, err := w.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.ReadFull(in, make([]byte, 10*handshakeBytes)); err != nil {
		t.Errorf("reading after the handshake: %v", err)
	}
	if text := clip(errors.New(strings.Repeat("a", 10_000))).Error(); len(text) > longest+10 {
		t.Errorf("%d bytes are told", len(text))
	}
}
