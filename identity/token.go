package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Why an enrollment token is refused. They are found with errors.Is in what
// Token.Check and Directory.Authenticate return.
var (
	ErrTokenUsed    = errors.New("token has been used")
	ErrTokenExpired = errors.New("token has expired")
	ErrTokenRevoked = errors.New("token has been revoked")
	ErrTokenKind    = errors.New("token is for another kind of principal")
	ErrTokenSecret  = errors.New("token has the wrong secret")
)

const (
	tokenPrefix   = "fb1" // the version of the text format
	tokenHash     = 32    // hexadecimal digits of the authority's hash in a token
	tokenID       = 16    // hexadecimal digits
	tokenSecret   = 20    // bytes
	tokenAlphabet = "abcdefghijklmnopqrstuvwxyz234567"
)

// A Token is an enrollment token as the fleet knows it: whoever holds its text
// may enroll once. It is a record of the ledger, and does not hold the secret.
type Token struct {
	// ID is 16 random hexadecimal digits.
	ID string `json:"id"`
	// Kind of principal that may enroll.
	Kind Kind `json:"kind"`
	// Account that it enrolls in. Empty for a node.
	Account string `json:"account,omitempty"`
	// Name that it enrolls as. Empty: it may choose.
	Name string `json:"name,omitempty"`
	// Networks that the link of a leaf may come from. Empty: any.
	Networks []string `json:"networks,omitempty"`
	// SecretHash is the SHA-256 of the secret in hexadecimal. The secret is random
	// and long, so that a slow hash would add nothing.
	SecretHash string `json:"secret_hash"`
	// Created is when the token was made, Expires when it ends.
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires"`
	// Used is true once somebody enrolled: UsedBy, at UsedAt.
	Used   bool      `json:"used,omitempty"`
	UsedBy string    `json:"used_by,omitempty"`
	UsedAt time.Time `json:"used_at,omitzero"`
	// Revoked is true once an operator took the token back.
	Revoked bool `json:"revoked,omitempty"`
}

// NewToken makes a token with which a principal of that kind may enroll until
// life has passed, and its text, which exists nowhere else. authorityHash is
// Authority.Hash; by it the joiner recognizes the fleet. A node has no account;
// every other kind needs one. name may be empty.
func NewToken(kind Kind, authorityHash, account, name string, life time.Duration, now time.Time) (Token, string, error) {
	if err := checkTokenScope(kind, account, name); err != nil {
		return Token{}, "", fmt.Errorf("making a token for a %s: %w", quote(string(kind)), err)
	}
	if len(authorityHash) < tokenHash || !isHex(authorityHash) {
		return Token{}, "", fmt.Errorf("making a token: %s is not an authority's hash", quote(authorityHash))
	}
	if life <= 0 {
		return Token{}, "", fmt.Errorf("making a token: its life of %s is not positive", life)
	}
	secret := encodeSecret(randomBytes(tokenSecret))
	t := Token{
		ID:         randomHex(tokenID),
		Kind:       kind,
		Account:    account,
		Name:       name,
		SecretHash: hashSecret(secret),
		Created:    now,
		Expires:    now.Add(life),
	}
	return t, strings.Join([]string{tokenPrefix, authorityHash[:tokenHash], t.ID, secret}, "."), nil
}

func checkTokenScope(kind Kind, account, name string) error {
	switch kind {
	case KindNode:
		if account != "" {
			return fmt.Errorf("a node is in no account, but %s is given", quote(account))
		}
	case KindRegion:
		if account != "" {
			return fmt.Errorf("a region is in no account, but %s is given", quote(account))
		}
	case KindUser:
		// Without a name it would be good for the place of any user there is.
		if err := errors.Join(CheckName(account), CheckName(name)); err != nil {
			return fmt.Errorf("checking the user: %w", err)
		}
	case KindLeaf, KindTarget:
		if err := CheckName(account); err != nil {
			return fmt.Errorf("checking the account: %w", err)
		}
	default:
		return errors.New("only a user, node, leaf, gateway or target enrolls")
	}
	if name != "" {
		return CheckName(name)
	}
	return nil
}

