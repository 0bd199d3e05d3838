package bench

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/private"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// benchGroup is the one group of targets.
	benchGroup = "web"
	// life is how long certificates are valid.
	life = 90 * 24 * time.Hour
	// appending is how many events are on their way to a ledger at most, and
	// appendPatience how long the next waits for a place among them.
	appending, appendPatience = 512, 30 * time.Second
)

// A scribe writes records into the ledger of a fleet as a manager does, without the
// steps that lead to them.
type scribe struct {
	key       *cert.ManagerKey
	secret    *cert.Key // of the group
	authority *private.Authority
	old       *private.Authority // the same one, with a clock that is nearly a life behind
	js        jetstream.JetStream
	revisions map[string]uint64
	lost      chan error // the first event that was not stored
}

// newScribe makes the ledger of certificates of s, with a group's key. Its connection
// is the caller's to close.
func (s *system) newScribe(ctx context.Context) (*scribe, *nats.Conn, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	key, err := cert.NewManagerKey(benchAccount, secret)
	if err != nil {
		return nil, nil, err
	}
	w := &scribe{key: key, secret: cert.NewKey(benchGroup, 1), revisions: map[string]uint64{}, lost: make(chan error, 1)}
	before := func() time.Time { return time.Now().Add(2*time.Hour - life) }
	if w.old, err = private.New(private.Options{Life: life, Now: before}); err != nil {
		return nil, nil, err
	}
	if w.authority, err = w.clocked(time.Now); err != nil {
		return nil, nil, err
	}
	nc, err := s.dialAs(ctx, "scribe", identity.RoleCertManager)
	if err != nil {
		return nil, nil, err
	}
	if err := w.open(ctx, nc); err != nil {
		nc.Close()
		return nil, nil, err
	}
	return w, nc, nil
}

// clocked is the same authority with another clock.
func (w *scribe) clocked(now func() time.Time) (*private.Authority, error) {
	text, err := w.old.Marshal()
	if err != nil {
		return nil, err
	}
	return private.Unmarshal(text, private.Options{Life: life, Now: now})
}

func (w *scribe) open(ctx context.Context, nc *nats.Conn) (err error) {
	w.js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(appending), jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
		select {
		case w.lost <- err:
		default:
		}
	}))
	if err != nil {
		return err
	}
	if _, err := cert.OpenLedger(ctx, w.js); err != nil {
		return err
	}
	if _, err := cert.OpenReports(ctx, w.js); err != nil { // which targets may not make
		return err
	}
	sealed, err := w.key.SealKey(w.secret)
	if err != nil {
		return err
	}
	return w.append(ctx, cert.KeySubject(benchGroup), func(revision uint64) any {
		return cert.GroupKey{Version: 1, Group: benchGroup, Revision: revision, Generation: 1, Keys: map[uint64]cert.Sealed{1: sealed}}
	})
}

// append signs the next revision of a record and sends it off. flush waits until all
// are stored.
func (w *scribe) append(ctx context.Context, subject string, record func(revision uint64) any) error {
	w.revisions[subject]++
	data, err := w.key.Sign(subject, record(w.revisions[subject]))
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = w.js.PublishMsgAsync(&nats.Msg{Subject: cert.Prefix + "." + subject, Data: data}, jetstream.WithStallWait(appendPatience))
	if err != nil {
		return fmt.Errorf("writing %q: %w", subject, err)
	}
	return nil
}

func (w *scribe) flush(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.js.PublishAsyncComplete():
	}
	select {
	case err := <-w.lost:
		return fmt.Errorf("writing a ledger: %w", err)
	default:
		return nil
	}
}

// target enrolls one, and returns its key.
func (w *scribe) target(ctx context.Context, name string) (*cert.TargetKey, error) {
	seal, err := cert.NewSealKey()
	if err != nil {
		return nil, err
	}
	sealed, err := w.secret.SealTo(name, seal.Public())
	if err != nil {
		return nil, err
	}
	key := &cert.TargetKey{Account: benchAccount, Name: name, Groups: []string{benchGroup}, Signers: []cert.Signer{w.key.Signer()}, Seal: seal}
	signer, err := key.Signer()
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	err = w.append(ctx, cert.TargetSubject(benchGroup, name), func(revision uint64) any {
		return cert.Target{Version: 1, Group: benchGroup, Name: name, Public: seal.Public(), Signer: signer, Keys: map[uint64]cert.Sealed{1: sealed}, Added: now, Joined: now, Revision: revision}
	})
	return key, err
}

// issue makes the bundle of a generation, with a private key of its own.
func (w *scribe) issue(ctx context.Context, by *private.Authority, i int, generation uint64) (*cert.Bundle, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	names := []string{host(i)}
	issued, err := by.Issue(ctx, certmanager.Order{Names: names, Key: key})
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(issued.Chain[0])
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	sum, spki := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	b := &cert.Bundle{
		Generation: generation, Reason: cert.ReasonNew, Names: names, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Issuer: issuerName,
		Chain:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		Serial: leaf.SerialNumber.Text(16), Leaf: hex.EncodeToString(sum[:]), SPKI: hex.EncodeToString(spki[:]),
	}
	return b, w.secret.Seal(certID(i), b, der)
}

// record writes an event of certificate i.
func (w *scribe) record(ctx context.Context, i int, event cert.Event, b *cert.Bundle) error {
	return w.append(ctx, cert.CertSubject(benchGroup, certID(i)), func(revision uint64) any {
		return cert.Record{
			Version: 1, ID: certID(i), Group: benchGroup, Event: event, Revision: revision, At: time.Now().UTC(), By: "bench",
			Policy: cert.Policy{Names: b.Names}, Current: b,
		}
	})
}

// obtain writes n certificates by an authority, and returns when they are stored.
func (w *scribe) obtain(ctx context.Context, by *private.Authority, n int) error {
	for i := range n {
		b, err := w.issue(ctx, by, i, 1)
		if err != nil {
			return err
		}
		if err := w.record(ctx, i, cert.Obtained, b); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// roots are what clients verify certificates with.
func (w *scribe) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(w.authority.Root())) {
		return nil, errors.New("reading a root: it is none")
	}
	return pool, nil
}

func certID(i int) string { return fmt.Sprintf("id%d", i) }

func host(i int) string { return fmt.Sprintf("www.shop-%d.example.org", i) }
