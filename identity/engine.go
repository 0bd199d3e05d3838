package identity

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// engine are the keys that one process's engine believes, and no other. They
// exist in memory only: the engine cannot be told another operator while it runs,
// and the fleet's can be changed.
type engine struct {
	operator string  // JWT
	signing  keyPair // signs accounts
	session  keyPair // signs sessions of every account
	secret   []byte  // the callout's keys derive from it
}

func newEngine(fleet, system string) (*engine, error) {
	root, err1 := newKeyPair(nkeys.CreateOperator())
	signing, err2 := newKeyPair(nkeys.CreateOperator())
	session, err3 := newKeyPair(nkeys.CreateAccount())
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("making the engine's keys: %w", err)
	}
	claims := jwt.NewOperatorClaims(root.public)
	claims.Name = fleet
	claims.SigningKeys.Add(signing.public)
	claims.StrictSigningKeyUsage = true
	claims.SystemAccount = system
	operator, err := encode(claims, root, time.Now())
	if err != nil {
		return nil, fmt.Errorf("making the engine's operator: %w", err)
	}
	return &engine{operator: operator, signing: signing, session: session, secret: randomBytes(masterSize)}, nil
}

// derive returns a key of this process alone.
func (e *engine) derive(prefix nkeys.PrefixByte, label string) (keyPair, error) {
	return deriveKey(e.secret, prefix, label)
}

// EngineOperator is the JWT of the operator that the engine of this process, and
// no other, must trust: what AccountJWT, SessionJWT and the like return is good
// there. It is public.
func (a *Authority) EngineOperator() string { return a.engine.operator }

// Adopt signs anew what another node's engine knows of an account that is not
// known here yet, so that the engine of this process takes it until it is. Nobody
// but nodes tells engines of accounts.
func (a *Authority) Adopt(public, token string) (string, error) {
	claims, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return "", fmt.Errorf("adopting account %s: %w", quote(public), err)
	}
	if claims.Subject != public {
		return "", fmt.Errorf("adopting account %s: it is another one", quote(public))
	}
	if claims.Issuer == a.engine.signing.public {
		return token, nil
	}
	for key, scope := range claims.SigningKeys {
		if scope == nil {
			delete(claims.SigningKeys, key) // the other node's sessions
		}
	}
	claims.SigningKeys.Add(a.engine.session.public)
	token, err = encode(claims, a.engine.signing, time.Unix(claims.IssuedAt, 0))
	if err != nil {
		return "", fmt.Errorf("adopting account %s: %w", quote(public), err)
	}
	return token, nil
}