// Check returns nil if secret is the token's and a principal of that kind may
// still enroll; else ErrTokenSecret, ErrTokenRevoked, ErrTokenUsed,
// ErrTokenExpired or ErrTokenKind, the first that holds. It takes the same time
// whatever part of secret is right.
func (t Token) Check(secret string, kind Kind, now time.Time) error {
	switch {
	case subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(t.SecretHash)) != 1:
		return ErrTokenSecret
	case t.Revoked:
		return ErrTokenRevoked
	case t.Used:
		return ErrTokenUsed
	case !now.Before(t.Expires):
		return ErrTokenExpired
	case t.Kind != kind:
		return ErrTokenKind
	}
	return nil
}

// TokenText is the content of an enrollment token's text. It prints without the
// secret.
type TokenText struct {
	// AuthorityHash is the first 32 hexadecimal digits of Authority.Hash.
	AuthorityHash string
	// ID of the Token.
	ID string
	// Secret of the token, in base32.
	Secret string `json:"-"`
}

// ParseToken reads the text of an enrollment token, such as NewToken returned
// it. The error says what is wrong and never quotes the text.
func ParseToken(text string) (TokenText, error) {
	parts := strings.Split(text, ".")
	switch {
	case len(parts) != 4 || parts[0] != tokenPrefix:
		return TokenText{}, errors.New("parsing a token: it does not have the form " + tokenPrefix + ".<authority>.<id>.<secret>")
	case len(parts[1]) != tokenHash || !isHex(parts[1]):
		return TokenText{}, fmt.Errorf("parsing a token: its authority is not %d hexadecimal digits", tokenHash)
	case len(parts[2]) != tokenID || !isHex(parts[2]):
		return TokenText{}, fmt.Errorf("parsing a token: its id is not %d hexadecimal digits", tokenID)
	case len(parts[3]) != base32.StdEncoding.WithPadding(base32.NoPadding).EncodedLen(tokenSecret) ||
		strings.Trim(parts[3], tokenAlphabet) != "":
		return TokenText{}, errors.New("parsing a token: its secret is damaged")
	}
	return TokenText{AuthorityHash: parts[1], ID: parts[2], Secret: parts[3]}, nil
}

// InboxPrefix is the prefix of the only subjects that the holder of the token
// may subscribe to. Replies to others that enroll are not for its eyes.
func (t TokenText) InboxPrefix() string { return tokenInbox(t.ID) }

func tokenInbox(id string) string { return "_INBOX." + id }

// VerifyServer returns nil if chain, as a server showed it in its handshake,
// leads to the authority that made the token. It is for the time before the
// joiner knows the authority's certificates: they are the last two of the
// chain of Authority.SignNode. Any node of the fleet will do, so that no host
// name is compared.
func (t TokenText) VerifyServer(chain []*x509.Certificate, now time.Time) error {
	if len(chain) != 3 {
		return fmt.Errorf("verifying the server of token %q: it showed %d certificates where a node of the fleet shows 3", t.ID, len(chain))
	}
	clients, mesh := chain[1], chain[2]
	if hash := hashAuthorities(clients, mesh); subtle.ConstantTimeCompare([]byte(hash[:tokenHash]), []byte(t.AuthorityHash)) != 1 {
		return fmt.Errorf("verifying the server of token %q: it is of another fleet than the token", t.ID)
	}
	roots := x509.NewCertPool()
	roots.AddCert(clients)
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("verifying the server of token %q: %w", t.ID, err)
	}
	return nil
}

// String is the token's text without the secret.
func (t TokenText) String() string {
	return strings.Join([]string{tokenPrefix, t.AuthorityHash, t.ID, "..."}, ".")
}

// Format writes String for every verb, so that none of them shows the secret.
func (t TokenText) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue is String.
func (t TokenText) LogValue() slog.Value { return slog.StringValue(t.String()) }

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func encodeSecret(secret []byte) string {
	return base32.NewEncoding(tokenAlphabet).WithPadding(base32.NoPadding).EncodeToString(secret)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the process if the machine has no randomness
	return b
}

func randomHex(digits int) string { return hex.EncodeToString(randomBytes(digits / 2)) }

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }
