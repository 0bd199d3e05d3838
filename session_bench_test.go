package fleetbus_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
)

// benchTimeout bounds the start of a server and every single wait below.
const benchTimeout = 30 * time.Second

// benchPayload is the size of every message, in bytes.
const benchPayload = 256

// benchServer runs a bus within the process, on whose account "bench" sessions
// can be opened.
func benchServer(b *testing.B) *fleetbus.Server {
	b.Helper()
	srv, err := fleetbus.New(fleetbus.Options{Mode: fleetbus.Local, Dir: b.TempDir(), Accounts: []string{"bench"}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	select {
	case <-srv.Ready():
	case err := <-ended:
		ended <- nil
		b.Fatal(err)
	case <-time.After(benchTimeout):
		b.Fatalf("the server was not ready in %v", benchTimeout)
	}
	return srv
}

func benchSession(b *testing.B, srv *fleetbus.Server, name string) *fleetbus.Session {
	b.Helper()
	session, err := srv.Session(b.Context(), identity.Principal{Account: "bench", Name: name})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(session.Close)
	return session
}

// BenchmarkSession opens and closes a session: what a login of a foreign
// protocol costs besides its credentials.
func BenchmarkSession(b *testing.B) {
	srv := benchServer(b)
	b.ReportAllocs()
	for b.Loop() {
		session, err := srv.Session(b.Context(), identity.Principal{Account: "bench", Name: "one"})
		if err != nil {
			b.Fatal(err)
		}
		session.Close()
	}
}

// BenchmarkPublish sends messages from one session to another.
func BenchmarkPublish(b *testing.B) {
	srv := benchServer(b)
	from, to := benchSession(b, srv, "from"), benchSession(b, srv, "to")
	const window = 1 << 10
	permits := make(chan struct{}, window)
	if _, err := to.Subscribe("subject", func(*nats.Msg) { <-permits }); err != nil {
		b.Fatal(err)
	}
	if err := to.FlushTimeout(benchTimeout); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, benchPayload)
	b.SetBytes(benchPayload)
	for b.Loop() {
		permits <- struct{}{}
		if err := from.Publish("subject", payload); err != nil {
			b.Fatal(err)
		}
	}
	// All have arrived when every permit is free again.
	deadline := time.After(benchTimeout)
	for range window {
		select {
		case permits <- struct{}{}:
		case <-deadline:
			b.Fatal("a message did not arrive")
		}
	}
}

// BenchmarkRequest waits for the answer of another session.
func BenchmarkRequest(b *testing.B) {
	srv := benchServer(b)
	from, to := benchSession(b, srv, "from"), benchSession(b, srv, "to")
	if _, err := to.Subscribe("subject", func(m *nats.Msg) {
		if err := m.Respond(m.Data); err != nil {
			b.Error(err)
		}
	}); err != nil {
		b.Fatal(err)
	}
	if err := to.FlushTimeout(benchTimeout); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, benchPayload)
	for b.Loop() {
		if _, err := from.Request("subject", payload, benchTimeout); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStore waits until a message is on disk.
func BenchmarkStore(b *testing.B) {
	srv := benchServer(b)
	session := benchSession(b, srv, "one")
	js, err := jetstream.New(session.Conn)
	if err != nil {
		b.Fatal(err)
	}
	config := jetstream.StreamConfig{Name: "STREAM", Subjects: []string{"subject"}, Storage: jetstream.FileStorage}
	if _, err := js.CreateStream(b.Context(), config); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, benchPayload)
	for b.Loop() {
		if _, err := js.Publish(b.Context(), "subject", payload); err != nil {
			b.Fatal(err)
		}
	}
}
