// Package provision is how a machine that nobody knows gets an identity, over a
// connection that may be in clear and that strangers read and alter.
//
// The machine knows one thing of its fleet, the pin: the hash of its authorities. It
// is no secret. With it the machine verifies who answers its hello: a provisioner,
// by a certificate of the fleet that is good for nothing else, which signs the key
// that is to be sealed to, and the machine's nonce. The machine asks for an identity
// with the public halves of its keys, and a proof; the request is signed by its key
// and sealed to the provisioner. Every answer is signed by the provisioner for that
// one request, and sealed to a key that the machine made for it.
//
// [Ask] is the machine's side; it does not link the engine. [Provisioner] answers.
package provision

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	version = 1

	// maxMessage bounds what a machine says, in bytes, maxAnswer what it is answered, and
	// maxCSR the certificate request.
	maxMessage = 32 << 10
	maxAnswer  = 256 << 10
	maxCSR     = 8 << 10
	maxClaim   = 4 << 10
	// maxFacts bounds what a machine says of itself besides.
	maxFacts, maxFact = 16, 256
	nonceSize         = 32
)

// hello is what a machine says first.
type hello struct {
	Version int    `json:"v"`
	Nonce   []byte `json:"nonce"`
}

// signed is what a provisioner says: the body as it was signed, in the words of its
// kind.
type signed struct {
	Body      []byte `json:"body"`
	Signature []byte `json:"sig"`
	// Chain is the provisioner's, in PEM; with the answer to a hello alone.
	Chain string `json:"chain,omitempty"`
}

// welcome is the body of the answer to a hello.
type welcome struct {
	Version int `json:"v"`
	// Nonce is the machine's.
	Nonce []byte `json:"nonce"`
	// Instance of the provisioner, which is asked, and the public key to seal to.
	Instance string `json:"instance"`
	Seal     []byte `json:"seal"`
	Fleet    string `json:"fleet"`
}

// sealed is a request as it travels.
type sealed struct {
	Version int         `json:"v"`
	Sealed  cert.Sealed `json:"sealed"`
}

// ask is what a machine asks for. It is signed by its nkey.
type ask struct {
	Version int `json:"v"`
	// Nonce and Instance are those of the welcome.
	Nonce    []byte `json:"nonce"`
	Instance string `json:"instance"`
	// Name that the machine would like.
	Name string `json:"name"`
	// Key is its public user nkey, CSR the PEM request for its certificate, and Seal
	// the public key to which the answer is sealed.
	Key  string `json:"key"`
	CSR  string `json:"csr"`
	Seal []byte `json:"seal"`
	// Facts are what it says of itself. Nobody vouches for them.
	Facts map[string]string `json:"facts,omitempty"`
}

// petition is what is sealed: an ask as it was signed, and what is to prove that it
// be granted.
type petition struct {
	Ask       []byte `json:"ask"`
	Signature []byte `json:"sig"`
	// Token is the ID of a token, and TokenSignature the signature of the ask by it:
	// the token itself goes nowhere.
	Token          string `json:"token,omitempty"`
	TokenSignature []byte `json:"token_sig,omitempty"`
	// Claim is a JWT.
	Claim string `json:"claim,omitempty"`
}

// answer is the body of what a provisioner answers.
type answer struct {
	Version int `json:"v"`
	// Request is the SHA-256 of the request as it came.
	Request []byte `json:"request"`
	// Sealed is a verdict. Without one the request could not be read, for Refused.
	Sealed  *cert.Sealed `json:"sealed,omitempty"`
	Refused string       `json:"refused,omitempty"`
}

// State is how a request stands.
type State string

// The states of a request.
const (
	// Pending waits for a person, or for the provisioner to have time.
	Pending State = "pending"
	// Granted has an identity.
	Granted State = "granted"
	// Denied has none, and is not to ask again.
	Denied State = "denied"
)

// verdict is sealed to the machine.
type verdict struct {
	State State `json:"state"`
	// Reason is why it is not granted, for the machine's log.
	Reason string `json:"reason,omitempty"`
	// Again is when to ask again, if it is pending.
	Again time.Duration `json:"again_ns,omitempty"`
	Grant *grant        `json:"grant,omitempty"`
}

// grant is an identity.
type grant struct {
	Fleet   string `json:"fleet"`
	Account string `json:"account"`
	Name    string `json:"name"`
	Role    string `json:"role"`
	// JWT is of the machine's nkey, Chain the certificate of the key in its request,
	// CA the authorities that servers are verified with; the last two in PEM.
	JWT     string    `json:"jwt"`
	Chain   string    `json:"chain"`
	CA      string    `json:"ca"`
	Servers []string  `json:"servers"`
	Expires time.Time `json:"expires,omitzero"`
}

