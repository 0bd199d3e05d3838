package certmanager_test

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/acme"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
	"github.com/fleetbus/fleetbus/certmanager/dns"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/ledger"
)

// openACME opens an issuer as a program does, but for the nameserver.
func openACME(nameserver string) certmanager.OpenIssuer {
	return func(ctx context.Context, o certmanager.IssuerOptions) (certmanager.Issuer, error) {
		key, err := o.Keep(ctx, func(kept string) (string, error) {
			if kept != "" {
				return kept, nil
			}
			return acme.NewKey()
		})
		if err != nil {
			return nil, err
		}
		providers := map[string]acme.Provider{}
		for _, d := range o.DNS {
			if providers[d.Name], err = dns.New(d.Provider, d.Settings); err != nil {
				return nil, err
			}
		}
		return acme.New(acme.Config{
			Directory: o.Settings.Directory, Key: key, Roots: o.Settings.CA, Profile: o.Settings.Profile, Providers: providers,
			Resolvers: []string{nameserver}, Nameservers: []string{nameserver}, Interval: 50 * time.Millisecond,
		})
	}
}

func acmeSettings(a *certmanagertest.Authority) certmanager.Settings {
	dns, _ := json.Marshal(map[string]string{"server": a.DNS.Addr, "key_name": a.DNS.Key, "key": a.DNS.Secret})
	return certmanager.Settings{
		Issuers:  []certmanager.IssuerSettings{{Name: "pebble", Type: "acme", Directory: a.URL, CA: a.Trust, Profile: "default", PerHour: 100_000}},
		DNS:      []certmanager.DNSSettings{{Name: "test", Provider: "rfc2136", Settings: dns}},
		Defaults: certmanager.Defaults{Challenge: cert.Method{Type: "dns-01", Provider: "test"}},
	}
}

// A rig is a node, an authority and the managers of an account.
type rig struct {
	t       testing.TB
	server  *fleetbustest.Server
	a       *certmanagertest.Authority
	key     *cert.ManagerKey
	ledgers *cert.Ledgers
	state   *cert.State
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, server: fleetbustest.Start(t), a: certmanagertest.NewAuthority(t, certmanagertest.Options{Profiles: map[string]time.Duration{"default": 90 * 24 * time.Hour}})}
	var err error
	if r.key, err = cert.NewManagerKey("acme", []byte(strings.Repeat("s", 32))); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(r.dial())
	if err != nil {
		t.Fatal(err)
	}
	r.state = cert.NewState([]cert.Signer{r.key.Signer()}, nil)
	if r.ledgers, err = cert.OpenLedgers(t.Context(), js, r.state, ledger.FollowOptions{}); err != nil {
		t.Fatal(err)
	}
	r.background(r.ledgers.Run)
	return r
}

