// Package signing lets those who receive a message know who signed it, whatever carried
// it: with the key of a creds file or of a client certificate, over the account, the
// subject, the time, a number that is used once, and the body. docs/signing.md has the
// bytes, for programs in other languages.
//
// A Signer signs, a Verifier tells who did. Where an account demands signatures, nodes
// verify before they pass a message on: see Signer.Send.
package signing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
)

const (
	// Header has the signature of a message: a header of NATS, a user property of MQTT 5,
	// or an entry of the headers of AMQP.
	Header = "Fleetbus-Signature"
	// Prefix is before the subject of what is published to an account by way of the nodes
	// that verify it.
	Prefix = "$SIGNED."
	// ConfirmHeader asks those nodes to answer when they have passed a message on.
	ConfirmHeader = "Fleetbus-Confirm"
	// KeysSubject is asked for the user that a key is of.
	KeysSubject = "$SIGNING.key"
)

const (
	// version begins a signature, and domain what is signed.
	version, domain = "v1", "fleetbus.signature.v1"
	// nonceSize is how many bytes are random.
	nonceSize = 16
	// maxHeader bounds a signature as text, maxSubject a subject.
	maxHeader, maxSubject = 512, 4096
)

// Why a message is not accepted. The errors of a Verifier wrap one of them.
var (
	// ErrUnsigned has no signature.
	ErrUnsigned = errors.New("the message is not signed")
	// ErrMalformed has something that is none.
	ErrMalformed = errors.New("the signature cannot be read")
	// ErrUnknownKey is signed with a key of nobody who may sign: one that was never
	// known, has expired, or is of a user who was denied or removed.
	ErrUnknownKey = errors.New("the key is of no user")
	// ErrBadSignature is not what was signed: the account, the subject, the time, the
	// nonce or the body is another.
	ErrBadSignature = errors.New("the signature does not match the message")
	// ErrStale is too old, or older than who verifies.
	ErrStale = errors.New("the message was signed too long ago")
	// ErrEarly is signed in the future.
	ErrEarly = errors.New("the message was signed in the future: a clock is wrong")
	// ErrReplayed was accepted before.
	ErrReplayed = errors.New("the message was accepted before")
	// ErrFull says that no more messages can be told from replays for now.
	ErrFull = errors.New("too many signed messages at once to remember them all")
)

// encoding is that of bytes in a signature: it has no second spelling of the same.
func encoding() *base64.Encoding { return base64.RawURLEncoding.Strict() }

// A Signature is what Header has. Parse reads one.
type Signature struct {
	// Key is the public key: an nkey, or a key's SubjectPublicKeyInfo in base64url.
	Key string
	// Time is when it was signed, in whole milliseconds.
	Time time.Time
	// Nonce is 16 random bytes in base64url, used once with the key.
	Nonce string
	// Bytes are the signature itself.
	Bytes []byte
}

// String is the signature as Header has it.
func (s Signature) String() string {
	return version + ";key=" + s.Key + ";time=" + strconv.FormatInt(s.Time.UnixMilli(), 10) + ";nonce=" + s.Nonce + ";sig=" + encoding().EncodeToString(s.Bytes)
}

// Parse reads the text of a signature, of which there is one spelling. The error wraps
// ErrUnsigned or ErrMalformed.
func Parse(text string) (Signature, error) {
	if text == "" {
		return Signature{}, ErrUnsigned
	}
	parts := strings.Split(text, ";")
	if len(text) > maxHeader || len(parts) != 5 || parts[0] != version {
		return Signature{}, fmt.Errorf("%w: it is not %s;key=…;time=…;nonce=…;sig=… of at most %d bytes", ErrMalformed, version, maxHeader)
	}
	var values [4]string
	for i, name := range []string{"key=", "time=", "nonce=", "sig="} {
		value, ok := strings.CutPrefix(parts[i+1], name)
		if !ok {
			return Signature{}, fmt.Errorf("%w: part %d is not %s…", ErrMalformed, i+2, name)
		}
		values[i] = value
	}
	s := Signature{Key: values[0], Nonce: values[2]}
	ms, err := strconv.ParseUint(values[1], 10, 53)
	if err != nil {
		return Signature{}, fmt.Errorf("%w: its time is not in milliseconds since 1970", ErrMalformed)
	}
	s.Time = time.UnixMilli(int64(ms))
	if nonce, err := encoding().DecodeString(s.Nonce); err != nil || len(nonce) != nonceSize {
		return Signature{}, fmt.Errorf("%w: its nonce is not %d bytes in base64url", ErrMalformed, nonceSize)
	}
	if s.Bytes, err = encoding().DecodeString(values[3]); err != nil {
		return Signature{}, fmt.Errorf("%w: its sig is not base64url", ErrMalformed)
	}
	if s.String() != text {
		return Signature{}, fmt.Errorf("%w: a number is written in another way", ErrMalformed)
	}
	return s, nil
}

// signed are the bytes that are signed: each field after its length in four bytes, most
// significant first.
func (s Signature) signed(audience, subject string, sum [sha256.Size]byte) []byte {
	ms := strconv.FormatInt(s.Time.UnixMilli(), 10)
	b := make([]byte, 0, 24+len(domain)+len(audience)+len(subject)+len(ms)+len(s.Nonce)+len(sum))
	for _, field := range []string{domain, audience, subject, ms, s.Nonce, string(sum[:])} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
	}
	return b
}

// verify reports whether s is over these, by its own key.
func (s Signature) verify(audience, subject string, sum [sha256.Size]byte) error {
	b := s.signed(audience, subject, sum)
	key, err := publicKey(s.Key)
	if err != nil {
		return err
	}
	ok := false
	switch key := key.(type) {
	case ed25519.PublicKey:
		ok = len(s.Bytes) == ed25519.SignatureSize && ed25519.Verify(key, b, s.Bytes)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(b)
		ok = ecdsa.VerifyASN1(key, digest[:], s.Bytes)
	}
	if !ok {
		return ErrBadSignature
	}
	return nil
}

// publicKey is the key of that name: an ed25519.PublicKey or an *ecdsa.PublicKey on P-256.
func publicKey(name string) (any, error) {
	if strings.HasPrefix(name, "U") {
		raw, err := nkeys.Decode(nkeys.PrefixByteUser, []byte(name))
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%w: its key is not the nkey of a user", ErrMalformed)
		}
		return ed25519.PublicKey(raw), nil
	}
	der, err := encoding().DecodeString(name)
	if err != nil {
		return nil, fmt.Errorf("%w: its key is neither an nkey nor base64url", ErrMalformed)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: its key cannot be read", ErrMalformed)
	}
	// One key has one name.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, der) {
		return nil, fmt.Errorf("%w: its key is written in another way", ErrMalformed)
	}
	switch k := key.(type) {
	case ed25519.PublicKey:
		return k, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%w: its key is neither of Ed25519 nor of P-256", ErrMalformed)
}

// KeyHash is the SHA-256 of the key of a certificate in hexadecimal, by its name in a
// signature: what a fleet knows a user's certificate by. False for an nkey.
func KeyHash(key string) (string, bool) {
	if strings.HasPrefix(key, "U") {
		return "", false
	}
	der, err := encoding().DecodeString(key)
	if err != nil {
		return "", false
	}
	return fmt.Sprintf("%x", sha256.Sum256(der)), true
}
