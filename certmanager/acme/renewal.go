package acme

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
)

const (
	// askAgain is how long renewal information is taken for current if the authority
	// does not say, and minAgain and maxAgain bound what it may say.
	askAgain = 6 * time.Hour
	minAgain = time.Minute
	maxAgain = 24 * time.Hour
)

// Renewal asks for renewal information: RFC 9773. Selected depends on the certificate
// and the window alone, so that every manager selects the same moment, and selects
// anew only if the window moved. The window of a certificate that is revoked may be of
// one second; it lies in the past.
func (i *Issuer) Renewal(ctx context.Context, leaf *x509.Certificate) (cert.Renewal, error) {
	t := i.trace()
	ctx = t.with(ctx)
	dir, err := i.wire.directory(ctx)
	if err != nil {
		return cert.Renewal{}, t.problem("order", err)
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if dir.RenewalInfo == "" || err != nil || len(leaf.AuthorityKeyId) == 0 {
		return cert.Renewal{}, certmanager.ErrNoRenewal
	}
	var answer acme.RenewalInfo
	if err := i.wire.get(ctx, strings.TrimSuffix(dir.RenewalInfo, "/")+"/"+id, &answer); err != nil {
		if status, _ := t.last(); status == http.StatusNotFound {
			return cert.Renewal{}, certmanager.ErrNoRenewal
		}
		return cert.Renewal{}, t.problem("order", fmt.Errorf("asking when to renew: %w", err))
	}
	_, after := t.last()
	return renewal(leaf, answer, after, i.c.Now())
}

func renewal(leaf *x509.Certificate, answer acme.RenewalInfo, after, now time.Time) (cert.Renewal, error) {
	start, end := answer.SuggestedWindow.Start.UTC(), answer.SuggestedWindow.End.UTC()
	if start.IsZero() || !end.After(start) {
		return cert.Renewal{}, errors.New("asking when to renew: the authority's window has no length")
	}
	again := askAgain
	if !after.IsZero() {
		again = min(max(after.Sub(now), minAgain), maxAgain)
	}
	return cert.Renewal{
		Start: start, End: end, Selected: moment(leaf, start, end), Again: now.Add(again).UTC(),
		Explanation: bounded(answer.ExplanationURL),
	}, nil
}

// moment is one of the window, as good as random.
func moment(leaf *x509.Certificate, start, end time.Time) time.Time {
	hash := sha256.New()
	hash.Write(leaf.Raw)
	_ = binary.Write(hash, binary.BigEndian, []int64{start.UnixNano(), end.UnixNano()})
	fraction := binary.BigEndian.Uint64(hash.Sum(nil))
	into, _ := bits.Mul64(fraction, uint64(end.Sub(start)))
	return start.Add(time.Duration(into))
}

// Revoke revokes a certificate of the account.
func (i *Issuer) Revoke(ctx context.Context, leaf *x509.Certificate, reason certmanager.Reason) error {
	t := i.trace()
	ctx = t.with(ctx)
	account, err := i.open(ctx)
	if err == nil {
		err = i.client.RevokeCertificate(ctx, account, leaf, nil, int(reason))
	}
	if err == nil || problemType(err) == acme.ProblemTypeAlreadyRevoked {
		return nil
	}
	i.forget(ctx, err)
	return t.problem("order", fmt.Errorf("revoking the certificate %x: %w", leaf.SerialNumber, err))
}
