package identity

import (
	"cmp"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// masterSize is the length in bytes of the secret that keys are derived from.
const masterSize = 32

// An Authority holds the secrets of a fleet: what a node must have to be one. It
// signs accounts, users, sessions and certificates. All account keys derive from
// one master secret, so that a new account needs nothing but its public record.
//
// NewAuthority makes one, Unmarshal and OpenAuthority read one. From then on
// nothing changes it but Learn, and it is safe for concurrent use. fmt, slog and
// encoding/json do not print it; Marshal does.
type Authority struct {
	fleet    string
	region   string        // "" in the first
	operator string        // JWT
	root     string        // JWT of the first region's operator, "" in the first
	signing  nkeys.KeyPair // the operator's online signing key
	master   []byte
	mesh     *issuer
	clients  *issuer
	engine   *engine
	keys     *keys
}

// Offline are the keys of a fleet that no node needs. They replace the online
// signing key if it is stolen, and belong on a medium that is stored away. fmt
// and slog do not print them; encoding/json does.
type Offline struct {
	// OperatorSeed is the operator's identity: only it can change the operator's
	// signing keys.
	OperatorSeed []byte `json:"operator_seed"`
	// SigningSeed is the operator's second signing key.
	SigningSeed []byte `json:"signing_seed"`
}

// String says what it is.
func (Offline) String() string { return "offline keys" }

// Format writes String for every verb, so that none of them shows a key.
func (o Offline) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.String()) }

// LogValue is String.
func (o Offline) LogValue() slog.Value { return slog.StringValue(o.String()) }

// NewAuthority makes the secrets of a new fleet of that name. The operator has
// two signing keys: the Authority holds one, Offline the other. Its X.509
// authorities are good for ten years from now.
func NewAuthority(fleet string, now time.Time) (*Authority, Offline, error) {
	if err := CheckName(fleet); err != nil {
		return nil, Offline{}, fmt.Errorf("making an authority: %w", err)
	}
	var pairs [3]keyPair
	for i := range pairs {
		var err error
		if pairs[i], err = newKeyPair(nkeys.CreateOperator()); err != nil {
			return nil, Offline{}, fmt.Errorf("making an authority: %w", err)
		}
	}
	root, online, offline := pairs[0], pairs[1], pairs[2]
	a := &Authority{fleet: fleet, signing: online, master: randomBytes(masterSize), keys: &keys{all: map[string][]KeyGeneration{}}}
	system, err := a.accountKey(systemID)
	if err != nil {
		return nil, Offline{}, fmt.Errorf("making an authority: %w", err)
	}
	claims := jwt.NewOperatorClaims(root.public)
	claims.Name = fleet
	claims.SigningKeys.Add(online.public, offline.public)
	claims.StrictSigningKeyUsage = true
	claims.SystemAccount = system.public
	var errs [6]error
	a.operator, errs[0] = encode(claims, root, now)
	a.mesh, errs[1] = newIssuer(fleet+" mesh authority", now)
	a.clients, errs[2] = newIssuer(fleet+" clients authority", now)
	var kept Offline
	kept.OperatorSeed, errs[3] = root.Seed()
	kept.SigningSeed, errs[4] = offline.Seed()
	a.engine, errs[5] = newEngine(fleet, system.public)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, Offline{}, fmt.Errorf("making an authority: %w", err)
	}
	return a, kept, nil
}

// Fleet is the name of the fleet.
func (a *Authority) Fleet() string { return a.fleet }

// Operator is the JWT of the fleet's operator, which its sites trust. It is public.
// Each region has one of its own, with the same signing keys.
func (a *Authority) Operator() string {
	if g := a.KeyNewest(KeyOperator, ""); g.ID != "" {
		if own, err := a.inRegion(g.Public); err == nil {
			return own
		}
	}
	return a.operator
}

// RootOperator is the operator of the first region, whose identity is kept offline:
// what NewOperatorKey takes.
func (a *Authority) RootOperator() string {
	if g := a.KeyNewest(KeyOperator, ""); g.ID != "" {
		return g.Public
	}
	return cmp.Or(a.root, a.operator)
}