// The contexts of signatures, so that none is taken for another.
const (
	ofWelcome = "fleetbus provision welcome v1"
	ofAsk     = "fleetbus provision ask v1"
	ofToken   = "fleetbus provision token v1"
	ofAnswer  = "fleetbus provision answer v1"
	toOpen    = "provision ask "
	toRead    = "provision answer "
)

func signable(context string, body []byte) []byte {
	return append(append([]byte(context), 0), body...)
}

// sign makes a body and its signature.
func sign(key ed25519.PrivateKey, context string, body any) (signed, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return signed{}, fmt.Errorf("encoding an answer: %w", err)
	}
	return signed{Body: data, Signature: ed25519.Sign(key, signable(context, data))}, nil
}

// parseChain reads at most three certificates in PEM.
func parseChain(text string) (chain []*x509.Certificate, err error) {
	rest := []byte(text)
	for len(rest) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(chain) == 3 {
			return nil, errors.New("reading certificates: it is not a chain of up to three")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificates: %w", err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// errForged is why what came is not believed.
var errForged = errors.New("it was altered on the way, or is an answer to something else")

// decode reads a message of a bounded size.
func decode(data []byte, most int, into any) error {
	if len(data) > most {
		return fmt.Errorf("it has %d bytes and %d are allowed", len(data), most)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("it is not understood: %w", err)
	}
	return nil
}

// A provisionerKey is what a machine knows of a provisioner after its welcome.
type provisionerKey struct {
	welcome
	pin  string
	ca   *x509.Certificate
	sign ed25519.PublicKey
}

// openWelcome verifies the answer to a hello with that nonce, by the pin.
func openWelcome(data []byte, pin string, nonce []byte, now time.Time) (*provisionerKey, error) {
	var s signed
	if err := decode(data, maxAnswer, &s); err != nil {
		return nil, err
	}
	chain, err := parseChain(s.Chain)
	if err != nil {
		return nil, err
	}
	if pin == "" && len(chain) == 3 {
		return nil, &UnknownFleetError{Pin: identity.PinOf(chain)}
	}
	if err := identity.VerifyProvisioner(pin, chain, now); err != nil {
		return nil, err
	}
	public, ok := chain[0].PublicKey.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(public, signable(ofWelcome, s.Body), s.Signature) {
		return nil, errForged
	}
	k := &provisionerKey{pin: pin, ca: chain[1], sign: public}
	if err := decode(s.Body, maxAnswer, &k.welcome); err != nil {
		return nil, err
	}
	switch {
	case k.Version != version:
		return nil, fmt.Errorf("the provisioner speaks version %d and this program %d", k.Version, version)
	case !bytes.Equal(k.Nonce, nonce):
		return nil, errForged
	case identity.CheckName(k.Instance) != nil:
		return nil, errForged
	}
	return k, nil
}

// UnknownFleetError is a fleet that answered a machine that knows none.
type UnknownFleetError struct {
	// Pin of the fleet. Nobody vouches for it.
	Pin string
}

// Error names the pin.
func (e *UnknownFleetError) Error() string {
	return fmt.Sprintf("a fleet that calls itself %s answers, and nothing says that it is the right one", e.Pin)
}

// openAnswer verifies the answer to a request of those bytes, and opens it.
func (k *provisionerKey) openAnswer(data, request []byte, key *cert.SealKey) (verdict, error) {
	var v verdict
	var s signed
	var a answer
	if err := decode(data, maxAnswer, &s); err != nil {
		return v, err
	}
	if !ed25519.Verify(k.sign, signable(ofAnswer, s.Body), s.Signature) {
		return v, errForged
	}
	if err := decode(s.Body, maxAnswer, &a); err != nil {
		return v, err
	}
	sum := sha256.Sum256(request)
	if a.Version != version || !bytes.Equal(a.Request, sum[:]) {
		return v, errForged
	}
	if a.Sealed == nil {
		return v, &unreadableError{a.Refused}
	}
	plain, err := key.OpenMessage(toRead+hex.EncodeToString(sum[:]), *a.Sealed)
	if err != nil {
		return v, errForged
	}
	return v, decode(plain, maxAnswer, &v)
}

// unreadableError is why a provisioner could not read a request.
type unreadableError struct{ reason string }

func (e *unreadableError) Error() string {
	return "the provisioner could not read the request: " + e.reason
}

// A demand is a request as a provisioner reads it: what it says holds together, and
// who made it has the private keys.
type demand struct {
	ask
	petition
	// ID is of the name and the keys: a request that is repeated has the same.
	ID string
	// Where the machine is.
	where string
	csr   *x509.CertificateRequest
}

// openDemand reads a request to the instance that has that key.
func openDemand(data []byte, instance string, key *cert.SealKey) (*demand, error) {
	var s sealed
	if err := decode(data, maxMessage, &s); err != nil {
		return nil, err
	}
	if s.Version != version {
		return nil, fmt.Errorf("it is of version %d, and this is version %d", s.Version, version)
	}
	plain, err := key.OpenMessage(toOpen+instance, s.Sealed)
	if err != nil {
		return nil, errors.New("it is sealed to another key, or was altered")
	}
	d := new(demand)
	if err := decode(plain, maxMessage, &d.petition); err != nil {
		return nil, err
	}
	if err := decode(d.Ask, maxMessage, &d.ask); err != nil {
		return nil, err
	}
	return d, d.check(instance)
}

func (d *demand) check(instance string) error {
	a := d.ask
	switch {
	case a.Version != version || a.Instance != instance || len(a.Nonce) != nonceSize:
		return errors.New("it is for another provisioner or another version")
	case len(a.Key) > 64 || !nkeys.IsValidPublicUserKey(a.Key):
		return errors.New("its key is not a public user nkey")
	case len(a.CSR) > maxCSR:
		return fmt.Errorf("its certificate request has %d bytes and %d are allowed", len(a.CSR), maxCSR)
	case len(d.Claim) > maxClaim:
		return fmt.Errorf("its claim has %d bytes and %d are allowed", len(d.Claim), maxClaim)
	case len(a.Facts) > maxFacts:
		return fmt.Errorf("it has %d facts and %d are allowed", len(a.Facts), maxFacts)
	}
	for name, value := range a.Facts {
		if len(name) > maxFact || len(value) > maxFact {
			return fmt.Errorf("a fact of it is longer than %d bytes", maxFact)
		}
	}
	if err := identity.CheckName(a.Name); err != nil {
		return fmt.Errorf("its name cannot be one: %w", err)
	}
	public, err := nkeys.FromPublicKey(a.Key)
	if err != nil || public.Verify(signable(ofAsk, d.Ask), d.Signature) != nil {
		return errors.New("it is not signed by its key")
	}
	block, rest := pem.Decode([]byte(a.CSR))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("its certificate request is not PEM")
	}
	if d.csr, err = x509.ParseCertificateRequest(block.Bytes); err != nil {
		return fmt.Errorf("its certificate request cannot be read: %w", err)
	}
	if err := checkCSR(d.csr); err != nil {
		return err
	}
	d.ID = requestID(a.Name, a.Key, d.csr.RawSubjectPublicKeyInfo)
	return nil
}

// checkCSR says which keys are not taken, and verifies that who asks has the key. The
// authority looks, too; here it is found out before a token is spent.
func checkCSR(csr *x509.CertificateRequest) error {
	good := false
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		good = key.Params().BitSize >= 256
	case ed25519.PublicKey:
		good = true
	case *rsa.PublicKey:
		good = key.N.BitLen() >= 2048 && key.N.BitLen() <= 8192
	}
	if !good {
		return errors.New("its certificate request is for a key that is none of ECDSA P-256 and up, Ed25519, and RSA of 2048 to 8192 bits")
	}
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("its certificate request is not signed by its key: %w", err)
	}
	return nil
}

