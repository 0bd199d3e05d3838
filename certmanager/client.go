package certmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
)

// silence is how long managers may say nothing while a caller waits.
const silence = 3 * alive

// A Client asks the managers of an account. It is safe for concurrent use. Its errors
// are an *admin.Error, or wrap nats.ErrNoResponders when no manager runs, or
// context.DeadlineExceeded when one fell silent.
type Client struct {
	nc      *nats.Conn
	account string // whose managers are asked by way of a node; "": those of nc's own
	// Signer is who signs what managers of nc's own account answer. Empty: whoever
	// answers is believed, and nothing confidential is said.
	Signer cert.Signer
	// Progress is told of the steps of what takes a while. It may be nil.
	Progress func(step string)
}

// NewClient returns a Client over nc, which stays the caller's and belongs to the
// account of the managers.
func NewClient(nc *nats.Conn) *Client { return &Client{nc: nc} }

// NewAdminClient returns a Client for an administrator of the fleet, who asks the
// managers of an account by way of a node, which knows who they are.
func NewAdminClient(nc *nats.Conn, account string) *Client { return &Client{nc: nc, account: account} }

// Make makes a certificate.
func (c *Client) Make(ctx context.Context, r MakeRequest) (*cert.Record, error) {
	return call[*cert.Record](ctx, c, "mk", r)
}

// Import imports a certificate that was bought elsewhere.
func (c *Client) Import(ctx context.Context, r ImportRequest) (*cert.Record, error) {
	return confide[*cert.Record](ctx, c, "import", r)
}

// Renew renews a certificate before its time.
func (c *Client) Renew(ctx context.Context, r RenewRequest) (*cert.Record, error) {
	return call[*cert.Record](ctx, c, "renew", r)
}

// Renewable lists what is to be renewed, and renews it if that is asked for.
func (c *Client) Renewable(ctx context.Context, r RenewableRequest) ([]Renewable, error) {
	return call[[]Renewable](ctx, c, "renewable", r)
}

// Remove ends a certificate: targets serve it no more.
func (c *Client) Remove(ctx context.Context, r RemoveRequest) (*cert.Record, error) {
	return call[*cert.Record](ctx, c, "rm", r)
}

// Certificates lists the certificates of a group, of all if it is empty, without their
// chains and keys.
func (c *Client) Certificates(ctx context.Context, group string) ([]*cert.Record, error) {
	return call[[]*cert.Record](ctx, c, "ls", ListRequest{group})
}

// Certificate returns all of a certificate.
func (c *Client) Certificate(ctx context.Context, id string) (*cert.Record, error) {
	return call[*cert.Record](ctx, c, "cat", RemoveRequest{ID: id})
}

// AddTarget invites a principal of that name to a group.
func (c *Client) AddTarget(ctx context.Context, group, name string) (TargetInfo, error) {
	return call[TargetInfo](ctx, c, "target.add", TargetRequest{group, name})
}

// RemoveTarget removes a target from a group. The group gets another key, and the
// certificates that the target could open get others, too.
func (c *Client) RemoveTarget(ctx context.Context, group, name string) (TargetInfo, error) {
	return call[TargetInfo](ctx, c, "target.rm", TargetRequest{group, name})
}

// Targets lists the targets of a group, of all if it is empty.
func (c *Client) Targets(ctx context.Context, group string) ([]TargetInfo, error) {
	return call[[]TargetInfo](ctx, c, "target.ls", TargetRequest{Group: group})
}

// UpdateConfig replaces the configuration by a Settings in JSON.
func (c *Client) UpdateConfig(ctx context.Context, config []byte) (ConfigReply, error) {
	if !json.Valid(config) {
		return ConfigReply{}, refusal(Problems{"configuration: it is no JSON"})
	}
	return confide[ConfigReply](ctx, c, "conf.update", ConfigRequest{config})
}

// Config returns the configuration, with its secrets.
func (c *Client) Config(ctx context.Context) (ConfigReply, error) {
	return confide[ConfigReply](ctx, c, "conf.display", struct{}{})
}

// Root returns the root of an issuer that is an authority of our own, and the list of
// what it has revoked.
func (c *Client) Root(ctx context.Context, issuer string) (RootReply, error) {
	return call[RootReply](ctx, c, "root", RootRequest{issuer})
}

// WhoSigns tells who signs what the managers answer: an administrator by way of a node,
// which knows them. It is the Signer of a Client in their own account.
func (c *Client) WhoSigns(ctx context.Context) (cert.Signer, error) {
	key, err := call[publicKey](ctx, c, "public", struct{}{})
	if err != nil {
		return "", err
	}
	return key.Signer, key.Signer.Validate()
}

// Status tells how certificates stand.
func (c *Client) Status(ctx context.Context, r StatusRequest) (Status, error) {
	return call[Status](ctx, c, "status", r)
}

// call asks for something, and listens until the last message of the answer.
func call[Out any](ctx context.Context, c *Client, name string, in any) (Out, error) {
	var out Out
	body, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encoding request %q: %w", name, err)
	}
	subject := cert.APISubject(name)
	if c.account != "" {
		subject = admin.RequestSubject(c.nc, strings.TrimPrefix(admin.CertSubject, admin.Prefix))
		if body, err = json.Marshal(admin.CertRequest{Account: c.account, Verb: name, Data: body}); err != nil {
			return out, fmt.Errorf("encoding request %q: %w", name, err)
		}
	}
	var signers []cert.Signer
	if c.Signer != "" {
		signers = []cert.Signer{c.Signer}
	}
	answers, err := cert.Ask(c.nc, signers, subject, body)
	if err != nil {
		return out, fmt.Errorf("asking for %q: %w", name, err)
	}
	defer answers.Close()
	var parts []byte
	for {
		r, err := nextReply(ctx, answers)
		if err != nil {
			return out, fmt.Errorf("asking the managers of certificates for %q: %w", name, err)
		}
		switch {
		case r.Error != nil:
			return out, r.Error
		case r.Progress == nil:
			if err := json.Unmarshal(append(parts, r.Data...), &out); err != nil {
				return out, fmt.Errorf("reading the answer to %q: %w", name, err)
			}
			return out, nil
		case len(r.Part) > 0:
			parts = append(parts, r.Part...)
		case *r.Progress != "" && c.Progress != nil:
			c.Progress(*r.Progress)
		}
	}
}

func nextReply(ctx context.Context, answers *cert.Answers) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	var r reply
	data, err := answers.Next(ctx)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, errors.New("the answer cannot be read")
	}
	return r, nil
}
