package provision

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

const (
	tokenPrefix = "fbp1" // the version of the text format
	tokenID     = 16     // hexadecimal digits
)

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// A Token lets machines prove that they may have an identity. It is what
// provisioners know of it: a public key. Its text, which has the private one, is
// shown once; it signs requests, and is never sent.
type Token struct {
	// ID is 16 random hexadecimal digits.
	ID string `json:"id"`
	// Label says what it is for, to people and to rules.
	Label string `json:"label,omitempty"`
	// Key is the public key, of Ed25519.
	Key []byte `json:"key"`
	// Uses is how many machines may use it.
	Uses int `json:"uses"`
	// Name that it is for; empty: any.
	Name    string    `json:"name,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked,omitempty"`
}

// MaxUses bounds the uses of one token.
const MaxUses = 100_000

// NewToken makes a token for uses machines, and its text. pin is the fleet's.
func NewToken(pin, label, name string, uses int, life time.Duration, now time.Time) (Token, string, error) {
	if err := identity.CheckPin(pin); err != nil {
		return Token{}, "", err
	}
	for what, text := range map[string]string{"label": label, "name": name} {
		if err := identity.CheckName(text); text != "" && err != nil {
			return Token{}, "", fmt.Errorf("making a token: its %s: %w", what, err)
		}
	}
	switch {
	case uses < 1 || uses > MaxUses:
		return Token{}, "", fmt.Errorf("making a token: it is for 1 to %d machines", MaxUses)
	case name != "" && uses > 1:
		return Token{}, "", errors.New("making a token: one machine has the name")
	case life <= 0:
		return Token{}, "", errors.New("making a token: it has to expire later than now")
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Token{}, "", fmt.Errorf("making a token: %w", err)
	}
	id := make([]byte, tokenID/2)
	rand.Read(id) // never fails
	t := Token{ID: hex.EncodeToString(id), Label: label, Key: public, Uses: uses, Name: name, Created: now, Expires: now.Add(life)}
	return t, strings.Join([]string{tokenPrefix, pin, t.ID, tokenText.EncodeToString(private.Seed())}, "."), nil
}

// TokenText is the content of a token's text. It prints without the secret.
type TokenText struct {
	Pin, ID string
	key     ed25519.PrivateKey
}

// ParseToken reads the text of a token. The error never quotes it.
func ParseToken(text string) (TokenText, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return TokenText{}, errors.New("reading a token: it does not have the form " + tokenPrefix + ".<pin>.<id>.<secret>")
	}
	if err := identity.CheckPin(parts[1]); err != nil {
		return TokenText{}, errors.New("reading a token: its pin is damaged")
	}
	if len(parts[2]) != tokenID || strings.Trim(parts[2], "0123456789abcdef") != "" {
		return TokenText{}, errors.New("reading a token: its id is damaged")
	}
	seed, err := tokenText.DecodeString(parts[3])
	if err != nil || len(seed) != ed25519.SeedSize {
		return TokenText{}, errors.New("reading a token: its secret is damaged")
	}
	return TokenText{Pin: parts[1], ID: parts[2], key: ed25519.NewKeyFromSeed(seed)}, nil
}

// String is the text without the secret.
func (t TokenText) String() string {
	return strings.Join([]string{tokenPrefix, t.Pin, t.ID, "..."}, ".")
}

// Format writes String for every verb, so that none of them shows the secret.
func (t TokenText) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue is String.
func (t TokenText) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Why a token proves nothing.
var (
	errTokenUnknown = errors.New("the token is not known")
	errTokenUsed    = errors.New("the token has been used")
	errTokenExpired = errors.New("the token has expired")
	errTokenRevoked = errors.New("the token has been revoked")
	errTokenName    = errors.New("the token is for a machine of another name")
	errTokenForged  = errors.New("the request is not signed by the token")
)

// check says why d does not prove by t that it be granted; nil if it does, and if
// there is a use left.
func (t Token) check(d *demand, now time.Time) error {
	switch {
	case len(t.Key) != ed25519.PublicKeySize || !ed25519.Verify(t.Key, signable(ofToken, d.Ask), d.TokenSignature):
		return errTokenForged
	case t.Revoked:
		return errTokenRevoked
	case !now.Before(t.Expires):
		return errTokenExpired
	case t.Name != "" && t.Name != d.Name:
		return errTokenName
	}
	return nil
}
