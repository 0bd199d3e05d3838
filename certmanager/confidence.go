package certmanager

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
)

// A confidence is a request, or its answer, with secrets in it: on its way it passes
// nodes, and whoever traces messages there does not read it.
type confidence struct {
	Sealed cert.Sealed `json:"sealed"`
}

// confided is what a confidence says, if it is a request.
type confided struct {
	Request json.RawMessage `json:"request"`
	// Reply is the public key that the answer is to be sealed to.
	Reply []byte `json:"reply"`
}

// publicKey is what confidences are sealed to, and who signs answers.
type publicKey struct {
	Public []byte      `json:"public"`
	Signer cert.Signer `json:"signer,omitempty"`
}

func (s *session) publicKey(context.Context, struct{}, func(string)) (publicKey, error) {
	return publicKey{s.key.Public(), s.key.Signer()}, nil
}

// confidential is a verb whose requests and answers are sealed.
func confidential(name string, do verb) verb {
	return func(ctx context.Context, s *session, data []byte, progress func(string)) (any, error) {
		in, err := decode[confidence](data)
		if err != nil {
			return nil, err
		}
		opened, err := s.key.OpenMessage(name, in.Sealed)
		if err != nil {
			return nil, admin.Errorf(admin.Invalid, "", "the request is not sealed to the managers of this account")
		}
		r, err := decode[confided](opened)
		if err != nil {
			return nil, err
		}
		out, err := do(ctx, s, r.Request, progress)
		if err != nil {
			return nil, err
		}
		body, err := json.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("encoding an answer: %w", err)
		}
		sealed, err := cert.SealMessage(r.Reply, name, body)
		if err != nil {
			return nil, admin.Errorf(admin.Invalid, "", "the request has no key that the answer could be sealed to")
		}
		return confidence{Sealed: sealed}, nil
	}
}

// confide is call for what has secrets in it. Whose key it is sealed to has to be known:
// a node says it, or a Signer has signed it.
func confide[Out any](ctx context.Context, c *Client, name string, in any) (Out, error) {
	var out Out
	if c.account == "" && c.Signer == "" {
		return out, admin.Errorf(admin.Denied, "ask as an administrator of the fleet, or add --signer with what \"fleetbus certmanager signer\" prints to one", "whoever answers in this account could say to be its managers, and secrets are told to nobody else")
	}
	managers, err := call[publicKey](ctx, c, "public", struct{}{})
	if err != nil {
		return out, err
	}
	key, err := cert.NewSealKey()
	if err != nil {
		return out, err
	}
	body, err := json.Marshal(in)
	if err == nil {
		body, err = json.Marshal(confided{body, key.Public()})
	}
	if err != nil {
		return out, fmt.Errorf("encoding request %q: %w", name, err)
	}
	sealed, err := cert.SealMessage(managers.Public, name, body)
	if err != nil {
		return out, fmt.Errorf("sealing request %q: %w", name, err)
	}
	answer, err := call[confidence](ctx, c, name, confidence{sealed})
	if err != nil {
		return out, err
	}
	if body, err = key.OpenMessage(name, answer.Sealed); err != nil {
		return out, fmt.Errorf("reading the answer to %q: %w", name, err)
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("reading the answer to %q: %w", name, err)
	}
	return out, nil
}
