// Package certmanager obtains certificates, renews them, seals them and publishes
// them for the targets that serve them. Any number of managers work on one ledger.
package certmanager

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

// An Issuer is an authority that certificates are obtained from. It is safe for
// concurrent use. Package certmanager/acme has one for every ACME directory,
// certmanager/private has one of our own.
type Issuer interface {
	// Issue obtains a certificate for o. If o.State is not empty it resumes that
	// order and places no other, unless the authority no longer has it. An error
	// is a *Problem if more is known than its text.
	Issue(ctx context.Context, o Order) (Issued, error)
	// Renewal asks when the authority wants leaf, which it issued, to be renewed.
	// It returns ErrNoRenewal if the authority does not say.
	Renewal(ctx context.Context, leaf *x509.Certificate) (cert.Renewal, error)
	// Revoke revokes a certificate that the authority issued. One that is revoked
	// already is no error.
	Revoke(ctx context.Context, leaf *x509.Certificate, reason Reason) error
}

// ErrNoRenewal is returned by an Issuer that does not say when to renew.
var ErrNoRenewal = errors.New("the authority does not say when to renew")

// An Order is a certificate that is wanted.
type Order struct {
	// Names as in cert.Policy.
	Names []string
	// Key of the certificate to be.
	Key crypto.Signer
	// Profile at the authority. Empty: its default.
	Profile string
	// Methods has how to prove each of Names.
	Methods map[string]cert.Method
	// Replaces is the certificate that is renewed. Nil: none is.
	Replaces *x509.Certificate

	// State is what Save was last given for this order, by whatever manager. Empty:
	// nothing was ordered.
	State string
	// Unanswered says that an order was asked for before, and nobody knows whether it was
	// placed: it is looked for, before another is placed.
	Unanswered bool
	// Placing keeps that an order is about to be asked for. If nothing is saved after
	// that, the next one to try is told so, by Unanswered. lost says that the one before
	// was not found, and could be there all the same. If it fails, Issue stops. It may be
	// nil.
	Placing func(ctx context.Context, lost bool) error
	// Save keeps the state of the order. It is called as soon as there is one at the
	// authority, and before anything else is done with it. If it fails, Issue stops.
	Save func(ctx context.Context, state string) error
	// Progress is told, in a few words for people, what is being done. It may be nil.
	Progress func(step string)
	// Present makes a challenge known to all who may be asked for it, and returns
	// when every one of them would answer; it returns how to take it back. It is for
	// http-01 and tls-alpn-01. A zero Until is some time after the attempt.
	Present func(ctx context.Context, c cert.Challenge) (cleanup func(context.Context), err error)
}

// Issued is what an authority answered.
type Issued struct {
	// Chain has the certificate and what leads to its root, without the root, in DER.
	Chain [][]byte
}

// A Problem is why an authority did not issue.
type Problem struct {
	// Step is order, challenge, finalize or verify.
	Step string
	// Type is that of an ACME problem, such as
	// urn:ietf:params:acme:error:rateLimited. Empty: there is none.
	Type string
	// After is when the authority allows another attempt. Zero: it did not say.
	After time.Time
	// Permanent says that the same order can never succeed, and another issuer may
	// be tried at once.
	Permanent bool
	// Unanswered says that an order was asked for, and that it is not known whether it
	// was placed.
	Unanswered bool
	Err        error
}

// Error is Step and Err.
func (p *Problem) Error() string { return fmt.Sprintf("%s: %v", p.Step, p.Err) }

// Unwrap is Err.
func (p *Problem) Unwrap() error { return p.Err }

// Reason is why a certificate is revoked: RFC 5280, section 5.3.1.
type Reason int

// The reasons that fleetbus gives.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
)
