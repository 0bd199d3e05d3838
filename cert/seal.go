package cert

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// How things are sealed.
const (
	// algHybrid is HPKE (RFC 9180) to one recipient: ML-KEM-768 with X25519,
	// HKDF-SHA256, AES-256-GCM. The ciphertext begins with the encapsulated key.
	algHybrid = "hpke-mlkem768-x25519"
	// algGroup is AES-256-GCM under a key that HKDF-SHA256 makes of the group's key
	// and of what is sealed. The ciphertext begins with the nonce.
	algGroup = "hkdf-aes256gcm"
)

// groupKeySize is the length of a group's key in bytes.
const groupKeySize = 32

// ErrSealed is returned by what opens, if it was not sealed to this key, for this
// purpose, or was altered since.
var ErrSealed = errors.New("it was not sealed to this key for this, or was altered")

// Sealed is something that only the holders of a key can open. It cannot be opened
// as anything but what it was sealed as.
type Sealed struct {
	Alg string `json:"alg"`
	// To identifies the key: RecipientID of a public key, or the generation of a
	// group's key.
	To         string `json:"to"`
	Ciphertext []byte `json:"ciphertext"`
}

// RecipientID identifies a public sealing key.
func RecipientID(public []byte) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// purpose is what sealed things are bound to.
func purpose(words ...string) []byte {
	return []byte("fleetbus cert v1 " + strings.Join(words, "|"))
}

// A SealKey is the private half of a hybrid, post-quantum sealing key. It prints
// without its secret.
type SealKey struct{ key hpke.PrivateKey }

// NewSealKey makes a sealing key.
func NewSealKey() (*SealKey, error) {
	key, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("making a sealing key: %w", err)
	}
	return &SealKey{key}, nil
}

// ParseSealKey reads what Bytes returned.
func ParseSealKey(secret []byte) (*SealKey, error) {
	key, err := hpke.MLKEM768X25519().NewPrivateKey(secret)
	if err != nil {
		return nil, errors.New("reading a sealing key: it is none")
	}
	return &SealKey{key}, nil
}

// Bytes is the secret, to be stored where only its owner reads.
func (k *SealKey) Bytes() ([]byte, error) { return k.key.Bytes() }

// Public is what others seal to.
func (k *SealKey) Public() []byte { return k.key.PublicKey().Bytes() }

// String says which key it is.
func (k *SealKey) String() string { return "sealing key " + RecipientID(k.Public()) }

// Format writes String for every verb, so that none of them shows the secret.
func (k *SealKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// sealTo seals plaintext to one recipient, for a purpose.
func sealTo(public, purpose, plaintext []byte) (Sealed, error) {
	pk, err := hpke.MLKEM768X25519().NewPublicKey(public)
	if err != nil {
		return Sealed{}, errors.New("sealing: the recipient's key is none")
	}
	ciphertext, err := hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), purpose, plaintext)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing: %w", err)
	}
	return Sealed{Alg: algHybrid, To: RecipientID(public), Ciphertext: ciphertext}, nil
}

// open opens what sealTo sealed.
func (k *SealKey) open(purpose []byte, s Sealed) ([]byte, error) {
	if s.Alg != algHybrid || s.To != RecipientID(k.Public()) {
		return nil, ErrSealed
	}
	plaintext, err := hpke.Open(k.key, hpke.HKDFSHA256(), hpke.AES256GCM(), purpose, s.Ciphertext)
	if err != nil {
		return nil, ErrSealed
	}
	return plaintext, nil
}

// SealMessage seals what a request says, or its answer, to whom it is for.
func SealMessage(public []byte, request string, plaintext []byte) (Sealed, error) {
	return sealTo(public, purpose("message", request), plaintext)
}

// OpenMessage opens what SealMessage sealed for the same request.
func (k *SealKey) OpenMessage(request string, s Sealed) ([]byte, error) {
	return k.open(purpose("message", request), s)
}

// A Key is the secret of one generation of a group's key. It prints without it.
type Key struct {
	Group      string
	Generation uint64
	secret     []byte
}

// NewKey makes the next key of a group.
func NewKey(group string, generation uint64) *Key {
	k := &Key{Group: group, Generation: generation, secret: make([]byte, groupKeySize)}
	_, _ = rand.Read(k.secret) // it never fails
	return k
}

// String says which key it is.
func (k *Key) String() string { return fmt.Sprintf("key %d of group %s", k.Generation, k.Group) }

// Format writes String for every verb, so that none of them shows the secret.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

func keyPurpose(group string, generation uint64, holder string) []byte {
	return purpose("key", group, strconv.FormatUint(generation, 10), holder)
}

// SealTo seals k to the target of that name and public key.
func (k *Key) SealTo(target string, public []byte) (Sealed, error) {
	return sealTo(public, keyPurpose(k.Group, k.Generation, "target "+target), k.secret)
}

// OpenKey opens what SealTo sealed to the target of that name.
func (k *SealKey) OpenKey(group string, generation uint64, target string, s Sealed) (*Key, error) {
	return k.openKey(group, generation, "target "+target, s)
}

func (k *SealKey) openKey(group string, generation uint64, holder string, s Sealed) (*Key, error) {
	secret, err := k.open(keyPurpose(group, generation, holder), s)
	if err == nil && len(secret) != groupKeySize {
		err = ErrSealed
	}
	if err != nil {
		return nil, fmt.Errorf("opening key %d of group %q: %w", generation, group, err)
	}
	return &Key{Group: group, Generation: generation, secret: secret}, nil
}

// bundlePurpose binds a private key to the certificate that it belongs to.
func bundlePurpose(group, id string, b *Bundle) []byte {
	return purpose("bundle", group, id, strconv.FormatUint(b.Generation, 10), b.Leaf)
}

// Seal seals the private key of b, in PKCS #8, to the group: Generation and Leaf of
// b are set, and Key is set by it.
func (k *Key) Seal(id string, b *Bundle, pkcs8 []byte) error {
	p := bundlePurpose(k.Group, id, b)
	aead, err := k.aead(p)
	if err != nil {
		return err
	}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce)
	b.Key = Sealed{Alg: algGroup, To: strconv.FormatUint(k.Generation, 10), Ciphertext: aead.Seal(nonce, nonce, pkcs8, p)}
	return nil
}

// Open opens the private key of b, in PKCS #8.
func (k *Key) Open(id string, b *Bundle) ([]byte, error) {
	p := bundlePurpose(k.Group, id, b)
	aead, err := k.aead(p)
	if err != nil {
		return nil, err
	}
	if b.Key.Alg != algGroup || b.Key.To != strconv.FormatUint(k.Generation, 10) || len(b.Key.Ciphertext) < aead.NonceSize() {
		return nil, fmt.Errorf("opening certificate %q: %w", id, ErrSealed)
	}
	nonce, ciphertext := b.Key.Ciphertext[:aead.NonceSize()], b.Key.Ciphertext[aead.NonceSize():]
	pkcs8, err := aead.Open(nil, nonce, ciphertext, p)
	if err != nil {
		return nil, fmt.Errorf("opening certificate %q: %w", id, ErrSealed)
	}
	return pkcs8, nil
}

// KeyGeneration is the generation of the group's key that b is sealed with; 0 if
// that cannot be read.
func (b *Bundle) KeyGeneration() uint64 {
	n, _ := strconv.ParseUint(b.Key.To, 10, 64)
	return n
}

func (k *Key) aead(purpose []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.secret, nil, string(purpose), 32)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	return cipher.NewGCM(block)
}
