package cert

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrSignature is returned for a record that no trusted manager signed, and for a report
// that is not signed by the target that it is of.
var ErrSignature = errors.New("nobody who is trusted for it signed it")

// maxRecord bounds what is read as a record. The engine's own bound is 1 MiB.
const maxRecord = 1 << 20

// maxSeen bounds what is read as a report of a target.
const maxSeen = 4 << 10

// A ManagerKey is what makes a manager: it signs records, and opens what is sealed to
// the managers. All managers of an account have the same one. It prints without its
// secret, and is safe for concurrent use.
type ManagerKey struct {
	account string
	secret  []byte
	sign    ed25519.PrivateKey
	seal    *SealKey
}

// NewManagerKey derives the key of an account's managers from a secret of 32 bytes.
func NewManagerKey(account string, secret []byte) (*ManagerKey, error) {
	if len(secret) != 32 {
		return nil, fmt.Errorf("making a manager's key: its secret has %d bytes, not 32", len(secret))
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "fleetbus cert v1 manager sign", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("making a manager's key: %w", err)
	}
	ikm, err := hkdf.Key(sha256.New, secret, nil, "fleetbus cert v1 manager seal", 64)
	if err != nil {
		return nil, fmt.Errorf("making a manager's key: %w", err)
	}
	seal, err := hpke.MLKEM768X25519().DeriveKeyPair(ikm)
	if err != nil {
		return nil, fmt.Errorf("making a manager's key: %w", err)
	}
	return &ManagerKey{account: account, secret: bytes.Clone(secret), sign: ed25519.NewKeyFromSeed(seed), seal: &SealKey{seal}}, nil
}

// The text of a manager's key begins with this.
const managerKeyPrefix = "fleetbus-manager-key-1"

// Text is the key for a file that only a manager reads. ParseManagerKey reads it.
func (k *ManagerKey) Text() string {
	return managerKeyPrefix + " " + k.account + " " + base64.RawURLEncoding.EncodeToString(k.secret) + "\n"
}

// ParseManagerKey reads what Text returned. The error never quotes it.
func ParseManagerKey(text string) (*ManagerKey, error) {
	words := strings.Fields(text)
	if len(words) != 3 || words[0] != managerKeyPrefix {
		return nil, errors.New("reading a manager's key: it is none")
	}
	secret, err := base64.RawURLEncoding.DecodeString(words[2])
	if err != nil {
		return nil, errors.New("reading a manager's key: it is damaged")
	}
	return NewManagerKey(words[1], secret)
}

// Account is the account whose certificates the key is for.
func (k *ManagerKey) Account() string { return k.account }

// Signer is what targets trust.
func (k *ManagerKey) Signer() Signer { return signerOf(k.sign) }

// String says whose key it is.
func (k *ManagerKey) String() string { return "manager's key of account " + k.account }

// Format writes String for every verb, so that none of them shows the secret.
func (k *ManagerKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// Seal seals something of the managers' own, such as their configuration, for a
// purpose, to the managers.
func (k *ManagerKey) Seal(what string, plaintext []byte) (Sealed, error) {
	return sealTo(k.seal.Public(), purpose("managers", k.account, what), plaintext)
}

// Open opens what Seal sealed for the same purpose.
func (k *ManagerKey) Open(what string, s Sealed) ([]byte, error) {
	plaintext, err := k.seal.open(purpose("managers", k.account, what), s)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", what, err)
	}
	return plaintext, nil
}

// Public is what SealMessage seals to the managers by.
func (k *ManagerKey) Public() []byte { return k.seal.Public() }

// OpenMessage opens what SealMessage sealed to the managers for the same request.
func (k *ManagerKey) OpenMessage(request string, s Sealed) ([]byte, error) {
	return k.seal.OpenMessage(request, s)
}

// SealKey seals a group's key to the managers.
func (k *ManagerKey) SealKey(key *Key) (Sealed, error) {
	return sealTo(k.seal.Public(), keyPurpose(key.Group, key.Generation, "managers"), key.secret)
}

// OpenKey opens what SealKey sealed.
func (k *ManagerKey) OpenKey(group string, generation uint64, s Sealed) (*Key, error) {
	return k.seal.openKey(group, generation, "managers", s)
}

// A Signer is the public key of managers, or of a target, in hexadecimal.
type Signer string

// Validate says whether s is a public key.
func (s Signer) Validate() error {
	if _, err := s.key(); err != nil {
		return err
	}
	return nil
}

func (s Signer) key() (ed25519.PublicKey, error) {
	key, err := hex.DecodeString(string(s))
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("reading a signer: it is no public key of 64 hexadecimal digits")
	}
	return key, nil
}

// The first line of a signed record: this, the signer and the signature. The record
// in JSON follows, just as it was signed.
const signedPrefix = "fleetbus-signed-1"

func signedBytes(subject string, payload []byte) []byte {
	return append(purpose("record", subject+"\n"), payload...)
}

// Sign returns record as it stands in the ledger under subject, in JSON and signed.
func (k *ManagerKey) Sign(subject string, record any) ([]byte, error) {
	payload, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encoding %q: %w", subject, err)
	}
	return sign(k.sign, subject, payload), nil
}

func sign(key ed25519.PrivateKey, subject string, payload []byte) []byte {
	signature := ed25519.Sign(key, signedBytes(subject, payload))
	head := signedPrefix + " " + string(signerOf(key)) + " " + base64.RawURLEncoding.EncodeToString(signature) + "\n"
	return append([]byte(head), payload...)
}

func signerOf(key ed25519.PrivateKey) Signer {
	return Signer(hex.EncodeToString(key.Public().(ed25519.PublicKey)))
}

// Verify returns the JSON of a record that stands under subject, if one of the
// signers signed it for that place; else the error wraps ErrSignature. The result is
// part of data.
func Verify(signers []Signer, subject string, data []byte) ([]byte, error) {
	payload, _, err := signedBy(subject, data, func(s Signer) bool { return slices.Contains(signers, s) })
	return payload, err
}

// signedBy is Verify for those whom trusts names, and returns who it was.
func signedBy(subject string, data []byte, trusts func(Signer) bool) ([]byte, Signer, error) {
	if len(data) > maxRecord {
		return nil, "", fmt.Errorf("reading %q: it has %d bytes, and %d are allowed", subject, len(data), maxRecord)
	}
	head, payload, _ := bytes.Cut(data, []byte("\n"))
	words := bytes.Split(head, []byte(" "))
	if len(words) != 3 || string(words[0]) != signedPrefix {
		return nil, "", fmt.Errorf("reading %q: %w: it has no signature", subject, ErrSignature)
	}
	signer := Signer(words[1])
	if !trusts(signer) {
		return nil, "", fmt.Errorf("reading %q: %w", subject, ErrSignature)
	}
	key, err := signer.key()
	if err != nil {
		return nil, "", fmt.Errorf("reading %q: %w", subject, ErrSignature)
	}
	signature := make([]byte, base64.RawURLEncoding.DecodedLen(len(words[2])))
	n, err := base64.RawURLEncoding.Decode(signature, words[2])
	if err != nil || !ed25519.Verify(key, signedBytes(subject, payload), signature[:n]) {
		return nil, "", fmt.Errorf("reading %q: %w", subject, ErrSignature)
	}
	return payload, signer, nil
}
