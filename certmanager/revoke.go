package certmanager

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

const (
	// maxList bounds a revocation list. The largest that browsers read are smaller.
	maxList = 16 << 20
	// revokeAgain is when an authority that did not revoke is asked again.
	revokeAgain = 5 * time.Minute
	// revokeAnyway is after how long a generation is revoked that not all targets
	// were seen to have left: an authority gives that long for a key that is known.
	revokeAnyway = 24 * time.Hour
)

// revocationReasons are RFC 5280's words.
func revocationReasons() map[string]Reason {
	return map[string]Reason{
		"unspecified": Unspecified, "keyCompromise": KeyCompromise, "affiliationChanged": AffiliationChanged,
		"superseded": Superseded, "cessationOfOperation": CessationOfOperation,
	}
}

// revocable are the generations of r that may be revoked now.
func (s *session) revocable(ctx context.Context, r *cert.Record) []cert.Revocation {
	var now []cert.Revocation
	for _, v := range r.Revoking {
		if r.Removed || r.Current != nil && r.Current.Generation > v.Generation && r.Next == nil && s.left(ctx, r, v) {
			now = append(now, v)
		}
	}
	return now
}

// left reports whether the targets of r that are there serve a newer generation than
// the one that is to be revoked.
func (s *session) left(ctx context.Context, r *cert.Record, v cert.Revocation) bool {
	w := s.watcher(ctx, r.Group)
	if len(w.targets) == 0 {
		return true
	}
	waiting, served := false, false
	for _, name := range w.targets {
		seen, ok := s.state.Seen(r.Group, name, r.ID)
		newer := ok && seen.Error == "" && seen.Generation > v.Generation
		served = served || newer
		waiting = waiting || w.present[name] && !newer
	}
	since := min(s.now().Sub(v.Since), s.m.wall().Sub(v.Since)) // what cannot be undone, no single clock decides
	return served && !waiting || since > revokeAnyway
}

// revoke revokes what may be revoked of a certificate.
func (s *session) revoke(ctx context.Context, r *cert.Record) {
	what := "revoke " + r.ID
	for _, v := range s.revocable(ctx, r) {
		err := s.revokeOne(ctx, r, v)
		s.setTrouble(what, err)
		if err != nil {
			s.setAgain(what, s.now().Add(revokeAgain))
			s.m.log.Warn("certificate not revoked", "certificate", r.ID, "generation", v.Generation, "error", err)
			return
		}
		s.m.log.Info("certificate revoked", "certificate", r.ID, "generation", v.Generation, "reason", v.Reason)
	}
}

func (s *session) revokeOne(ctx context.Context, r *cert.Record, v cert.Revocation) error {
	chain, err := parseChain(v.Chain)
	if err != nil {
		return err
	}
	o, err := s.issuer(ctx, v.Issuer)
	if err != nil {
		return err
	}
	if err := o.issuer.Revoke(ctx, chain[0], revocationReasons()[v.Reason]); err != nil {
		return fmt.Errorf("revoking generation %d at %s: %w", v.Generation, v.Issuer, err)
	}
	_, err = s.amend(ctx, r.Group, r.ID, cert.Revoked, func(r *cert.Record) error {
		left := slices.DeleteFunc(slices.Clone(r.Revoking), func(other cert.Revocation) bool { return other.Generation == v.Generation })
		if len(left) == len(r.Revoking) {
			return errUnchanged
		}
		r.Revoking = left
		return nil
	})
	return err
}

// revocation is one of what r has now.
func revocation(b *cert.Bundle, reason string, now time.Time) cert.Revocation {
	return cert.Revocation{Generation: b.Generation, Issuer: b.Issuer, Chain: b.Chain, Reason: reason, Since: now.UTC()}
}

// addRevocation adds one, once.
func addRevocation(r *cert.Record, v cert.Revocation) {
	if !slices.ContainsFunc(r.Revoking, func(other cert.Revocation) bool { return other.Generation == v.Generation }) {
		r.Revoking = append(slices.Clone(r.Revoking), v)
	}
}

// A list is what is known of a revocation list.
type list struct {
	next time.Time // when it is read again
	// certificates that it could revoke, by their leaf.
	watched map[string]bool
}

