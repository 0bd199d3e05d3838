package certmanager_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// A process is what a manager in a process of its own is told.
type process struct {
	URL, CA, Creds, Key, Nameserver string
}

const processVariable = "CERTMANAGER_PROCESS"

// TestProcess is a manager in a process of its own, which TestKilledProcesses starts and
// kills.
func TestProcess(t *testing.T) {
	text := os.Getenv(processVariable)
	if text == "" {
		return
	}
	var p process
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(p.URL, nats.RootCAs(p.CA), admin.UserCredentials(p.Creds))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := certmanager.New(certmanager.Options{
		Name: "killed", Key: func(context.Context) (*cert.ManagerKey, error) { return cert.ParseManagerKey(p.Key) },
		Issuers: map[string]certmanager.OpenIssuer{"acme": openACME(p.Nameserver)}, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Every: 200 * time.Millisecond, Lease: 4 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), nc); err != nil {
		t.Error(err)
	}
}

// TestKilledProcesses kills processes with managers at any request to the authority,
// before that has heard it and after. In the end there is a certificate for each name, and
// there was one order for each.
func TestKilledProcesses(t *testing.T) {
	r := newRig(t)
	r.dial() // who may do what managers may
	r.server.User(admin.UserRequest{Name: "acme/killed", Role: identity.RoleCertManager})
	told, err := json.Marshal(process{r.server.URL(), r.server.Founded().CA, r.server.Creds("acme", "killed"), r.key.Text(), r.a.DNS.Addr})
	if err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	start := func() {
		cmd = exec.Command(os.Args[0], "-test.run=^TestProcess$")
		cmd.Env = append(os.Environ(), processVariable+"="+string(told))
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	end := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}
	start()
	defer func() { end() }()
	r.configure(r.client())
	chain, leaf := oldLeaf(t)
	var ids []string
	for range 6 {
		killed, process := make(chan struct{}), cmd.Process
		fault := certmanagertest.Fault{Every: 1 + rand.IntN(30), Times: 1, Late: rand.IntN(2) == 0, Answer: func(w http.ResponseWriter, r *http.Request) {
			_ = process.Kill()
			close(killed)
			certmanagertest.Drop()(w, r)
		}}
		stop := r.a.Fail(fault)
		for range 3 {
			ids = append(ids, r.old(fmt.Sprintf("n%d.example.test", len(ids)), chain, leaf))
		}
		select {
		case <-killed:
		case <-time.After(time.Minute):
			t.Fatalf("no manager came to request %d", fault.Every)
		}
		end()
		stop()
		start()
	}
	fleetbustest.Eventually(t, "all are renewed", func() error {
		for _, id := range ids {
			if record, ok := r.state.Record("web", id); !ok || record.Current.Generation != 2 {
				return fmt.Errorf("%s: %+v", id, record)
			}
		}
		return nil
	})
	if placed, issued := r.a.Orders(), r.a.Issued(); placed != len(ids) || issued != len(ids) {
		t.Errorf("%d orders were placed and %d certificates issued for %d", placed, issued, len(ids))
	}
}