// String says whose authority it is.
func (a *Authority) String() string {
	if a == nil {
		return "no authority"
	}
	return "authority of " + a.fleet
}

// Format writes String for every verb, so that none of them shows a secret.
func (a *Authority) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }

// LogValue is String.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }

// authorityRecord is an Authority as it is stored and sent.
type authorityRecord struct {
	Fleet       string       `json:"fleet"`
	Region      string       `json:"region,omitempty"`
	Operator    string       `json:"operator"`
	Root        string       `json:"root,omitempty"`
	SigningSeed string       `json:"signing_seed"`
	Master      []byte       `json:"master"`
	Mesh        issuerRecord `json:"mesh"`
	Clients     issuerRecord `json:"clients"`
	// Keys are the generations above these, by the names of their records.
	Keys map[string][]storedKey `json:"keys,omitempty"`
}

// Marshal returns the secrets as JSON, to be stored where only the server reads.
// Unmarshal reads it.
func (a *Authority) Marshal() ([]byte, error) {
	seed, err1 := a.signing.Seed()
	mesh, err2 := a.mesh.record()
	clients, err3 := a.clients.record()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("encoding the %s: %w", a, err)
	}
	return json.MarshalIndent(authorityRecord{
		Fleet: a.fleet, Region: a.region, Operator: a.operator, Root: a.root, SigningSeed: string(seed), Master: a.master, Mesh: mesh, Clients: clients,
		Keys: a.keys.stored(),
	}, "", "  ")
}

// Unmarshal makes a what Marshal returned, after checking that its parts belong
// together. It is for an Authority that nobody uses yet. After an error, which
// shows no secret, a is as before.
func (a *Authority) Unmarshal(data []byte) error {
	var r authorityRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("decoding an authority: %w", err)
	}
	if err := CheckName(r.Fleet); err != nil {
		return fmt.Errorf("decoding an authority: %w", err)
	}
	if r.Region != "" {
		if err := CheckRegionName(r.Region); err != nil {
			return fmt.Errorf("decoding an authority: %w", err)
		}
	}
	next := &Authority{fleet: r.Fleet, region: r.Region, operator: r.Operator, root: r.Root, master: r.Master}
	if len(next.master) != masterSize {
		return fmt.Errorf("decoding the %s: its master secret has %d bytes, not %d", next, len(next.master), masterSize)
	}
	operator, err := jwt.DecodeOperatorClaims(r.Operator)
	if err != nil {
		return fmt.Errorf("decoding the operator of the %s: %w", next, err)
	}
	if next.signing, err = nkeys.FromSeed([]byte(r.SigningSeed)); err != nil {
		return fmt.Errorf("decoding the signing key of the %s: %w", next, err)
	}
	public, err := next.signing.PublicKey()
	if err != nil || !operator.SigningKeys.Contains(public) {
		return fmt.Errorf("decoding the %s: its signing key is not one of the operator", next)
	}
	if next.mesh, err = r.Mesh.issuer(); err != nil {
		return fmt.Errorf("decoding the mesh authority of the %s: %w", next, err)
	}
	if next.clients, err = r.Clients.issuer(); err != nil {
		return fmt.Errorf("decoding the clients authority of the %s: %w", next, err)
	}
	if next.keys, err = restoreKeys(r.Keys); err != nil {
		return fmt.Errorf("decoding the %s: %w", next, err)
	}
	system, err := next.accountKey(next.own(systemID))
	if err != nil {
		return fmt.Errorf("decoding the %s: %w", next, err)
	}
	if next.engine, err = newEngine(next.fleet, system.public); err != nil {
		return fmt.Errorf("decoding the %s: %w", next, err)
	}
	*a = *next
	return nil
}

// SealTo returns the Authority encrypted to recipient, the public curve nkey of
// a node that enrolls, and signed so that OpenAuthority can tell who sealed it.
func (a *Authority) SealTo(recipient string) ([]byte, error) {
	data, err := a.Marshal()
	if err != nil {
		return nil, err
	}
	key, err := a.curveKey("seal")
	if err != nil {
		return nil, fmt.Errorf("sealing the %s: %w", a, err)
	}
	sealed, err := key.Seal(data, recipient)
	if err != nil {
		return nil, fmt.Errorf("sealing the %s to %s: %w", a, quote(recipient), err)
	}
	return sealed, nil
}