// watchLists reads the revocation lists of what is served, those that are due, and
// replaces what was revoked.
func (s *session) watchLists(ctx context.Context) {
	due := map[string][]*cert.Record{} // by URL
	for _, r := range s.state.Records("") {
		if r.Current == nil || r.Renew == cert.ReasonRevoked {
			continue
		}
		for _, url := range s.listsOf(r.Current) {
			due[url] = append(due[url], r)
		}
	}
	for url, records := range due {
		if ctx.Err() != nil || !s.listDue(url, records) {
			continue
		}
		err := s.checkList(ctx, url, records)
		s.setTrouble("list "+url, err)
		again := s.m.o.Lists
		if err != nil {
			again = min(again, time.Hour)
		}
		s.mu.Lock()
		s.lists[url].next = s.now().Add(again)
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for url := range s.lists {
		if due[url] == nil && strings.Contains(url, "://") {
			delete(s.lists, url)
		}
	}
}

// listDue reports whether a list is to be read: it is time, or there is a certificate
// that it was not read for.
func (s *session) listDue(url string, records []*cert.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lists[url]
	fresh := l == nil
	watched := map[string]bool{}
	for _, r := range records {
		watched[r.Current.Leaf] = true
		fresh = fresh || !l.watched[r.Current.Leaf]
	}
	if l == nil {
		l = &list{}
		s.lists[url] = l
	}
	l.watched = watched
	return fresh || !s.now().Before(l.next)
}

// listsOf are the URLs of the lists that may revoke b.
func (s *session) listsOf(b *cert.Bundle) []string {
	chain, err := parseChain(b.Chain)
	if err != nil || len(chain) < 2 {
		return nil // nobody could verify the list
	}
	return slices.DeleteFunc(slices.Clone(chain[0].CRLDistributionPoints), func(url string) bool {
		return !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://")
	})
}

// checkList reads one list, and marks those of records that are on it.
func (s *session) checkList(ctx context.Context, url string, records []*cert.Record) error {
	crl, err := s.fetchList(ctx, url)
	if err != nil {
		return err
	}
	revoked := map[string]bool{}
	for _, e := range crl.RevokedCertificateEntries {
		if e.ReasonCode != 8 { // removeFromCRL
			revoked[e.SerialNumber.Text(16)] = true
		}
	}
	var errs []error
	verified := map[string]error{} // by the issuer's certificate
	for _, r := range records {
		chain, err := parseChain(r.Current.Chain)
		if err != nil {
			continue
		}
		issuer := string(chain[1].Raw)
		if _, known := verified[issuer]; !known {
			verified[issuer] = crl.CheckSignatureFrom(chain[1])
		}
		if err := verified[issuer]; err != nil {
			errs = append(errs, fmt.Errorf("verifying the revocation list at %s: %w", url, err))
			continue
		}
		if revoked[chain[0].SerialNumber.Text(16)] {
			errs = append(errs, s.markRevoked(ctx, r, url))
		}
	}
	if !crl.NextUpdate.IsZero() && s.now().After(crl.NextUpdate.Add(skew)) {
		errs = append(errs, fmt.Errorf("the revocation list at %s ended on %s", url, crl.NextUpdate.Format(time.DateTime)))
	}
	return errors.Join(errs...)
}

func (s *session) fetchList(ctx context.Context, url string) (*x509.RevocationList, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the revocation list: %w", err)
	}
	response, err := s.m.o.HTTP.Do(request)
	if err != nil {
		return nil, fmt.Errorf("reading the revocation list: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading the revocation list at %s: %s", url, response.Status)
	}
	der, err := io.ReadAll(io.LimitReader(response.Body, maxList+1))
	if err != nil {
		return nil, fmt.Errorf("reading the revocation list at %s: %w", url, err)
	}
	if len(der) > maxList {
		return nil, fmt.Errorf("reading the revocation list at %s: it has more than %d bytes", url, maxList)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("reading the revocation list at %s: %w", url, err)
	}
	return crl, nil
}

// markRevoked asks for another certificate in place of one that its authority revoked.
func (s *session) markRevoked(ctx context.Context, seen *cert.Record, url string) error {
	_, err := s.amend(ctx, seen.Group, seen.ID, cert.Revoked, func(r *cert.Record) error {
		if r.Removed || r.Current == nil || r.Current.Leaf != seen.Current.Leaf || r.Renew == cert.ReasonRevoked {
			return errUnchanged
		}
		r.Renew, r.Failure = cert.ReasonRevoked, nil
		return nil
	})
	s.m.log.Warn("certificate was revoked by its authority", "certificate", seen.ID, "generation", seen.Current.Generation, "list", url)
	return err
}

// checkDeadMan tells the dead man's switch that a manager has run.
func (s *session) checkDeadMan(ctx context.Context, d DeadMan) error {
	request, err := http.NewRequestWithContext(ctx, cmp.Or(d.Method, http.MethodPost), d.URL, nil)
	if err != nil {
		return errors.New("telling the dead man's switch: its URL is none") // which may have a secret in it
	}
	response, err := s.m.o.HTTP.Do(request)
	if err != nil {
		return errors.New("telling the dead man's switch: it does not answer")
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("telling the dead man's switch: it says %s", response.Status)
	}
	return nil
}
