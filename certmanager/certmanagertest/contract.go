package certmanagertest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
)

const (
	// issueTimeout bounds what succeeds, cancelTimeout what was canceled.
	issueTimeout  = 60 * time.Second
	cancelTimeout = 5 * time.Second
)

// An IssuerContract is an issuer as TestIssuer tries it.
type IssuerContract struct {
	// Issuer makes the issuer under test, as another process would: a second one has
	// the same account at the same authority.
	Issuer func(t *testing.T) certmanager.Issuer
	// Domain that it issues for, with all below it.
	Domain string
	// Method is how control of names in Domain is proved, wildcards too.
	Method cert.Method
	// Profile to ask for.
	Profile string
	// Roots are those of its authority.
	Roots *x509.CertPool
	// Orders is how many orders were placed for exactly those names. Nil: the issuer
	// has no orders, and saves no state.
	Orders func(names ...string) int
	// Revoked says whether a certificate is revoked at the authority.
	Revoked func(leaf *x509.Certificate) bool
}

// TestIssuer tries what every issuer owes to package certmanager.
func TestIssuer(t *testing.T, c IssuerContract) {
	t.Run("names", c.names)
	t.Run("keys", c.keys)
	t.Run("refused", c.refused)
	if c.Orders != nil {
		t.Run("save", c.save)
		t.Run("resume", c.resume)
		t.Run("forgotten order", c.forgotten)
	}
	t.Run("canceled", c.canceled)
	t.Run("at once", c.atOnce)
	t.Run("renewal", c.renewal)
	t.Run("revoke", c.revoke)
}

// NewKey returns a private key for a certificate: p256, p384 or rsa2048.
func NewKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("making a key: %q is no kind of them", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// order is one for names, which are those of Domain if they begin with a dot.
func (c IssuerContract) order(t testing.TB, names ...string) certmanager.Order {
	t.Helper()
	o := certmanager.Order{
		Key: NewKey(t, "p256"), Profile: c.Profile, Methods: map[string]cert.Method{},
		Save: func(context.Context, string) error { return nil },
	}
	for _, name := range names {
		if name == "" {
			name = c.Domain
		} else if name[len(name)-1] == '.' {
			name += c.Domain
		}
		o.Names = append(o.Names, name)
		o.Methods[name] = c.Method
	}
	return o
}

func (c IssuerContract) issue(t *testing.T, issuer certmanager.Issuer, o certmanager.Order) *x509.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
	defer cancel()
	issued, err := issuer.Issue(ctx, o)
	if err != nil {
		t.Fatalf("issuing for %q: %v", o.Names, err)
	}
	return c.verify(t, o, issued)
}

// verify says whether what was issued is what was ordered, and returns the leaf.
func (c IssuerContract) verify(t *testing.T, o certmanager.Order, issued certmanager.Issued) *x509.Certificate {
	t.Helper()
	if len(issued.Chain) == 0 {
		t.Fatal("the chain is empty")
	}
	var chain []*x509.Certificate
	between := x509.NewCertPool()
	for i, der := range issued.Chain {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("certificate %d of the chain: %v", i, err)
		}
		if i > 0 && one.CheckSignatureFrom(one) == nil {
			t.Errorf("certificate %d of the chain is the root, which no server sends", i)
		}
		chain = append(chain, one)
		between.AddCert(one)
	}
	leaf := chain[0]
	for _, name := range o.Names {
		host := name
		if name[0] == '*' {
			host = "anything" + name[1:]
		}
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: c.Roots, Intermediates: between}); err != nil {
			t.Errorf("verifying for %q: %v", host, err)
		}
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if setOf(names) != setOf(o.Names) {
		t.Errorf("the certificate is for %q, and %q were ordered", names, o.Names)
	}
	if key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(o.Key.Public()) {
		t.Error("the certificate is for another key")
	}
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("the certificate is for %v, and servers need %v", leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	return leaf
}

func (c IssuerContract) names(t *testing.T) {
	issuer := c.Issuer(t)
	for _, names := range [][]string{{"one."}, {"", "www."}, {"*.wild.", "wild."}, {"a.", "b.", "c.", "d.", "e."}} {
		c.issue(t, issuer, c.order(t, names...))
	}
}

func (c IssuerContract) keys(t *testing.T) {
	issuer := c.Issuer(t)
	for _, kind := range []string{"p384", "rsa2048"} {
		o := c.order(t, kind+".")
		o.Key = NewKey(t, kind)
		c.issue(t, issuer, o)
	}
}

