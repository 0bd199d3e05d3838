// Package certtest makes certificates and the records of managers, for the tests of
// those who follow them.
package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

// A Manager signs the records of one group, and issues its certificates by an authority
// of its own. It is not safe for concurrent use.
type Manager struct {
	Key   *cert.ManagerKey
	Group string
	// Secret is the group's key. RotateKey makes the next one.
	Secret *cert.Key
	// Root is the authority's certificate.
	Root *x509.Certificate

	t         testing.TB
	authority *ecdsa.PrivateKey
	revisions map[string]uint64
	targets   map[string]*cert.Target
}

// New returns the manager of a group of account "acme".
func New(t testing.TB, group string) *Manager {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	m := &Manager{
		Group: group, Secret: cert.NewKey(group, 1), t: t, authority: newKey(t),
		revisions: map[string]uint64{}, targets: map[string]*cert.Target{},
	}
	m.Key = must(cert.NewManagerKey("acme", secret))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "certtest"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-20 * 365 * 24 * time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
	}
	m.Root = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, m.authority.Public(), m.authority))(t)))(t)
	return m
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// An Event is a record as it goes into the ledger.
type Event struct {
	Subject string
	Data    []byte
}

// Sign signs the next revision of a record. build gets the number of the revision.
func (m *Manager) Sign(subject string, build func(revision uint64) any) Event {
	m.t.Helper()
	m.revisions[subject]++
	return Event{subject, must(m.Key.Sign(subject, build(m.revisions[subject])))(m.t)}
}

// Target enrolls a target, and returns its key and its record.
func (m *Manager) Target(name string) (*cert.TargetKey, Event) {
	m.t.Helper()
	k := &cert.TargetKey{
		Account: m.Key.Account(), Name: name, Groups: []string{m.Group}, Signers: []cert.Signer{m.Key.Signer()},
		Seal: must(cert.NewSealKey())(m.t),
	}
	m.targets[name] = &cert.Target{Version: 1, Group: m.Group, Name: name, Public: k.Seal.Public(), Signer: must(k.Signer())(m.t), Added: time.Now(), Joined: time.Now(), Keys: map[uint64]cert.Sealed{}}
	return k, m.give(name)
}

// Signer is who signs the reports of a target.
func (m *Manager) Signer(target string) cert.Signer { return m.targets[target].Signer }

// give gives a target the group's key, and returns its record.
func (m *Manager) give(name string) Event {
	m.t.Helper()
	t := m.targets[name]
	t.Keys[m.Secret.Generation] = must(m.Secret.SealTo(name, t.Public))(m.t)
	return m.target(name)
}

func (m *Manager) target(name string) Event {
	m.t.Helper()
	return m.Sign(cert.TargetSubject(m.Group, name), func(revision uint64) any {
		t := *m.targets[name]
		t.Revision = revision
		return t
	})
}

// Remove removes a target, and returns its record. RotateKey has to come next.
func (m *Manager) Remove(name string) Event {
	m.t.Helper()
	m.targets[name].Removed = true
	return m.target(name)
}

// RotateKey makes the next key of the group and returns the records of the targets,
// which are given it.
func (m *Manager) RotateKey() []Event {
	m.t.Helper()
	m.Secret = cert.NewKey(m.Group, m.Secret.Generation+1)
	var all []Event
	for name, t := range m.targets {
		if !t.Removed {
			all = append(all, m.give(name))
		}
	}
	return all
}

// A Request is a certificate to be issued.
type Request struct {
	ID    string
	Names []string
	// Generation. Default 1.
	Generation uint64
	// From and To are when it is valid. Default: an hour ago, for 90 days.
	From, To time.Time
	// Key of the certificate. Default: a new one, of P-256.
	Key crypto.Signer
}

// Issue issues a certificate and seals its key to the group.
func (m *Manager) Issue(r Request) *cert.Bundle {
	m.t.Helper()
	if r.Generation == 0 {
		r.Generation = 1
	}
	if r.From.IsZero() {
		r.From = time.Now().Add(-time.Hour)
	}
	if r.To.IsZero() {
		r.To = r.From.Add(90 * 24 * time.Hour)
	}
	if r.Key == nil {
		r.Key = newKey(m.t)
	}
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)))(m.t), NotBefore: r.From, NotAfter: r.To,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range r.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, m.Root, r.Key.Public(), m.authority))(m.t)))(m.t)
	return m.Bundle(r, leaf)
}

// Bundle is a certificate that is there already, with its key sealed to the group.
func (m *Manager) Bundle(r Request, leaf *x509.Certificate) *cert.Bundle {
	m.t.Helper()
	sum, spki := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	b := &cert.Bundle{
		Generation: max(r.Generation, 1), Reason: cert.ReasonNew, Names: r.Names, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Issuer: "certtest",
		Chain:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		Serial: leaf.SerialNumber.Text(16), Leaf: hex.EncodeToString(sum[:]), SPKI: hex.EncodeToString(spki[:]),
	}
	der := must(x509.MarshalPKCS8PrivateKey(r.Key))(m.t)
	if err := m.Secret.Seal(r.ID, b, der); err != nil {
		m.t.Fatal(err)
	}
	return b
}

// Obtained issues a certificate and returns the record by which all targets get it.
func (m *Manager) Obtained(r Request) Event {
	m.t.Helper()
	return m.Record(r.ID, cert.Record{Event: cert.Obtained, Policy: cert.Policy{Names: r.Names}, Current: m.Issue(r)})
}

// Record signs the next record of a certificate.
func (m *Manager) Record(id string, r cert.Record) Event {
	m.t.Helper()
	return m.Sign(cert.CertSubject(m.Group, id), func(revision uint64) any {
		r.Version, r.ID, r.Group, r.Revision, r.At, r.By = 1, id, m.Group, revision, time.Now().UTC(), "certtest"
		return r
	})
}

// Challenge signs a challenge that is good for an hour.
func (m *Manager) Challenge(id, kind, name string) Event {
	m.t.Helper()
	return m.Sign(cert.ChallengeSubject(m.Group, id), func(revision uint64) any {
		return cert.Challenge{Version: 1, Revision: revision, Group: m.Group, ID: id, Type: kind, Name: name, Token: "token-" + id, KeyAuth: "token-" + id + ".thumbprint", Until: time.Now().Add(time.Hour)}
	})
}

// TakeBack signs that a challenge is of no use any more.
func (m *Manager) TakeBack(id string) Event {
	m.t.Helper()
	return m.Sign(cert.ChallengeSubject(m.Group, id), func(revision uint64) any {
		return cert.Challenge{Version: 1, Revision: revision, Group: m.Group, ID: id}
	})
}
