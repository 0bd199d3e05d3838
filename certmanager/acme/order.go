package acme

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/certmanager"
)

const (
	// maxTurns bounds how often an order may change its status while it is followed.
	maxTurns = 100
	// maxWait bounds what an authority may ask for between two questions.
	maxWait = 30 * time.Second
	// maxChain bounds a chain.
	maxChain = 10
	// skew is how far the authority's clock may be ahead.
	skew = 5 * time.Minute
)

// errAnother says that an order is not the one that was asked for.
var errAnother = errors.New("it is an order for something else")

// A job is one call of Issue.
type job struct {
	*Issuer
	*trace

	o       certmanager.Order
	dir     acme.Directory
	account acme.Account
	profile string
	order   acme.Order
	telling sync.Mutex
	// unanswered says that an order was asked for, and nobody knows what became of it.
	unanswered bool
}

// Issue obtains a certificate: see certmanager.Issuer. The state of an order is its
// URL. The errors of ACME are *certmanager.Problem, with a line for each name that the
// authority names.
func (i *Issuer) Issue(ctx context.Context, o certmanager.Order) (certmanager.Issued, error) {
	j := &job{Issuer: i, trace: i.trace(), o: o, unanswered: o.Unanswered}
	if err := j.check(); err != nil {
		return certmanager.Issued{}, err
	}
	ctx = j.with(ctx)
	issued, err := j.issue(ctx)
	if err != nil {
		i.forget(ctx, err)
		if over := ctx.Err(); over != nil && !errors.Is(err, over) {
			err = fmt.Errorf("%w: %w", over, err)
		}
		err = j.problem("order", err)
		var p *certmanager.Problem
		if errors.As(err, &p) {
			p.Unanswered = j.unanswered
		}
		return certmanager.Issued{}, err
	}
	return issued, nil
}

// check says what can be said without the authority.
func (j *job) check() error {
	if err := certmanager.CheckNames(j.o.Names); err != nil {
		return permanent("order", "%w", err)
	}
	if j.o.Key == nil || j.o.Save == nil {
		return permanent("order", "an order needs a key, and who saves its state")
	}
	var problems []error
	for _, name := range j.o.Names {
		if err := j.checkMethod(name); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return permanent("challenge", "%w", err)
	}
	return nil
}

func (j *job) issue(ctx context.Context) (certmanager.Issued, error) {
	var err error
	if j.dir, err = j.wire.directory(ctx); err != nil {
		return certmanager.Issued{}, err
	}
	if j.profile, err = j.chooseProfile(); err != nil {
		return certmanager.Issued{}, err
	}
	if j.account, err = j.open(ctx); err != nil {
		return certmanager.Issued{}, err
	}
	resumed, err := j.resume(ctx)
	if err != nil {
		return certmanager.Issued{}, err
	}
	if resumed {
		issued, err := j.follow(ctx)
		if !errors.Is(err, errAnother) {
			return issued, err
		}
		j.tell("the order that was placed is of no use any more")
	}
	if err := j.place(ctx); err != nil {
		return certmanager.Issued{}, err
	}
	return j.follow(ctx)
}

func (j *job) tell(format string, args ...any) {
	if j.o.Progress != nil {
		j.telling.Lock()
		defer j.telling.Unlock()
		j.o.Progress(fmt.Sprintf(format, args...))
	}
}

// chooseProfile is the profile to ask for. One is named whenever there are some: what
// an authority takes for those who name none can change.
func (j *job) chooseProfile() (string, error) {
	var offered []string
	if j.dir.Meta != nil {
		offered = slices.Sorted(maps.Keys(j.dir.Meta.Profiles))
	}
	wanted := cmp.Or(j.o.Profile, j.c.Profile)
	switch {
	case wanted != "" && !slices.Contains(offered, wanted):
		return "", permanent("order", "the authority has no profile %q; it has: %s", wanted, cmp.Or(strings.Join(offered, ", "), "none"))
	case wanted != "":
		return wanted, nil
	case slices.Contains(offered, "default"):
		return "default", nil
	case slices.Contains(offered, "classic"):
		return "classic", nil
	case len(offered) == 1:
		return offered[0], nil
	}
	return "", nil
}

// resume takes up the order that was placed before. It reports false if there is
// none, or none that can come to something.
func (j *job) resume(ctx context.Context) (bool, error) {
	u, err := url.Parse(j.o.State)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return false, nil
	}
	j.tell("going on with the order that was placed")
	if err := j.refresh(ctx, j.o.State); err != nil {
		status, _ := j.last()
		if gone := status >= 400 && status < 500 && status != http.StatusTooManyRequests && problemType(err) != acme.ProblemTypeAccountDoesNotExist; gone && ctx.Err() == nil {
			return false, nil
		}
		return false, fmt.Errorf("asking for the order: %w", err)
	}
	return j.order.Status != acme.StatusInvalid && j.same(), nil
}

// refresh reads the order.
func (j *job) refresh(ctx context.Context, location string) error {
	order, err := j.client.GetOrder(ctx, j.account, acme.Order{Location: location})
	if err != nil {
		return err
	}
	order.Location = location
	j.order = order
	return nil
}

