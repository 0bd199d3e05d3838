package provision

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// clockSkew is how far the clock of who signs claims may be from ours.
const clockSkew = time.Minute

// A claim is what somebody whom the rules trust says of a machine: the content of a
// JWT (RFC 7519), signed with EdDSA or ES256.
type claim struct {
	// By is the name of the key in the rules.
	By string
	// ID tells it from others: it is good once.
	ID string
	// All are the claims in it; of them Subject, if there is one, is the name that the
	// machine must have.
	All     map[string]any
	Subject string
	Expires time.Time
}

// parseKey reads a public key in PEM, or the 32 bytes of one of Ed25519 in base64.
func parseKey(text string) (any, error) {
	if block, _ := pem.Decode([]byte(text)); block != nil {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading a key: %w", err)
		}
		switch k := key.(type) {
		case ed25519.PublicKey:
			return k, nil
		case *ecdsa.PublicKey:
			if k.Params().BitSize == 256 {
				return k, nil
			}
		}
		return nil, errors.New("reading a key: it is neither of Ed25519 nor of ECDSA P-256")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, errors.New("reading a key: it is neither PEM nor the 32 bytes of Ed25519 in base64")
	}
	return ed25519.PublicKey(raw), nil
}

var (
	errClaimForm    = errors.New("the claim is not a JWT that is signed with EdDSA or ES256")
	errClaimSigner  = errors.New("the claim is signed by nobody whom the rules trust")
	errClaimExpired = errors.New("the claim has expired, or does not say when it does")
	errClaimEarly   = errors.New("the claim does not hold yet")
	errClaimFleet   = errors.New("the claim is for another fleet")
	errClaimName    = errors.New("the claim is for a machine of another name")
	errClaimUsed    = errors.New("the claim has been used by another machine")
)

// openClaim reads a JWT, signed by one of keys, for a machine of that name and that
// fleet. It has to say when it expires; an audience, if it has any, has to name the
// fleet.
func openClaim(text string, keys map[string]any, name, fleet string, now time.Time) (claim, error) {
	parts := strings.Split(text, ".")
	if len(text) > maxClaim || len(parts) != 3 {
		return claim{}, errClaimForm
	}
	var raw [3][]byte
	for i, part := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			return claim{}, errClaimForm
		}
	}
	var header struct {
		Alg  string   `json:"alg"`
		Crit []string `json:"crit"`
	}
	if json.Unmarshal(raw[0], &header) != nil || len(header.Crit) > 0 || header.Alg != "EdDSA" && header.Alg != "ES256" {
		return claim{}, errClaimForm
	}
	sum := sha256.Sum256([]byte(text))
	c := claim{ID: hex.EncodeToString(sum[:16])}
	message := []byte(parts[0] + "." + parts[1])
	for by, key := range keys {
		if verifies(key, header.Alg, message, raw[2]) {
			c.By = by
		}
	}
	if c.By == "" {
		return claim{}, errClaimSigner
	}
	var body struct {
		Subject   string   `json:"sub"`
		Audience  audience `json:"aud"`
		ID        string   `json:"jti"`
		Expires   *float64 `json:"exp"`
		NotBefore *float64 `json:"nbf"`
	}
	if json.Unmarshal(raw[1], &body) != nil || json.Unmarshal(raw[1], &c.All) != nil {
		return claim{}, errClaimForm
	}
	if body.ID != "" {
		sum := sha256.Sum256([]byte(c.By + "\x00" + body.ID))
		c.ID = hex.EncodeToString(sum[:16])
	}
	c.Subject = body.Subject
	if body.Expires == nil || *body.Expires > 1<<40 {
		return claim{}, errClaimExpired
	}
	c.Expires = time.Unix(int64(*body.Expires), 0)
	switch {
	case !now.Before(c.Expires.Add(clockSkew)):
		return claim{}, errClaimExpired
	case body.NotBefore != nil && float64(now.Add(clockSkew).Unix()) < *body.NotBefore:
		return claim{}, errClaimEarly
	case len(body.Audience) > 0 && !slices.Contains(body.Audience, fleet):
		return claim{}, errClaimFleet
	case c.Subject != "" && c.Subject != name:
		return claim{}, errClaimName
	}
	return c, nil
}

// audience is one name, or several (RFC 7519, section 4.1.3).
type audience []string

// UnmarshalJSON reads either.
func (a *audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

func verifies(key any, alg string, message, signature []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return alg == "EdDSA" && ed25519.Verify(k, message, signature)
	case *ecdsa.PublicKey:
		if alg != "ES256" || len(signature) != 64 {
			return false
		}
		sum := sha256.Sum256(message)
		return ecdsa.Verify(k, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return false
}
