package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"
)

// A User is a named principal of an account, and the credentials it has been
// given. It is a record of the ledger.
type User struct {
	// Account and Name together identify the user.
	Account string `json:"account"`
	Name    string `json:"name"`
	// Kind of principal. Empty: KindUser.
	Kind Kind `json:"kind,omitempty"`
	// Role says what the user may do.
	Role string `json:"role"`
	// Expires is the life of the user's credentials and sessions. Zero: the role's.
	Expires time.Duration `json:"expires,omitempty"`
	// Keys are the public halves of the user's creds files.
	Keys []UserKey `json:"keys,omitempty"`
	// Certificates that were issued to the user or registered for it.
	Certificates []UserCertificate `json:"certificates,omitempty"`
	// Password as HashPassword returned it. Empty: the user has none.
	Password string `json:"password,omitempty"`
	// Bearer is the user's bearer token. Nil: it has none.
	Bearer *Bearer `json:"bearer,omitempty"`
	// Site is where a user of kind leaf links. Nil for any other.
	Site *Site `json:"site,omitempty"`
	// Denied shuts the user out, whatever it presents. DeniedAt is since when.
	Denied   bool      `json:"denied,omitempty"`
	DeniedAt time.Time `json:"denied_at,omitzero"`
	// Created is when the user was made.
	Created time.Time `json:"created,omitzero"`
	// Revision counts what was written of the user since the fleet has regions, and
	// Region wrote last. Denials counts denials and their end.
	Revision uint64 `json:"revision,omitempty"`
	Region   string `json:"region,omitempty"`
	Denials  uint64 `json:"denials,omitempty"`
	// Removed is true of what regions remember of a user who was: see Gone.
	Removed bool `json:"removed,omitempty"`
}

// A UserKey is the public half of the key in a creds file.
type UserKey struct {
	// Public is the user's public nkey.
	Public string `json:"public"`
	// Issued is when the creds file was made. Expires is when it is worthless.
	// Zero: never.
	Issued  time.Time `json:"issued,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// Signer is the generation of the role's key that signed it. Empty: the first.
	Signer string `json:"signer,omitempty"`
}

// A UserCertificate is a certificate that a user may come in by.
type UserCertificate struct {
	// SHA256 is the KeyHash of the certificate.
	SHA256 string `json:"sha256"`
	// Serial number of the certificate, in hexadecimal.
	Serial string `json:"serial,omitempty"`
	// NotAfter is when it expires.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Registered is true for a certificate of another authority, which does not
	// name the user itself.
	Registered bool `json:"registered,omitempty"`
	// Signer is the generation of the authority that issued it. Empty: the first.
	Signer string `json:"signer,omitempty"`
}

// KeyHash returns the SHA-256 of a certificate's public key (its
// SubjectPublicKeyInfo) in hexadecimal. It stays the same when the certificate
// is renewed with the same key.
func KeyHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// String returns the full name, such as "acme/alice".
func (u User) String() string { return u.Account + "/" + u.Name }

// Format writes String for every verb, so that none of them shows the password's
// hash.
func (u User) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) }

// LogValue is String.
func (u User) LogValue() slog.Value { return slog.StringValue(u.String()) }

// Life returns how long credentials and sessions of u last under role r: its
// own Expires, else the role's. Zero: no end.
func (u User) Life(r Role) time.Duration {
	if u.Expires > 0 {
		return u.Expires
	}
	return r.Expires
}

// Publics are its public keys.
func (u User) Publics() []string {
	keys := make([]string, len(u.Keys))
	for i, k := range u.Keys {
		keys[i] = k.Public
	}
	return keys
}

// Told is u without what only the fleet may know.
func (u User) Told() User {
	if u.Password != "" {
		u.Password = "set"
	}
	if u.Bearer != nil {
		u.Bearer = &Bearer{SecretHash: "set", Created: u.Bearer.Created, Expires: u.Bearer.Expires}
	}
	return u
}

// keyNames are its public keys, and the hashes of those of its certificates.
func (u User) keyNames() []string {
	names := u.Publics()
	for _, c := range u.Certificates {
		names = append(names, c.SHA256)
	}
	return names
}

func (u User) clone() User {
	u.Keys = slices.Clone(u.Keys)
	u.Certificates = slices.Clone(u.Certificates)
	return u
}
