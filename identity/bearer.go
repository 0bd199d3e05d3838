package identity

import (
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"
)

// bearerPrefix is the version of the text of a bearer token.
const bearerPrefix = "fbb1"

// IsBearer reports whether text is meant to be a bearer token. Protocols that have
// one field for every secret tell them from passwords by it.
func IsBearer(text string) bool { return strings.HasPrefix(text, bearerPrefix+".") }

// A Bearer is a user's bearer token as the fleet knows it: whoever shows its text is
// the user. It does not hold the secret.
type Bearer struct {
	// SecretHash is the SHA-256 of the secret in hexadecimal. The secret is random
	// and long, so that a slow hash would add nothing.
	SecretHash string `json:"secret_hash"`
	// Created is when it was made. Expires is when it is worthless. Zero: never.
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
}

// NewBearer makes the text of a bearer token for a user, which exists nowhere else,
// and the hash of its secret, which is all that the fleet needs.
func NewBearer(account, name string) (text, secretHash string, err error) {
	if err := errors.Join(CheckName(account), CheckName(name)); err != nil {
		return "", "", fmt.Errorf("making a bearer token: %w", err)
	}
	secret := encodeSecret(randomBytes(tokenSecret))
	return strings.Join([]string{bearerPrefix, account, name, secret}, "."), hashSecret(secret), nil
}

// CheckBearerHash returns nil if hash may be a Bearer's SecretHash.
func CheckBearerHash(hash string) error {
	if len(hash) != len(hashSecret("")) || !isHex(hash) {
		return errors.New("checking a bearer token's hash: it is not a SHA-256 in hexadecimal")
	}
	return nil
}

// parseBearer reads the text of a bearer token. The error never quotes it.
func parseBearer(text string) (account, name, secret string, err error) {
	parts := strings.Split(text, ".")
	switch {
	case len(parts) != 4 || parts[0] != bearerPrefix || CheckName(parts[1]) != nil || CheckName(parts[2]) != nil:
		return "", "", "", errors.New("it does not have the form " + bearerPrefix + ".<account>.<name>.<secret>")
	case len(parts[3]) != base32.StdEncoding.WithPadding(base32.NoPadding).EncodedLen(tokenSecret):
		return "", "", "", errors.New("its secret is damaged")
	}
	return parts[1], parts[2], parts[3], nil
}

func (d *Directory) authenticateBearer(c Credentials, now time.Time) (Principal, error) {
	account, name, secret, err := parseBearer(c.Bearer)
	if err != nil {
		return Principal{}, refuse("reading a bearer token: %w", err)
	}
	full := account + "/" + name
	if c.Username != "" && c.Username != full {
		return Principal{}, refuse("the bearer token is of %q and the username is %s", full, quote(c.Username))
	}
	user, _ := d.User(account, name)
	b := user.Bearer
	switch {
	case b == nil:
		return Principal{}, refuse("user %q has no bearer token", full)
	case subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(b.SecretHash)) != 1:
		return Principal{}, refuse("checking the bearer token of %q: %w", full, ErrTokenSecret)
	case !b.Expires.IsZero() && !now.Before(b.Expires):
		return Principal{}, refuse("checking the bearer token of %q: %w", full, ErrTokenExpired)
	}
	p, err := d.principal(c, account, name, now)
	if err == nil && !b.Expires.IsZero() && (p.Expires.IsZero() || b.Expires.Before(p.Expires)) {
		p.Expires = b.Expires
	}
	return p, err
}
