package identity

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// scramIterations is how often a new verifier derives; scramMost is the most of one that is
	// read, and scramLeast the least, which RFC 7677 asks for.
	scramIterations, scramLeast, scramMost = 600_000, 4096, 10_000_000
	scramPrefix                            = "SCRAM-SHA-256$"
	// scramText bounds a message of a client, in bytes.
	scramText = 1024
)

// A Scram verifies a password by SCRAM-SHA-256 of RFC 5802 and 7677. Who has it can try
// passwords, and can pose as the server to whoever has the password; it is no password.
type Scram struct {
	iterations           int
	salt, stored, server []byte
}

// HashPasswordToo is HashPassword, whose result also verifies the password by SCRAM-SHA-256:
// a space and the verifier follow the hash. The password has to be printable ASCII, because
// SCRAM knows others by the tables of SASLprep.
func HashPasswordToo(password string) (string, error) {
	encoded, err := HashPassword(password)
	if err != nil {
		return "", err
	}
	if strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("hashing a password for SCRAM: it is not of printable ASCII characters alone")
	}
	s, err := newScram(password, randomBytes(argonSalt), scramIterations)
	if err != nil {
		return "", err
	}
	return encoded + " " + s.encode(), nil
}

func newScram(password string, salt []byte, iterations int) (Scram, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return Scram{}, fmt.Errorf("hashing a password for SCRAM: %w", err)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	return Scram{iterations, salt, stored[:], mac(salted, "Server Key")}, nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text)) // it never fails
	return h.Sum(nil)
}

// encode is as PostgreSQL has it.
func (s Scram) encode() string {
	b := base64.StdEncoding.EncodeToString
	return scramPrefix + strconv.Itoa(s.iterations) + ":" + b(s.salt) + "$" + b(s.stored) + ":" + b(s.server)
}

// String and the like show nothing of it.
func (s Scram) String() string { return "SCRAM-SHA-256" }

// GoString is String.
func (s Scram) GoString() string { return s.String() }

// parseScram accepts exactly what encode writes, within the bounds.
func parseScram(text string) (s Scram, err error) {
	bad := errors.New("the verifier is not of SCRAM-SHA-256")
	rest, ok := strings.CutPrefix(text, scramPrefix)
	how, keys, ok2 := strings.Cut(rest, "$")
	count, salt, ok3 := strings.Cut(how, ":")
	stored, server, ok4 := strings.Cut(keys, ":")
	if !ok || !ok2 || !ok3 || !ok4 {
		return s, bad
	}
	if s.iterations, err = strconv.Atoi(count); err != nil || s.iterations < scramLeast || s.iterations > scramMost {
		return s, bad
	}
	for text, to := range map[string]*[]byte{salt: &s.salt, stored: &s.stored, server: &s.server} {
		if *to, err = base64.StdEncoding.Strict().DecodeString(text); err != nil {
			return s, bad
		}
	}
	if len(s.salt) < minArgonBytes || len(s.salt) > maxArgonBytes || len(s.stored) != sha256.Size || len(s.server) != sha256.Size || s.encode() != text {
		return s, bad
	}
	return s, nil
}

// A ScramExchange is the server's side of a login by SCRAM-SHA-256, without channel binding.
// It is for one goroutine.
type ScramExchange struct {
	user, bare, header, nonce string
	used                      Scram
	final                     string
}

// NewScramExchange reads the client's first message.
func NewScramExchange(first string) (*ScramExchange, error) {
	bad := errors.New("the client's first message of SCRAM cannot be read")
	if len(first) > scramText {
		return nil, bad
	}
	parts := strings.SplitN(first, ",", 3)
	if len(parts) != 3 {
		return nil, bad
	}
	switch parts[0] {
	case "n", "y": // y: it could bind, and thinks that we cannot, which is so
	default:
		return nil, errors.New("the client asks for channel binding, which is not offered")
	}
	x := &ScramExchange{bare: parts[2], header: parts[0] + "," + parts[1] + ","}
	fields := strings.Split(x.bare, ",")
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "n=") || !strings.HasPrefix(fields[1], "r=") || len(fields[1]) < 2+8 {
		return nil, bad // an extension that is mandatory is before the name
	}
	if x.user, _ = strings.CutPrefix(fields[0], "n="); strings.Contains(strings.NewReplacer("=2C", "", "=3D", "").Replace(x.user), "=") {
		return nil, bad
	}
	x.user = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(x.user)
	x.nonce = fields[1][len("r="):] + rand.Text()
	return x, nil
}

// User is the name that the client gave.
func (x *ScramExchange) User() string { return x.user }

// Challenge is the server's first message, by the verifier of the user.
func (x *ScramExchange) Challenge(v Scram) string {
	x.used = v
	return fmt.Sprintf("r=%s,s=%s,i=%d", x.nonce, base64.StdEncoding.EncodeToString(v.salt), v.iterations)
}

// Verify returns nil if the client's last message proves that it has the password of the
// verifier that it was challenged by, and ErrPassword if it proves nothing.
func (x *ScramExchange) Verify(last string) error {
	if len(last) > scramText {
		return ErrPassword
	}
	without, proof, ok := strings.Cut(last, ",p=")
	binding, nonce, ok2 := strings.Cut(without, ",r=")
	if !ok || !ok2 || binding != "c="+base64.StdEncoding.EncodeToString([]byte(x.header)) || nonce != x.nonce {
		return ErrPassword
	}
	given, err := base64.StdEncoding.DecodeString(proof)
	if err != nil || len(given) != sha256.Size {
		return ErrPassword
	}
	all := x.bare + "," + x.Challenge(x.used) + "," + without
	key := make([]byte, sha256.Size)
	subtle.XORBytes(key, given, mac(x.used.stored, all))
	if stored := sha256.Sum256(key); subtle.ConstantTimeCompare(stored[:], x.used.stored) != 1 {
		return ErrPassword
	}
	x.final = "v=" + base64.StdEncoding.EncodeToString(mac(x.used.server, all))
	return nil
}

// Final is the server's last message, which proves to the client that the server knows it.
// Empty unless Verify returned nil.
func (x *ScramExchange) Final() string { return x.final }

// Used reports whether v is the verifier that the client was challenged by.
func (x *ScramExchange) Used(v Scram) bool { return x.used.encode() == v.encode() }

// scramOf is the verifier of a user. Who has none, or is not there, is challenged by one that
// is the same each time, at each node, so that nobody learns who is there.
func (d *Directory) scramOf(u User, asked string) (s Scram, has bool) {
	_, text, _ := strings.Cut(u.Password, " ")
	if s, err := parseScram(text); err == nil {
		return s, true
	}
	key := mac(d.unlike(), asked)
	return Scram{scramIterations, key[:argonSalt], mac(key, "stored"), mac(key, "server")}, false
}

// unlike is a secret that all nodes have: of the first user by name who has a verifier. If
// nobody has, there is nobody to be told from others.
func (d *Directory) unlike() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	first, secret := "", ""
	for name, u := range d.state.users {
		if strings.Contains(u.Password, " ") && (first == "" || name < first) {
			first, secret = name, u.Password
		}
	}
	return mac([]byte("unlike"), secret)
}