// same reports whether the order is for what is wanted.
func (j *job) same() bool {
	var names []string
	for _, id := range j.order.Identifiers {
		names = append(names, canonical(id.Value))
	}
	if j.profile != "" && j.order.Profile != "" && j.order.Profile != j.profile {
		return false
	}
	return slices.Equal(slices.Sorted(slices.Values(names)), slices.Sorted(slices.Values(j.o.Names)))
}

// place places a new order and saves where it is.
func (j *job) place(ctx context.Context) error {
	j.tell("ordering for %s", strings.Join(j.o.Names, ", "))
	want := acme.Order{Profile: j.profile}
	for _, name := range j.o.Names {
		kind := "dns"
		if isIP(name) {
			kind = "ip"
		}
		want.Identifiers = append(want.Identifiers, acme.Identifier{Type: kind, Value: name})
	}
	lost := false
	if j.o.Unanswered {
		location, listed, err := j.find(ctx)
		if err != nil {
			return fmt.Errorf("looking for the order that was asked for before: %w", err)
		}
		if location != "" {
			j.unanswered = false
			return j.save(ctx, j.order)
		}
		lost = !listed
		j.tell("an order that was asked for before got no answer, and is not found")
	}
	if j.o.Replaces != nil && j.dir.RenewalInfo != "" {
		if id, err := acme.ARIUniqueIdentifier(j.o.Replaces); err == nil && len(j.o.Replaces.AuthorityKeyId) > 0 {
			want.Replaces = id
		}
	}
	if j.o.Placing != nil {
		if err := j.o.Placing(ctx, lost); err != nil {
			return fmt.Errorf("saving that an order is placed: %w", err)
		}
	}
	order, err := j.newOrder(ctx, want)
	if err != nil && want.Replaces != "" && !j.unanswered && mayBeReplaces(err) {
		want.Replaces = ""
		order, err = j.newOrder(ctx, want)
	}
	if err != nil {
		return fmt.Errorf("placing the order: %w", err)
	}
	if u, err := url.Parse(order.Location); err != nil || u.Scheme != "https" || u.Host == "" {
		return errors.New("placing the order: the authority did not say where it is")
	}
	return j.save(ctx, order)
}