// dial connects as one who may do what managers may.
func (r *rig) dial() *nats.Conn {
	r.t.Helper()
	api := r.server.Admin()
	if _, err := api.AddAccount(r.t.Context(), admin.AccountRequest{Name: "acme"}); err != nil {
		r.t.Fatal(err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		r.t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := api.AddUser(r.t.Context(), admin.UserRequest{Name: "acme/manager", Role: identity.RoleCertManager, Key: public}); err != nil {
		r.t.Fatal(err)
	}
	return r.server.Dial("acme", "manager") // with a key of its own
}

func (r *rig) background(do func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		if err := do(ctx); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(func() {
		cancel()
		done.Wait()
	})
}

// manager runs a manager over a connection of its own.
func (r *rig) manager(name string) {
	r.t.Helper()
	m, err := certmanager.New(certmanager.Options{
		Name: name, Key: func(context.Context) (*cert.ManagerKey, error) { return r.key, nil },
		Issuers: map[string]certmanager.OpenIssuer{"acme": openACME(r.a.DNS.Addr)},
		Logger:  slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		Every:   time.Second, Lease: 30 * time.Second,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	nc := r.dial()
	r.background(func(ctx context.Context) error { return m.Run(ctx, nc) })
}

func (r *rig) client() *certmanager.Client {
	c := certmanager.NewClient(r.dial())
	c.Signer = r.key.Signer()
	return c
}

func (r *rig) configure(c *certmanager.Client) {
	r.t.Helper()
	config, err := json.Marshal(acmeSettings(r.a))
	if err != nil {
		r.t.Fatal(err)
	}
	fleetbustest.Eventually(r.t, "a manager is configured", func() error {
		_, err := c.UpdateConfig(r.t.Context(), config)
		if e := (*admin.Error)(nil); errors.As(err, &e) {
			r.t.Fatal(err)
		}
		return err
	})
}

// old writes a certificate that is due to be renewed.
func (r *rig) old(name string, chain string, leaf *x509.Certificate) string {
	r.t.Helper()
	id := cert.NewID()
	sum := sha256.Sum256(leaf.Raw)
	record := &cert.Record{Version: 1, ID: id, Group: "web", Event: cert.Obtained, Revision: 1, Policy: cert.Policy{Names: []string{name}}, Current: &cert.Bundle{
		Generation: 1, Names: []string{name}, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Issuer: "elsewhere", Chain: chain, Serial: leaf.SerialNumber.Text(16), Leaf: hex.EncodeToString(sum[:]), Key: cert.Sealed{To: "1"},
	}}
	data, err := r.key.Sign(cert.CertSubject("web", id), record)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.ledgers.Append(r.t.Context(), cert.CertSubject("web", id), 0, data); err != nil {
		r.t.Fatal(err)
	}
	return id
}

// oldLeaf is a certificate of 90 days that ends in an hour.
func oldLeaf(t testing.TB) (string, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-90 * 24 * time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), leaf
}

// Several managers renew many certificates at an authority that fails one request in
// twenty: each is renewed, and for each one order is placed.
func TestManyManagers(t *testing.T) {
	managers, certificates := 3, 12
	if testing.Short() {
		managers, certificates = 2, 6
	}
	manyManagers(t, managers, certificates, 5*time.Minute)
}

// BenchmarkManagers is what is promised: eight managers, two hundred certificates.
func BenchmarkManagers(b *testing.B) {
	for b.Loop() {
		manyManagers(b, 8, 200, 20*time.Minute)
	}
}

func manyManagers(t testing.TB, managers, certificates int, patience time.Duration) {
	r := newRig(t)
	r.manager("m0")
	r.configure(r.client())
	chain, leaf := oldLeaf(t)
	defer r.a.Fail(certmanagertest.Fault{Every: 20, Answer: certmanagertest.Unavailable()})()
	var ids []string
	for i := range certificates {
		ids = append(ids, r.old(fmt.Sprintf("n%03d.example.test", i), chain, leaf))
	}
	for i := 1; i < managers; i++ {
		r.manager(fmt.Sprintf("m%d", i))
	}
	began := time.Now()
	deadline := time.After(patience)
	for {
		renewed, failures := 0, 0
		for _, id := range ids {
			record, ok := r.state.Record("web", id)
			if ok && record.Current.Generation == 2 {
				renewed++
			} else if ok && record.Failure != nil {
				failures++
			}
		}
		if renewed == certificates {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("%d of %d are renewed, %d failed", renewed, certificates, failures)
		case <-time.After(100 * time.Millisecond):
		}
	}
	placed, issued := r.a.Orders(), r.a.Issued()
	ratio := float64(placed) / float64(cmp.Or(issued, 1))
	t.Logf("%d managers renewed %d certificates in %s: %d orders, %d issued, %.2f orders for each", managers, certificates, time.Since(began).Round(time.Second), placed, issued, ratio)
	if b, ok := t.(*testing.B); ok {
		b.ReportMetric(ratio, "orders/certificate")
	}
	if placed != certificates || issued != certificates {
		t.Errorf("%d orders were placed and %d certificates issued for %d", placed, issued, certificates)
	}
}
