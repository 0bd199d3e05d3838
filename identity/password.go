package identity

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// ErrPassword says that a password is not the one that was hashed.
var ErrPassword = errors.New("wrong password")

// The cost of a new hash, as OWASP recommends it for argon2id.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes
)

// The highest cost of a hash that is accepted, so that a record cannot make a
// node compute for long.
const (
	maxArgonMemory  = 256 << 10 // KiB
	maxArgonTime    = 16
	maxArgonThreads = 16
	maxArgonBytes   = 64 // of salt and of key
	minArgonBytes   = 8
)

// maxPassword is the length of the longest password in bytes.
const maxPassword = 1024

// HashPassword returns password hashed with argon2id under a random salt, in the
// form $argon2id$v=19$m=19456,t=2,p=1$salt$hash. A password has 1 to 1024 bytes.
// It takes about 30 ms and 19 MiB, and is safe for concurrent use.
func HashPassword(password string) (string, error) {
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("hashing a password: it has %d bytes, not 1 to %d", len(password), maxPassword)
	}
	h := argonHash{memory: argonMemory, time: argonTime, threads: argonThreads, salt: randomBytes(argonSalt)}
	h.key = h.derive(password, argonKey)
	return h.String(), nil
}

// CheckPasswordHash says what is wrong with encoded as what HashPassword or HashPasswordToo
// returns, or nil.
func CheckPasswordHash(encoded string) error {
	hash, scram, both := strings.Cut(encoded, " ")
	_, err := parseArgon(hash)
	if err == nil && both {
		_, err = parseScram(scram)
	}
	return err
}

// VerifyPassword returns nil if encoded is a hash of password, ErrPassword if
// it is of another, and an error that says what is wrong with encoded if it is
// not an argon2id hash or costs more than 256 MiB or 16 passes. It is safe for
// concurrent use, and takes as much time and memory as encoded asks for.
func VerifyPassword(encoded, password string) error {
	encoded, _, _ = strings.Cut(encoded, " ")
	h, err := parseArgon(encoded)
	if err != nil {
		return fmt.Errorf("verifying a password: %w", err)
	}
	if len(password) > maxPassword || subtle.ConstantTimeCompare(h.derive(password, len(h.key)), h.key) != 1 {
		return ErrPassword
	}
	return nil
}

type argonHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func (h argonHash) derive(password string, length int) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(length))
}

func (h argonHash) String() string {
	return fmt.Sprintf("$argon2id$v=%d$%s$%s$%s", argon2.Version, h.cost(),
		base64.RawStdEncoding.EncodeToString(h.salt), base64.RawStdEncoding.EncodeToString(h.key))
}

func (h argonHash) cost() string {
	return fmt.Sprintf("m=%d,t=%d,p=%d", h.memory, h.time, h.threads)
}

// parseArgon accepts exactly what String writes, within the bounds.
func parseArgon(encoded string) (argonHash, error) {
	var h argonHash
	parts := strings.Split(encoded, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, errors.New("the hash is not of argon2id version 19")
	}
	// Sscanf overlooks what follows; cost does not.
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil || h.cost() != parts[3] {
		return h, errors.New("the cost of the hash cannot be read")
	}
	if h.memory > maxArgonMemory || h.time < 1 || h.time > maxArgonTime || h.threads < 1 || h.threads > maxArgonThreads {
		return h, fmt.Errorf("the cost of the hash, %s, is out of bounds", h.cost())
	}
	var err error
	if h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil {
		return h, fmt.Errorf("decoding the salt: %w", err)
	}
	if h.key, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil {
		return h, fmt.Errorf("decoding the hash: %w", err)
	}
	for _, b := range [][]byte{h.salt, h.key} {
		if len(b) < minArgonBytes || len(b) > maxArgonBytes {
			return h, fmt.Errorf("the hash has a part of %d bytes", len(b))
		}
	}
	return h, nil
}
