package admin

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nkeys"
)

// CertSubject is where requests about certificates are made, which a node hands to
// the managers of the account.
const (
	CertSubject = Prefix + certName
	certName    = "cert"
)

// CertKeyVerb is the verb of a request for the key of the managers.
const CertKeyVerb = "key"

// CertRequest is a request to the managers of an account's certificates.
type CertRequest struct {
	Account string          `json:"account"`
	Verb    string          `json:"verb"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// CertProgress tells the answers to such a request apart: those with Progress come
// before the last, which is a Reply.
type CertProgress struct {
	// Progress is a step that is being done; "" says that it goes on.
	Progress *string `json:"progress,omitempty"`
}

// CertKey is the key of an account's managers, sealed by the curve key Sender.
type CertKey struct {
	Sender string `json:"sender"`
	Sealed []byte `json:"sealed"`
}

// CertManagerKey returns the text of the key of an account's managers: who has it can
// manage its certificates from anywhere.
func (c *Client) CertManagerKey(ctx context.Context, account string) (string, error) {
	receiver, err := nkeys.CreateCurveKeys()
	if err != nil {
		return "", fmt.Errorf("making a key: %w", err)
	}
	defer receiver.Wipe()
	public, err := receiver.PublicKey()
	if err != nil {
		return "", fmt.Errorf("making a key: %w", err)
	}
	data, err := json.Marshal(public)
	if err != nil {
		return "", err
	}
	key, err := ask[CertKey](ctx, c.nc, RequestSubject(c.nc, certName), CertRequest{Account: account, Verb: CertKeyVerb, Data: data})
	if err != nil {
		return "", err
	}
	text, err := receiver.Open(key.Sealed, key.Sender)
	if err != nil {
		return "", fmt.Errorf("opening a manager's key: %w", err)
	}
	return string(text), nil
}
