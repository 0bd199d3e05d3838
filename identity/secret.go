package identity

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"
)

// SecretPublic is the public curve nkey that secrets are sealed to which only
// nodes may open, such as a database's password in a record of the ledger.
func (a *Authority) SecretPublic() (string, error) {
	key, err := a.curveKey("secret")
	return key.public, err
}

// SealSecret encrypts data to recipient, the SecretPublic of a fleet. The result
// is text; who sealed it cannot be told from it.
func SealSecret(recipient string, data []byte) (string, error) {
	if !nkeys.IsValidPublicCurveKey(recipient) {
		return "", fmt.Errorf("sealing a secret: %s is not a public curve key", quote(recipient))
	}
	sender, err := newKeyPair(nkeys.CreateCurveKeys())
	if err != nil {
		return "", fmt.Errorf("sealing a secret: %w", err)
	}
	sealed, err := sender.Seal(data, recipient)
	if err != nil {
		return "", fmt.Errorf("sealing a secret: %w", err)
	}
	return sender.public + "." + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// OpenSecret decrypts what SealSecret sealed to this fleet.
func (a *Authority) OpenSecret(text string) ([]byte, error) {
	sender, body, ok := strings.Cut(text, ".")
	sealed, err := base64.RawURLEncoding.DecodeString(body)
	if !ok || err != nil || !nkeys.IsValidPublicCurveKey(sender) {
		return nil, errors.New("opening a secret: it is not a sealed one")
	}
	key, err := a.curveKey("secret")
	if err != nil {
		return nil, fmt.Errorf("opening a secret: %w", err)
	}
	data, err := key.Open(sealed, sender)
	if err != nil {
		return nil, errors.New("opening a secret: it was not sealed to this fleet, or is damaged")
	}
	return data, nil
}
