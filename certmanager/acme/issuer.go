// Package acme issues certificates of ACME authorities: RFC 8555, with profiles,
// renewal information (RFC 9773) and external accounts.
//
//	key, err := acme.NewKey()
//	issuer, err := acme.New(acme.Config{Directory: url, Key: key, Providers: providers})
//	issued, err := issuer.Issue(ctx, order)
//
// The caller keeps the key of the account, and what Order.Save gives it: with these
// two, any process goes on with an order where another one was stopped.
package acme

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/certmanager"
)

// A Provider changes the TXT records of zones. It is safe for concurrent use. Package
// certmanager/dns has some.
type Provider interface {
	// Append adds a text to those of name, which is absolute and in zone, and leaves
	// the others. A text that is there already is no error.
	Append(ctx context.Context, zone, name, text string) error
	// Delete removes this text, and leaves the others. A text that is not there is no
	// error.
	Delete(ctx context.Context, zone, name, text string) error
}

// EAB binds an account to one that the authority knows: RFC 8555, section 7.3.4.
type EAB struct {
	KeyID string
	// MAC is the key in base64url, as authorities hand it out.
	MAC string
}

// Config makes an Issuer.
type Config struct {
	// Directory is the URL of the authority's directory, which is https.
	Directory string
	// Key is the private key of the account, in PEM. NewKey makes one. The account is
	// made when it is first needed, if the authority has none for the key.
	Key string
	// Mail of the account. Empty: none is given.
	Mail string
	// EAB is needed by some authorities to make an account. Nil: none.
	EAB *EAB
	// Roots are certificates in PEM that the directory's server is verified with,
	// besides those of the system.
	Roots string
	// Profile of orders that name none. Empty: "default" or "classic" or the only one,
	// if the authority has it; else what the authority takes.
	Profile string
	// PreferredChain is the common name of a root, if the authority has several chains
	// to choose from. Empty, or none fits: the first.
	PreferredChain string
	// Providers that change DNS, by the names in cert.Method.
	Providers map[string]Provider
	// Resolvers are host:port of recursive resolvers. Empty: those in
	// /etc/resolv.conf.
	Resolvers []string
	// Nameservers are host:port of servers that are asked in place of the
	// authoritative ones of zones, where these cannot be reached. Empty: none.
	Nameservers []string

	// Propagation is how long DNS may take to have a record. Default 5 minutes.
	Propagation time.Duration
	// Validation is how long the authority may take to validate, and again to issue.
	// Default 5 minutes.
	Validation time.Duration
	// Request is how long one request to the authority may take. Default 30 s.
	Request time.Duration
	// Interval is how often the authority, or a nameserver, is asked again, unless
	// the authority says. Default 1 s.
	Interval time.Duration
	// Now is the clock that what the authority says of times is judged by. Default
	// time.Now.
	Now func() time.Time
	// UserAgent is the program, for the authority's operators. Default "fleetbus".
	UserAgent string
}

// String says whose configuration it is.
func (c Config) String() string { return "ACME authority " + c.Directory }

// Format writes String for every verb, so that none of them shows a secret.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// An Issuer obtains certificates from one ACME authority. Make it with New. It is
// safe for concurrent use.
type Issuer struct {
	c        Config
	key      crypto.Signer
	client   *acme.Client
	wire     *wire
	resolver resolver

	opening lock // the account
	account *acme.Account
}

var _ certmanager.Issuer = (*Issuer)(nil)

// String says whose issuer it is.
func (i *Issuer) String() string { return i.c.String() }

// Format writes String for every verb, so that none of them shows a secret.
func (i *Issuer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// NewKey makes the private key of an account, P-256, in PEM.
func NewKey() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("making the key of an account: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encoding the key of an account: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// parseKey reads the key of an account: PKCS #8, SEC 1 or PKCS #1. Its errors do not
// quote it.
func parseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("reading the key of the account: it is no PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, errors.New("reading the key of the account: it is no private key")
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return key, nil
		}
	case *rsa.PrivateKey:
		if key.N.BitLen() >= 2048 {
			return key, nil
		}
	}
	return nil, errors.New("reading the key of the account: authorities take P-256, P-384, and RSA of 2048 bits or more")
}