// requestID is of 20 letters and digits, which two machines compare as one would a
// fingerprint: 100 bits, so that nobody finds keys of his own with the same.
func requestID(name, key string, spki []byte) string {
	h := sha256.New()
	for _, part := range [][]byte{[]byte("fleetbus provision id v1"), []byte(name), []byte(key), spki} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil))[:idLength])
}

const idLength = 20

// Code is the ID of a request as people compare it: abcd-efgh-ijkl-mnop-qrst.
func Code(id string) string {
	return strings.Join(slices.Collect(func(yield func(string) bool) {
		for part := range slices.Chunk([]byte(id), 4) {
			if !yield(string(part)) {
				return
			}
		}
	}), "-")
}

// ParseCode is the ID in a Code, in whatever case and with or without the dashes.
func ParseCode(text string) (string, error) {
	id := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(text))
	if len(id) != idLength || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return "", fmt.Errorf("%q is not a code of %d letters and digits, such as abcd-efgh-ijkl-mnop-qrst", shorten(text), idLength)
	}
	return id, nil
}

func shorten(s string) string { return s[:min(len(s), 64)] }

// answerTo signs what is answered to a request: a verdict for d, or refused if there
// is no d.
func answerTo(key crypto.Signer, request []byte, d *demand, v verdict, refused string) ([]byte, error) {
	sum := sha256.Sum256(request)
	a := answer{Version: version, Request: sum[:], Refused: refused}
	if d != nil {
		plain, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encoding an answer: %w", err)
		}
		s, err := cert.SealMessage(d.Seal, toRead+hex.EncodeToString(sum[:]), plain)
		if err != nil {
			a.Refused = "the answer cannot be sealed to its key"
		} else {
			a.Sealed = &s
		}
	}
	s, err := sign(key.(ed25519.PrivateKey), ofAnswer, a)
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}