// refused tries orders that no issuer can fulfill.
func (c IssuerContract) refused(t *testing.T) {
	issuer := c.Issuer(t)
	for _, names := range [][]string{nil, {"*.*.", "one."}, {"one..", "two."}, {"under_score. ."}, {"a b."}, {"UPPER."}, {"x*."}, {"-dash."}} {
		ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
		o := c.order(t, names...)
		_, err := issuer.Issue(ctx, o)
		cancel()
		var problem *certmanager.Problem
		if !errors.As(err, &problem) || !problem.Permanent {
			t.Errorf("issuing for %q: got %v, want a permanent problem", o.Names, err)
		}
	}
}

// save wants that nothing is issued whose state cannot be saved.
func (c IssuerContract) save(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
	defer cancel()
	full := errors.New("the disk is full")
	o := c.order(t, "unsaved.")
	o.Save = func(_ context.Context, state string) error {
		if state == "" {
			t.Error("the state is empty, which says that nothing was ordered")
		}
		return full
	}
	if _, err := c.Issuer(t).Issue(ctx, o); !errors.Is(err, full) {
		t.Errorf("issuing while the state cannot be saved: got %v, want %v", err, full)
	}
}

// resume stops after the order is saved, and wants another issuer to go on with it.
func (c IssuerContract) resume(t *testing.T) {
	o := c.order(t, "resumed.", "*.resumed.")
	ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
	defer cancel()
	o.Save = func(_ context.Context, state string) error {
		o.State = state
		cancel()
		return nil
	}
	if _, err := c.Issuer(t).Issue(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("issuing after it was canceled: got %v, want %v", err, context.Canceled)
	}
	o.Save = func(_ context.Context, state string) error {
		if state != o.State {
			t.Errorf("another order, %q, was placed in place of %q", state, o.State)
		}
		return nil
	}
	leaf := c.issue(t, c.Issuer(t), o)
	again := c.issue(t, c.Issuer(t), o) // the answer was lost
	if !leaf.Equal(again) {
		t.Error("an order that is finished gave another certificate when it was resumed")
	}
	if n := c.Orders(o.Names...); n != 1 {
		t.Errorf("%d orders were placed, want 1", n)
	}
}

// forgotten resumes what the authority does not know.
func (c IssuerContract) forgotten(t *testing.T) {
	var known string
	o := c.order(t, "forgotten.")
	o.Save = func(_ context.Context, state string) error { known = state; return nil }
	c.issue(t, c.Issuer(t), o)
	for i, state := range []string{known + "-gone", "no state of this issuer", "{}"} {
		o := c.order(t, fmt.Sprintf("forgotten%d.", i))
		saved := ""
		o.State = state
		o.Save = func(_ context.Context, state string) error { saved = state; return nil }
		c.issue(t, c.Issuer(t), o)
		if saved == "" || saved == state {
			t.Errorf("the state %q was saved in place of %q", saved, state)
		}
	}
}

func (c IssuerContract) canceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	_, err := c.Issuer(t).Issue(ctx, c.order(t, "canceled."))
	if took := time.Since(start); !errors.Is(err, context.Canceled) || took > cancelTimeout {
		t.Errorf("issuing after it was canceled: got %v after %v, want %v at once", err, took, context.Canceled)
	}
}

func (c IssuerContract) atOnce(t *testing.T) {
	issuer := c.Issuer(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	serials := map[string]bool{}
	const n = 4
	for i := range n {
		o := c.order(t, fmt.Sprintf("n%d.", i))
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
			defer cancel()
			issued, err := issuer.Issue(ctx, o)
			if err != nil {
				t.Errorf("issuing for %q among others: %v", o.Names, err)
				return
			}
			leaf, err := x509.ParseCertificate(issued.Chain[0])
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			serials[leaf.SerialNumber.String()] = true
		})
	}
	all.Wait()
	if len(serials) != n {
		t.Errorf("%d certificates have %d serial numbers", n, len(serials))
	}
}

func (c IssuerContract) renewal(t *testing.T) {
	issuer := c.Issuer(t)
	leaf := c.issue(t, issuer, c.order(t, "renewal."))
	ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
	defer cancel()
	r, err := issuer.Renewal(ctx, leaf)
	if errors.Is(err, certmanager.ErrNoRenewal) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Selected.Before(r.Start) || r.Selected.After(r.End) || !r.End.After(r.Start) {
		t.Errorf("%v was selected of the window from %v to %v", r.Selected, r.Start, r.End)
	}
	if !r.Again.After(time.Now()) {
		t.Errorf("it is to be asked again at %v, which is past", r.Again)
	}
}

func (c IssuerContract) revoke(t *testing.T) {
	issuer := c.Issuer(t)
	leaf := c.issue(t, issuer, c.order(t, "revoked."))
	ctx, cancel := context.WithTimeout(t.Context(), issueTimeout)
	defer cancel()
	for range 2 {
		if err := issuer.Revoke(ctx, leaf, certmanager.Superseded); err != nil {
			t.Fatal(err)
		}
		if !c.Revoked(leaf) {
			t.Fatal("the authority does not have it as revoked")
		}
	}
}
