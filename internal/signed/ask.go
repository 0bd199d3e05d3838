// Package signed verifies what users of an account sign before it is passed on. Of each
// account one node does so at a time, the one that holds its lease, and writes down which
// signatures were used before it acts on them: so no message is accepted twice, on
// whatever node and over whatever protocol it comes, and after whatever restart.
package signed

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/signing"
)

const (
	// checkSubject is where protocols ask. It is private: users do not.
	checkSubject = identity.Private + "signing.check"
	// askTimeout is how long a protocol waits for an answer.
	askTimeout = 5 * time.Second
)

// MayAsk is what a connection may publish, in addition, to Ask.
func MayAsk() string { return checkSubject }

// question is what a protocol asks.
type question struct {
	// Subject is what was signed, and Right what the signer must be allowed to publish to.
	Subject   string `json:"subject"`
	Right     string `json:"right"`
	Sum       []byte `json:"sum"`
	Signature string `json:"signature"`
}

// ErrUnavailable says that no node verifies now, or that the quorum is away.
var ErrUnavailable = errors.New("signatures cannot be verified now; sign it again and send it later")

// Ask asks the node that verifies for the account of nc whether a message may be passed
// on. subject is what was signed and right what the signer must be allowed to publish to;
// text is the signature. An answer that it may is given once. The error is a
// *signing.Refusal, or wraps ErrUnavailable.
func Ask(ctx context.Context, nc *nats.Conn, subject, right, text string, body []byte) error {
	if text == "" {
		return refusal(signing.ErrUnsigned)
	}
	sum := sha256.Sum256(body)
	data, err := json.Marshal(question{subject, right, sum[:], text})
	if err != nil {
		return fmt.Errorf("asking for a signature: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := nc.RequestWithContext(ctx, checkSubject, data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return signing.Refused(answer)
}

// ErrSites is why a site and required signatures exclude each other: what a link carries,
// nobody here has verified.
func ErrSites() *admin.Error {
	return admin.Errorf(admin.Conflict, "fleetbus account add NAME --signing optional", "an account that requires signatures has no sites")
}

// Why a message is refused that is signed well.
var (
	errForbidden = errors.New("who signed it may not publish there")
	errReply     = errors.New("its answer is wanted on a subject that is no inbox")
	errSubject   = errors.New("its subject is none that a signed message can have")
)

// reason is the word for err, in metrics and answers.
func reason(err error) string {
	switch {
	case errors.Is(err, errForbidden):
		return "forbidden"
	case errors.Is(err, errReply), errors.Is(err, errSubject):
		return "subject"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	}
	return signing.Reason(err)
}

// reasons are all words, for those who count.
func reasons() []string {
	return []string{"unsigned", "malformed", "unknown_key", "bad_signature", "stale", "early", "replayed", "full", "forbidden", "subject", "unavailable", "other"}
}

// refusal is err as whoever sent the message is told.
func refusal(err error) *signing.Refusal {
	return &signing.Refusal{Reason: reason(err), Text: err.Error()}
}

// refusing is the answer that tells of a refusal. Who waits for a stream to acknowledge
// finds an error of the engine's form in it.
func refusing(err error) *nats.Msg {
	r := refusal(err)
	type problem struct {
		Code        int    `json:"code"`
		Description string `json:"description"`
	}
	data, _ := json.Marshal(struct { // it has no value that cannot be written
		Error problem `json:"error"`
	}{problem{403, r.Error()}})
	return &nats.Msg{Header: nats.Header{signing.RefusedHeader: {r.Reason}}, Data: data}
}
