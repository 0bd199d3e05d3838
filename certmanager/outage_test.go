//go:build linux

package certmanager_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// An outage is one of the ledger, while all managers of a fleet issue.
type outage struct {
	t     *testing.T
	a     *certmanagertest.Authority
	nodes []*fleetbustest.Server
}

const outageLease = 2 * time.Second

func newOutage(t *testing.T, nodes int, edit func(*fleetbus.Options)) *outage {
	t.Helper()
	o := &outage{t: t, a: certmanagertest.NewAuthority(t, certmanagertest.Options{})}
	o.nodes = fleetbustest.StartCluster(t, nodes, func(options *fleetbus.Options) {
		edit(options)
		options.Accounts = []string{"acme"}
		options.CertManager = func(node string, key *cert.ManagerKey, log *slog.Logger) (fleetbus.Service, error) {
			return certmanager.New(certmanager.Options{
				Name: node, Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil },
				Issuers: map[string]certmanager.OpenIssuer{"acme": openACME(o.a.DNS.Addr)}, Logger: log,
				Every: 200 * time.Millisecond, Lease: outageLease,
			})
		}
	})
	return o
}

// run has certificates ordered and not proved, has the ledger lost for longer than a lease,
// and given back. Each is obtained then, by one order.
func (o *outage) run(lose, giveBack func()) {
	t := o.t
	t.Helper()
	nc, err := o.nodes[0].Connect(o.nodes[0].Founded().AdminCreds)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := certmanager.NewAdminClient(nc, "acme")
	config, err := json.Marshal(acmeSettings(o.a))
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "managers are configured", func() error {
		_, err := c.UpdateConfig(t.Context(), config)
		return err
	})
	o.copied()
	const n = 9
	for i := range n {
		o.a.DNS.Hide(fmt.Sprintf("_acme-challenge.n%d.example.test", i))
		if _, err := c.Make(t.Context(), certmanager.MakeRequest{Policy: cert.Policy{Names: []string{fmt.Sprintf("n%d.example.test", i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	fleetbustest.Eventually(t, "all are ordered", func() error {
		if placed := o.a.Orders(); placed < n {
			return fmt.Errorf("%d are", placed)
		}
		return nil
	})
	lose()
	<-time.After(2 * outageLease) // so that every lease is over, which is what is tested
	for i := range n {
		o.a.DNS.Show(fmt.Sprintf("_acme-challenge.n%d.example.test", i))
	}
	giveBack()
	fleetbustest.Eventually(t, "all are obtained", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		all, err := c.Certificates(ctx, "")
		for _, r := range all {
			if r.Current == nil {
				err = errors.Join(err, fmt.Errorf("%s is not: %+v %+v", r.Policy.Names[0], r.Lease, r.Failure))
			}
		}
		if len(all) != n {
			err = errors.Join(err, fmt.Errorf("%d of %d are there", len(all), n))
		}
		return err
	})
	if placed, issued := o.a.Orders(), o.a.Issued(); placed != n || issued != n {
		t.Errorf("%d orders were placed and %d certificates issued for %d", placed, issued, n)
	}
}

// copied waits until every node has a copy of the ledgers.
func (o *outage) copied() {
	t := o.t
	t.Helper()
	if len(o.nodes) == 1 {
		return
	}
	o.nodes[0].User(admin.UserRequest{Name: "acme/watch", Role: identity.RoleCertManager})
	js, err := jetstream.New(o.nodes[0].Dial("acme", "watch"))
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); ; <-tick.C { // a fleet that is busy takes its time
		copies := len(o.nodes)
		var err error
		for _, name := range []string{cert.Stream, cert.ReportStream} {
			has := 1
			var stream jetstream.Stream
			if stream, err = js.Stream(t.Context(), name); err == nil {
				for _, r := range stream.CachedInfo().Cluster.Replicas {
					if r.Current {
						has++
					}
				}
			}
			copies = min(copies, has)
		}
		if copies == len(o.nodes) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d nodes have a copy of the ledger: %v", copies, len(o.nodes), err)
		}
	}
}

// TestQuorumLost stops two nodes of three.
func TestQuorumLost(t *testing.T) {
	o := newOutage(t, 3, func(*fleetbus.Options) {})
	o.run(func() {
		o.nodes[1].Stop()
		o.nodes[2].Stop()
	}, func() {
		o.nodes[1].Restart()
		o.nodes[2].Restart()
	})
}

// TestDiskFull has somebody else take the disk of the only node.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=96m"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		fleetbustest.Eventually(t, "the disk is let go", func() error { return syscall.Unmount(disk, 0) })
	})
	o := newOutage(t, 1, func(options *fleetbus.Options) {
		options.Dir, options.Store.Reserve = filepath.Join(disk, "data"), 16<<20
	})
	thief := filepath.Join(disk, "somebody-elses")
	o.run(func() {
		if err := os.WriteFile(thief, make([]byte, 85<<20), 0o600); !errors.Is(err, syscall.ENOSPC) && err != nil {
			t.Fatal(err)
		}
	}, func() {
		if err := os.Remove(thief); err != nil {
			t.Fatal(err)
		}
	})
}