// save saves where the order is, before anything is done with it.
func (j *job) save(ctx context.Context, order acme.Order) error {
	if err := j.o.Save(ctx, order.Location); err != nil {
		j.unanswered = true // nobody knows of it
		return fmt.Errorf("saving the order: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	j.order = order
	return nil
}

// mayBeReplaces reports whether an order could have been refused for what it
// replaces: it was replaced by another, or is unknown there. RFC 9773, section 5.
func mayBeReplaces(err error) bool {
	return slices.Contains([]string{
		acme.ProblemTypeAlreadyReplaced, acme.ProblemTypeMalformed, acme.ProblemTypeUnauthorized, acme.ProblemTypeServerInternal,
	}, problemType(err))
}

// canonical is a name of the authority's as it stands in an Order.
func canonical(name string) string {
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.Unmap().String()
	}
	return strings.ToLower(name)
}

func isIP(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil
}

// follow does what the status of the order wants, until there is a certificate.
func (j *job) follow(ctx context.Context) (certmanager.Issued, error) {
	finalizing := 0
	for range maxTurns {
		var err error
		switch j.order.Status {
		case acme.StatusPending:
			err = j.authorize(ctx)
		case acme.StatusReady:
			if finalizing++; finalizing > 3 {
				return certmanager.Issued{}, errors.New("finalizing the order: the authority does not take notice")
			}
			err = j.finalize(ctx)
		case acme.StatusProcessing:
			err = j.wait(ctx)
		case acme.StatusValid:
			return j.download(ctx)
		case acme.StatusInvalid:
			return certmanager.Issued{}, j.invalid(ctx)
		default:
			return certmanager.Issued{}, fmt.Errorf("the authority says that the order is %q", bounded(j.order.Status))
		}
		if err != nil {
			return certmanager.Issued{}, err
		}
		if err := j.refresh(ctx, j.order.Location); err != nil {
			return certmanager.Issued{}, fmt.Errorf("asking for the order: %w", err)
		}
	}
	return certmanager.Issued{}, fmt.Errorf("the order is %q after %d turns", j.order.Status, maxTurns)
}

// invalid is why an order is.
func (j *job) invalid(ctx context.Context) error {
	if j.order.Error != nil {
		return j.problem("challenge", *j.order.Error)
	}
	var failed []failedName
	for _, location := range j.order.Authorizations {
		authz, err := j.client.GetAuthorization(ctx, j.account, location)
		if err == nil {
			if err = authzError(authz); err != nil {
				failed = append(failed, failedName{authz.IdentifierValue(), err})
			}
		}
	}
	if len(failed) == 0 {
		return &certmanager.Problem{Step: "order", Err: errors.New("the order is invalid, and the authority gives no reason")}
	}
	return j.failed("challenge", failed)
}

// finalize sends the request for the certificate.
func (j *job) finalize(ctx context.Context) error {
	j.tell("asking for the certificate")
	request := &x509.CertificateRequest{}
	for _, name := range j.o.Names {
		if addr, err := netip.ParseAddr(name); err == nil {
			request.IPAddresses = append(request.IPAddresses, addr.AsSlice())
		} else {
			request.DNSNames = append(request.DNSNames, name)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, j.o.Key)
	if err != nil {
		return permanent("finalize", "making the request for the certificate: %w", err)
	}
	order, err := j.client.FinalizeOrder(ctx, j.account, j.order, csr)
	if err == nil || order.Status == acme.StatusProcessing || order.Status == acme.StatusValid {
		return ctx.Err()
	}
	// What became of a request whose answer was lost, the order says.
	if kind := problemType(err); kind == "" && ctx.Err() == nil {
		if status, _ := j.last(); status < 400 || status >= 500 {
			return nil
		}
	}
	return j.problem("finalize", fmt.Errorf("asking for the certificate: %w", err))
}

// wait waits while the authority issues.
func (j *job) wait(ctx context.Context) error {
	j.tell("waiting for the certificate")
	within, cancel := context.WithTimeout(ctx, j.c.Validation)
	defer cancel()
	for j.order.Status == acme.StatusProcessing {
		if err := j.pause(within, j.trace); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return j.problem("finalize", fmt.Errorf("the authority has not issued after %v", j.c.Validation))
		}
		if err := j.refresh(within, j.order.Location); err != nil && within.Err() == nil {
			return j.problem("finalize", fmt.Errorf("waiting for the certificate: %w", err))
		}
	}
	return nil
}

// pause waits between two questions, as long as the authority wants within reason.
func (j *job) pause(ctx context.Context, t *trace) error {
	_, after := t.last()
	return sleep(ctx, min(max(after.Sub(j.c.Now()), j.c.Interval), max(maxWait, j.c.Interval)))
}

// download gets the chains of a valid order and returns the one to serve.
func (j *job) download(ctx context.Context) (certmanager.Issued, error) {
	j.tell("downloading the certificate")
	chains, err := j.client.GetCertificateChain(ctx, j.account, j.order.Certificate)
	if err != nil {
		return certmanager.Issued{}, j.problem("finalize", fmt.Errorf("downloading the certificate: %w", err))
	}
	if len(chains) == 0 {
		return certmanager.Issued{}, j.problem("finalize", errors.New("downloading the certificate: there is none"))
	}
	chosen, err := j.verify(chains[0].ChainPEM)
	if err != nil {
		return certmanager.Issued{}, err
	}
	for _, c := range chains {
		if j.c.PreferredChain == "" || leadsTo(chosen, j.c.PreferredChain) {
			break
		}
		if other, err := j.verify(c.ChainPEM); err == nil && leadsTo(other, j.c.PreferredChain) {
			chosen = other
		}
	}
	var issued certmanager.Issued
	for _, c := range chosen {
		issued.Chain = append(issued.Chain, c.Raw)
	}
	return issued, nil
}

func leadsTo(chain []*x509.Certificate, root string) bool {
	return chain[len(chain)-1].Issuer.CommonName == root
}

// verify says whether a chain is what was ordered, and returns it without its root.
func (j *job) verify(text []byte) ([]*x509.Certificate, error) {
	chain, err := parseChain(text)
	if err == nil {
		err = checkLeaf(chain[0], j.o.Names, j.c.Now())
	}
	if err != nil {
		return nil, &certmanager.Problem{Step: "verify", Err: err}
	}
	key, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(j.o.Key.Public()) {
		err := errors.New("the certificate is for another key")
		if j.o.State == j.order.Location {
			err = fmt.Errorf("%w: %w", err, errAnother)
		}
		return nil, &certmanager.Problem{Step: "verify", Err: err}
	}
	return chain, nil
}

// parseChain reads a chain in PEM. Each certificate is signed by the next.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("the chain is no PEM of certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain cannot be read: %w", len(chain)+1, err)
		}
		if chain = append(chain, c); len(chain) > maxChain {
			return nil, fmt.Errorf("the chain has more than %d certificates", maxChain)
		}
	}
	if len(chain) == 0 {
		return nil, errors.New("the chain is empty")
	}
	for i, c := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain is not signed by the next: %w", i+1, err)
		}
	}
	if last := chain[len(chain)-1]; len(chain) > 1 && last.CheckSignatureFrom(last) == nil {
		chain = chain[:len(chain)-1]
	}
	return chain, nil
}

// checkLeaf says whether a certificate is for names, for servers, and valid now.
func checkLeaf(leaf *x509.Certificate, names []string, now time.Time) error {
	if got := certmanager.LeafNames(leaf); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(names))) {
		return fmt.Errorf("the certificate is for %s", bounded(strings.Join(got, ", ")))
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return errors.New("the certificate is not for servers")
	}
	if now.Add(skew).Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		return fmt.Errorf("the certificate is valid from %v to %v, and now it is %v: is the clock right?", leaf.NotBefore, leaf.NotAfter, now)
	}
	return nil
}