// New makes an Issuer, and connects nothing.
func New(c Config) (*Issuer, error) {
	u, err := url.Parse(c.Directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("making an ACME issuer: the directory %q is no https URL", c.Directory)
	}
	u.Fragment = ""
	c.Directory = u.String()
	key, err := parseKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("making an ACME issuer: %w", err)
	}
	if c.Mail != "" {
		if a, err := mail.ParseAddress(c.Mail); err != nil || a.Address != c.Mail {
			return nil, fmt.Errorf("making an ACME issuer: %q is no mail address", c.Mail)
		}
	}
	if c.EAB != nil && (c.EAB.KeyID == "" || c.EAB.MAC == "") {
		return nil, errors.New("making an ACME issuer: an external account needs a key id and a MAC key")
	}
	c.Propagation = cmp.Or(c.Propagation, 5*time.Minute)
	c.Validation = cmp.Or(c.Validation, 5*time.Minute)
	c.Request = cmp.Or(c.Request, 30*time.Second)
	c.Interval = cmp.Or(c.Interval, time.Second)
	c.UserAgent = cmp.Or(c.UserAgent, "fleetbus")
	if c.Now == nil {
		c.Now = time.Now
	}
	w, err := newWire(c)
	if err != nil {
		return nil, fmt.Errorf("making an ACME issuer: %w", err)
	}
	return &Issuer{
		c: c, key: key, wire: w, opening: make(lock, 1),
		client: &acme.Client{
			Directory: w.local, UserAgent: c.UserAgent, PollTimeout: 1, // this package polls by itself
			HTTPClient: &http.Client{Transport: w, Timeout: c.Request, CheckRedirect: noRedirect},
		},
		resolver: resolver{servers: c.Resolvers, fixed: c.Nameservers, port: "53", interval: c.Interval},
	}, nil
}

// Account returns the URL of the account at the authority, which is made if there is
// none. It is what a dns-persist-01 record names.
func (i *Issuer) Account(ctx context.Context) (string, error) {
	t := i.trace()
	account, err := i.open(t.with(ctx))
	if err != nil {
		return "", t.problem("order", err)
	}
	return account.Location, nil
}

// open returns the account, once the directory is known.
func (i *Issuer) open(ctx context.Context) (acme.Account, error) {
	dir, err := i.wire.directory(ctx)
	if err != nil {
		return acme.Account{}, err
	}
	if err := i.opening.take(ctx); err != nil {
		return acme.Account{}, err
	}
	defer i.opening.give()
	if i.account != nil {
		return *i.account, nil
	}
	account := acme.Account{PrivateKey: i.key, TermsOfServiceAgreed: true}
	if i.c.Mail != "" {
		account.Contact = []string{"mailto:" + i.c.Mail}
	}
	found, err := i.client.GetAccount(ctx, acme.Account{PrivateKey: i.key})
	if problemType(err) == acme.ProblemTypeAccountDoesNotExist {
		if i.c.EAB == nil && dir.Meta != nil && dir.Meta.ExternalAccountRequired {
			return acme.Account{}, acme.Problem{Type: acme.ProblemTypeExternalAccountRequired, Detail: "the authority makes no account without an external one, and none is configured"}
		}
		if i.c.EAB != nil {
			mac := strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(i.c.EAB.MAC)
			if err := account.SetExternalAccountBinding(ctx, i.client, acme.EAB{KeyID: i.c.EAB.KeyID, MACKey: mac}); err != nil {
				return acme.Account{}, errors.New("binding the external account: its MAC key is no base64url") // the error would quote it
			}
		}
		found, err = i.client.NewAccount(ctx, account)
	}
	if err != nil {
		return acme.Account{}, fmt.Errorf("opening the account: %w", err)
	}
	if found.Status != "" && found.Status != acme.StatusValid {
		return acme.Account{}, acme.Problem{Type: acme.ProblemTypeUnauthorized, Detail: "the account is " + found.Status}
	}
	if found.Location == "" {
		return acme.Account{}, errors.New("opening the account: the authority did not say where it is")
	}
	i.account = &acme.Account{PrivateKey: i.key, Location: found.Location, Orders: found.Orders}
	return *i.account, nil
}

// forget lets the account be looked for again, if err says that there is none.
func (i *Issuer) forget(ctx context.Context, err error) {
	if problemType(err) == acme.ProblemTypeAccountDoesNotExist && i.opening.take(ctx) == nil {
		i.account = nil
		i.opening.give()
	}
}