// SealPublic is the public curve nkey that SealTo seals with. A joiner learns it
// in the enrollment exchange.
func (a *Authority) SealPublic() (string, error) {
	key, err := a.curveKey("seal")
	return key.public, err
}

// OpenAuthority opens what SealTo sealed to receiver. sender is the SealPublic
// of who sealed it. Whether it is the right fleet the caller learns from Hash.
func OpenAuthority(sealed []byte, sender string, receiver nkeys.KeyPair) (*Authority, error) {
	data, err := receiver.Open(sealed, sender)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed authority: %w", err)
	}
	a := new(Authority)
	if err := a.Unmarshal(data); err != nil {
		return nil, err
	}
	return a, nil
}

// A keyPair is an nkey and its public half.
type keyPair struct {
	nkeys.KeyPair
	public string
}

// newKeyPair completes what made a key.
func newKeyPair(pair nkeys.KeyPair, err error) (keyPair, error) {
	if err != nil {
		return keyPair{}, fmt.Errorf("making a key: %w", err)
	}
	public, err := pair.PublicKey()
	return keyPair{KeyPair: pair, public: public}, err
}

// NewUserKey makes the key of a user: its public half, which is shown, and its seed,
// which is kept as a creds file is.
func NewUserKey() (public string, seed []byte, err error) {
	pair, err := newKeyPair(nkeys.CreateUser())
	if err == nil {
		seed, err = pair.Seed()
	}
	if err != nil {
		return "", nil, fmt.Errorf("making the key of a user: %w", err)
	}
	return pair.public, seed, nil
}

// derive returns the key of that label. Labels are paths whose segments are
// names and IDs, so that no two keys can share one.
func (a *Authority) derive(prefix nkeys.PrefixByte, label string) (keyPair, error) {
	return deriveKey(a.master, prefix, label)
}

// curveKey is derive for keys that seal and open.
func (a *Authority) curveKey(label string) (keyPair, error) {
	return a.derive(nkeys.PrefixByteCurve, label)
}

func (a *Authority) secret(label string) ([]byte, error) {
	raw, err := hkdf.Key(sha256.New, a.master, nil, "fleetbus/"+label, masterSize)
	if err != nil {
		return nil, fmt.Errorf("deriving key %q: %w", label, err)
	}
	return raw, nil
}

// CertSecret is the secret of the managers of an account's certificates, 32 bytes. It
// is the same on every node, and another one if the account is made anew.
func (a *Authority) CertSecret(account Account) ([]byte, error) {
	return a.secret("account/" + account.ID + "/certs")
}

// TicketKey is the key by which a node of that name knows who was let in before it was
// started anew.
func (a *Authority) TicketKey(node string) ([]byte, error) { return a.secret("ticket/" + node) }

func (a *Authority) accountKey(id string) (keyPair, error) {
	return a.derive(nkeys.PrefixByteAccount, "account/"+id)
}

// MeshRoots are the roots that certificates of nodes lead to, now.
func (a *Authority) MeshRoots() *x509.CertPool { return a.pool(KeyRoutes) }

// ClientRoots are the roots that certificates of listeners and clients lead to, now.
func (a *Authority) ClientRoots() *x509.CertPool { return a.pool(KeyAuthority) }

// MeshPEM are the certificates of MeshRoots, the newest first.
func (a *Authority) MeshPEM() []byte { return a.pem(KeyRoutes) }

// ClientsPEM are the certificates of ClientRoots, the newest first: what a client
// must trust.
func (a *Authority) ClientsPEM() []byte { return a.pem(KeyAuthority) }

// Hash is the SHA-256, in hexadecimal, of the newest certificates of both X.509
// authorities. It identifies the fleet: no other can show them and use them.
func (a *Authority) Hash() string {
	now := time.Now()
	return hashAuthorities(a.newest(KeyAuthority, now).cert, a.newest(KeyRoutes, now).cert)
}
