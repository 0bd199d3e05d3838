package signing

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// A Signer signs the messages of one principal. Make one with New, FromCreds or
// FromCertificate. It is safe for concurrent use.
type Signer struct {
	audience, key string
	sign          func([]byte) ([]byte, error)
}

// New makes a Signer of a key on P-256 or of Ed25519, as a client certificate has. audience
// is the public key of the account, which "fleetbus account show" prints, and FetchAudience
// asks for.
func New(key crypto.Signer, audience string) (*Signer, error) {
	if !nkeys.IsValidPublicAccountKey(audience) {
		return nil, errors.New("making a signer: the audience is not the public key of an account")
	}
	s := &Signer{audience: audience}
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		s.sign = func(b []byte) ([]byte, error) { return key.Sign(rand.Reader, b, crypto.Hash(0)) }
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return nil, errors.New("making a signer: the key is on another curve than P-256")
		}
		s.sign = func(b []byte) ([]byte, error) {
			digest := sha256.Sum256(b)
			return key.Sign(rand.Reader, digest[:], crypto.SHA256)
		}
	default:
		return nil, fmt.Errorf("making a signer: a key of type %T cannot sign, only one on P-256 or of Ed25519", public)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("making a signer: %w", err)
	}
	s.key = encoding().EncodeToString(der)
	return s, nil
}

// FromCertificate makes a Signer of a client certificate with its key.
func FromCertificate(certificate tls.Certificate, audience string) (*Signer, error) {
	key, ok := certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("making a signer: the certificate has no key that signs")
	}
	return New(key, audience)
}

// FromCreds makes a Signer of the content of a creds file, which says what account it is
// for. A creds file that was renewed has another key: make another Signer then.
func FromCreds(creds []byte) (*Signer, error) {
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return nil, fmt.Errorf("making a signer: reading a creds file: %w", err)
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return nil, fmt.Errorf("making a signer: reading a creds file: %w", err)
	}
	pair, err := jwt.ParseDecoratedUserNKey(creds)
	if err != nil {
		return nil, errors.New("making a signer: the creds file has no key") // the library's text may have it
	}
	public, err := pair.PublicKey()
	if err != nil || public != claims.Subject {
		return nil, errors.New("making a signer: the key in the creds file is not the one of its JWT")
	}
	audience := claims.IssuerAccount
	if audience == "" {
		audience = claims.Issuer
	}
	return &Signer{audience: audience, key: public, sign: pair.Sign}, nil
}

// Key is the name of the signer's public key, as it is in signatures.
func (s *Signer) Key() string { return s.key }

// Audience is the public key of the account that it signs for.
func (s *Signer) Audience() string { return s.audience }

// Text signs a message that has body and is published on subject, now. It is what Header
// has. MQTT topics and the keys of AMQP's amq.topic are signed as the subject that they
// are, a message to another exchange as Exchange says.
func (s *Signer) Text(subject string, body []byte) (string, error) {
	return s.textAt(subject, body, time.Now())
}

func (s *Signer) textAt(subject string, body []byte, now time.Time) (string, error) {
	if subject == "" || len(subject) > maxSubject {
		return "", errors.New("signing a message: it has no subject, or one that is too long")
	}
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // it does not fail
	sig := Signature{Key: s.key, Time: time.UnixMilli(now.UnixMilli()), Nonce: encoding().EncodeToString(nonce[:])}
	var err error
	if sig.Bytes, err = s.sign(sig.signed(s.audience, subject, sha256.Sum256(body))); err != nil {
		return "", fmt.Errorf("signing a message on %q: %w", subject, err)
	}
	return sig.String(), nil
}

// Exchange is what is signed in place of a subject, of a message to an exchange of AMQP
// that is not amq.topic. The length is in bytes.
func Exchange(exchange, key string) string {
	return "amqp:" + strconv.Itoa(len(exchange)) + ":" + exchange + "/" + key
}

// Sign signs msg as it is: its subject and body must stay, and who signs it again has
// another message.
func (s *Signer) Sign(msg *nats.Msg) error {
	text, err := s.Text(msg.Subject, msg.Data)
	if err != nil {
		return err
	}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	msg.Header.Set(Header, text)
	return nil
}

// gated is a signed copy of msg for the nodes that verify it.
func (s *Signer) gated(msg *nats.Msg) (*nats.Msg, error) {
	signed := &nats.Msg{Subject: msg.Subject, Reply: msg.Reply, Data: msg.Data, Header: nats.Header{}}
	for name, values := range msg.Header {
		signed.Header[name] = values
	}
	if err := s.Sign(signed); err != nil {
		return nil, err
	}
	signed.Subject = Prefix + msg.Subject
	return signed, nil
}

// Publish signs a copy of msg and publishes it by way of the nodes that verify it. It does
// not wait, and a refusal is told on msg's reply subject, if there is one: see Refused.
func (s *Signer) Publish(nc *nats.Conn, msg *nats.Msg) error {
	signed, err := s.gated(msg)
	if err != nil {
		return err
	}
	return nc.PublishMsg(signed)
}

// Send is Publish, but returns when the message was passed on, or why it was not: a
// *Refusal, or nats.ErrNoResponders if the account verifies nothing now. Bound ctx.
func (s *Signer) Send(ctx context.Context, nc *nats.Conn, msg *nats.Msg) error {
	signed, err := s.gated(msg)
	if err != nil {
		return err
	}
	signed.Header.Set(ConfirmHeader, "1")
	answer, err := nc.RequestMsgWithContext(ctx, signed)
	if err != nil {
		return fmt.Errorf("sending a signed message on %q: %w", msg.Subject, err)
	}
	return Refused(answer)
}

// Request sends msg as Send does and returns the answer of who serves its subject. The
// answer itself need not be signed.
func (s *Signer) Request(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (*nats.Msg, error) {
	signed, err := s.gated(msg)
	if err != nil {
		return nil, err
	}
	answer, err := nc.RequestMsgWithContext(ctx, signed)
	if err != nil {
		return nil, fmt.Errorf("asking on %q with a signature: %w", msg.Subject, err)
	}
	if err := Refused(answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// A Refusal is why a node did not pass a signed message on.
type Refusal struct {
	// Reason is one of the words of Reason.
	Reason string `json:"reason"`
	// Text is for people.
	Text string `json:"text"`
}

// Error is the text.
func (r *Refusal) Error() string { return "the signed message was refused: " + r.Text }

// Is reports whether target is the error that Reason is the word for.
func (r *Refusal) Is(target error) bool { return r.Reason == Reason(target) && r.Reason != "other" }

// RefusedHeader has the reason in the answer to a message that was refused.
const RefusedHeader = "Fleetbus-Refused"

// Refused is the *Refusal that an answer is; nil if it is none.
func Refused(answer *nats.Msg) error {
	reason := answer.Header.Get(RefusedHeader)
	if reason == "" {
		return nil
	}
	r := &Refusal{Reason: reason, Text: reason}
	var body struct {
		Error struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if json.Unmarshal(answer.Data, &body) == nil && body.Error.Description != "" {
		r.Text = body.Error.Description
	}
	return r
}

// Reason is the word for an error of this package, as metrics and refusals have it.
func Reason(err error) string {
	for _, known := range []struct {
		err  error
		word string
	}{
		{ErrUnsigned, "unsigned"}, {ErrMalformed, "malformed"}, {ErrUnknownKey, "unknown_key"}, {ErrBadSignature, "bad_signature"},
		{ErrStale, "stale"}, {ErrEarly, "early"}, {ErrReplayed, "replayed"}, {ErrFull, "full"},
	} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}
	return "other"
}
