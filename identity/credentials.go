package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Credentials are what a client presented. A Protocol fills in what it learned;
// every field may be empty. No method prints Password or Token, nor do fmt, slog
// and encoding/json.
type Credentials struct {
	// TLS is the state of the client's connection, nil without TLS. A certificate
	// counts only if it was verified: if VerifiedChains is not empty.
	TLS *tls.ConnectionState `json:"-"`
	// Username is account/name.
	Username string `json:"username,omitempty"`
	// Password of Username.
	Password string `json:"-"`
	// Prove, in place of Password, has the client prove that it has the password of
	// Username by the verifier of SCRAM-SHA-256: nil if it does. It may be called again,
	// and knows what it was told then.
	Prove func(Scram) error `json:"-"`
	// Bearer is a bearer token of a user, see IsBearer.
	Bearer string `json:"-"`
	// Token is an enrollment token.
	Token string `json:"-"`
	// Link is the secret of a login link, which is good once. The node that made it
	// knows whose it is.
	Link string `json:"-"`
	// Vouched is account/name of whose Link is. A server sets it, whatever a Protocol
	// says; empty: there is no such link.
	Vouched string `json:"-"`
	// Listener is the name of the listener that the client came in by.
	Listener string `json:"listener,omitempty"`
	// Remote is the client's address, with or without port.
	Remote string `json:"remote,omitempty"`
}

// String says which sorts of credentials there are, and from where.
func (c Credentials) String() string {
	var kinds []string
	if c.TLS != nil && len(c.TLS.PeerCertificates) > 0 {
		kinds = append(kinds, "certificate")
	}
	if c.Username != "" {
		kinds = append(kinds, "username "+quote(c.Username))
	}
	if c.Password != "" {
		kinds = append(kinds, "password")
	}
	if c.Prove != nil {
		kinds = append(kinds, "proof of a password")
	}
	if c.Bearer != "" {
		kinds = append(kinds, "bearer token")
	}
	if c.Token != "" {
		kinds = append(kinds, "token")
	}
	if c.Link != "" {
		kinds = append(kinds, "login link")
	}
	if kinds == nil {
		kinds = []string{"nothing"}
	}
	return fmt.Sprintf("%s from %s on %s", strings.Join(kinds, ", "), quote(c.Remote), quote(c.Listener))
}

// GoString is String, so that %#v shows no secret.
func (c Credentials) GoString() string { return c.String() }

// Format writes String for every verb, so that none of them shows a secret.
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue is String.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ErrUnauthorized says that credentials were refused. Its text, "unauthorized",
// may be shown to the client.
var ErrUnauthorized = errors.New("unauthorized")

// A Refusal is why credentials were refused. Error is for the client and tells
// nothing; Operator is for the log. It wraps ErrUnauthorized and the cause, if
// there is one: errors.Is finds both.
type Refusal struct {
	// Reason for the operator.
	Reason string
	cause  error
}

// Error is the text of ErrUnauthorized, whatever the reason.
func (r *Refusal) Error() string { return ErrUnauthorized.Error() }

// Operator is the reason, for those who may see it.
func (r *Refusal) Operator() string { return r.Reason }

// Unwrap returns ErrUnauthorized and the cause.
func (r *Refusal) Unwrap() []error {
	if r.cause == nil {
		return []error{ErrUnauthorized}
	}
	return []error{ErrUnauthorized, r.cause}
}

func refuse(format string, args ...any) *Refusal {
	err := fmt.Errorf(format, args...)
	return &Refusal{Reason: err.Error(), cause: errors.Unwrap(err)}
}
