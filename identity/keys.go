package identity

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// The keys that can be changed while the fleet runs, by the names of their records,
// which follow KeyNoun in the ledger. Those of the roles of an account are together
// in one: see RoleKeys.
const (
	KeyNoun = "key"
	// KeyOperator signs the terms of accounts at sites.
	KeyOperator = "operator"
	// KeyAuthority signs the certificates of listeners and users.
	KeyAuthority = "authority"
	// KeyRoutes signs the certificates by which nodes know each other.
	KeyRoutes = "routes"
)

// RoleKeys names the record of the keys that sign for the roles of an account.
func RoleKeys(account Account) string { return "account." + account.ID }

// CheckKeyName says what is wrong with the name of a key's record; nil if nothing.
func CheckKeyName(name string) error {
	switch id, ok := strings.CutPrefix(name, "account."); {
	case ok:
		return CheckName(id)
	case name == KeyOperator, name == KeyAuthority, name == KeyRoutes:
		return nil
	}
	return fmt.Errorf("there is no key %s", quote(name))
}

// A KeyRecord is what the ledger has of one key: its generations above the one that
// the fleet began with. No secret can be read from it but by the nodes.
type KeyRecord struct {
	// Generations, the oldest first. Those that are good for nothing any more may
	// have been left out.
	Generations []KeyGeneration `json:"generations"`
	// Sealed are the secrets of all of them.
	Sealed Sealed `json:"sealed"`
}

// Sealed is a secret that only nodes can read.
type Sealed struct {
	// For has it for each node, by what Node.Server calls it, sealed to its Box by
	// the curve key Sender.
	For    map[string][]byte `json:"for"`
	Sender string            `json:"sender"`
}

// Seal makes a Sealed of data for the nodes with these boxes, by Node.Server.
func Seal(data []byte, boxes map[string]string) (Sealed, error) {
	sender, err := newKeyPair(nkeys.CreateCurveKeys())
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a secret: %w", err)
	}
	s := Sealed{For: map[string][]byte{}, Sender: sender.public}
	for server, box := range boxes {
		if s.For[server], err = sender.Seal(data, box); err != nil {
			return Sealed{}, fmt.Errorf("sealing a secret to node %q: %w", server, err)
		}
	}
	return s, nil
}

// Open reads what is sealed to a node, by its box. Nothing is sealed to it if both
// results are nil.
func (s Sealed) Open(server string, box nkeys.KeyPair) ([]byte, error) {
	sealed, ok := s.For[server]
	if !ok {
		return nil, nil
	}
	data, err := box.Open(sealed, s.Sender)
	if err != nil {
		return nil, errors.New("what is sealed to this node cannot be opened")
	}
	return data, nil
}

// A KeyGeneration is one of a key's.
type KeyGeneration struct {
	// ID is random. The generation that the fleet began with has none.
	ID string `json:"id"`
	// Role is the one that it signs for. Empty: for all of the account.
	Role string `json:"role,omitempty"`
	// Made is when it was made.
	Made time.Time `json:"made"`
	// Before is until when those before it are good.
	Before time.Time `json:"before"`
	// Public is the operator's JWT, or the authority's certificate in PEM.
	Public string `json:"public,omitempty"`

	secret []byte
	issuer *issuer
}

// keys are the generations that an Authority has learned of, by the name of their
// record.
type keys struct {
	mu  sync.RWMutex
	all map[string][]KeyGeneration
}

func (k *keys) of(name string) []KeyGeneration {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.all[name]
}

// forRole are the generations that sign for a role.
func forRole(all []KeyGeneration, role string) []KeyGeneration {
	return slices.DeleteFunc(slices.Clone(all), func(g KeyGeneration) bool { return g.Role != "" && g.Role != role })
}

// ends says until when each generation is good, zero is for ever: first of the one
// that the fleet began with, then of those above it.
func ends(above []KeyGeneration) []time.Time {
	all := make([]time.Time, len(above)+1)
	var end time.Time
	for i := len(above) - 1; i >= 0; i-- {
		if b := above[i].Before; end.IsZero() || b.Before(end) {
			end = b
		}
		all[i] = end
	}
	return all
}

// good reports whether what ends then is good now.
func good(end, now time.Time) bool { return end.IsZero() || now.Before(end) }

// KeyEnds returns until when each generation of a key is good, by its ID; zero is for
// ever. role is for the keys of an account.
func (a *Authority) KeyEnds(name, role string) map[string]time.Time {
	above := forRole(a.keys.of(name), role)
	all := map[string]time.Time{}
	for i, end := range ends(above) {
		id := ""
		if i > 0 {
			id = above[i-1].ID
		}
		all[id] = end
	}
	return all
}

// KeyNewest returns the newest generation of a key, which signs; its ID is empty if it
// is the one that the fleet began with. role is for the keys of an account; empty is
// the newest of any.
func (a *Authority) KeyNewest(name, role string) KeyGeneration {
	above := a.keys.of(name)
	if role != "" {
		above = forRole(above, role)
	}
	if len(above) == 0 {
		return KeyGeneration{}
	}
	return above[len(above)-1]
}

// KeyState tells two states of all keys apart: it changes when one is learned, and when
// what it replaces is good no more, or is used for nothing new.
func (a *Authority) KeyState(now time.Time) string {
	a.keys.mu.RLock()
	defer a.keys.mu.RUnlock()
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(a.keys.all)) {
		above := a.keys.all[name]
		roles := map[string]bool{"": true}
		for _, g := range above {
			roles[g.Role] = true
		}
		for _, role := range slices.Sorted(maps.Keys(roles)) {
			some := forRole(above, role)
			for i, end := range ends(some) {
				fmt.Fprintf(&out, "%s/%s/%d %t %t\n", name, role, i, good(end, now), good(withLead(some, i, end), now))
			}
			for _, g := range some {
				out.WriteString(g.ID)
			}
		}
	}
	return out.String()
}

// keyLead is how long before its end an authority signs no certificates of nodes
// any more: clocks differ.
const keyLead = 30 * time.Second

// withLead is when generation i is used for nothing new.
func withLead(above []KeyGeneration, i int, end time.Time) time.Time {
	if end.IsZero() {
		return end
	}
	return end.Add(-min(keyLead, end.Sub(above[i].Made)/4))
}

// sealedKeys are the secrets of a record's generations, by ID.
type sealedKeys map[string][]byte

// Learn takes what the ledger says of a key. server is this node, and box its key
// that secrets are sealed to. After an error, which shows no secret, the key is as it
// was before.
func (a *Authority) Learn(name string, record KeyRecord, server string, box nkeys.KeyPair) error {
	if err := CheckKeyName(name); err != nil {
		return fmt.Errorf("learning a key: %w", err)
	}
	secrets := sealedKeys{}
	data, err := record.Sealed.Open(server, box)
	if err != nil {
		return fmt.Errorf("learning key %q: %w", name, err)
	}
	if data != nil && json.Unmarshal(data, &secrets) != nil {
		return fmt.Errorf("learning key %q: what is sealed to this node cannot be read", name)
	}
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	for _, g := range a.keys.all[name] {
		if secrets[g.ID] == nil {
			secrets[g.ID] = g.secret
		}
	}
	next, err := withSecrets(name, record.Generations, secrets)
	if err != nil {
		return err
	}
	all := maps.Clone(a.keys.all)
	if all[name] = next; len(next) == 0 {
		delete(all, name)
	}
	a.keys.all = all
	return nil
}

// errNotSealed says that a secret was not meant for this node.
var errNotSealed = errors.New("its secret is not sealed to this node: join it anew, with --replace")

// withSecrets completes generations, after checking that their parts belong together.
func withSecrets(name string, above []KeyGeneration, secrets sealedKeys) ([]KeyGeneration, error) {
	all := slices.Clone(above)
	for i := range all {
		g := &all[i]
		g.secret = secrets[g.ID]
		if g.ID == "" || len(g.secret) == 0 {
			return nil, fmt.Errorf("learning key %q, generation %s: %w", name, quote(g.ID), errNotSealed)
		}
		var err error
		switch name {
		case KeyOperator:
			_, err = operatorKey(g.Public, g.secret)
		case KeyAuthority, KeyRoutes:
			block, _ := pem.Decode([]byte(g.Public))
			if block == nil {
				return nil, fmt.Errorf("learning key %q, generation %s: its certificate is not PEM", name, quote(g.ID))
			}
			g.issuer, err = issuerRecord{Certificate: block.Bytes, Key: g.secret}.issuer()
		default:
			if len(g.secret) != masterSize {
				err = fmt.Errorf("its secret has %d bytes, not %d", len(g.secret), masterSize)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("learning key %q, generation %s: %w", name, quote(g.ID), err)
		}
	}
	return all, nil
}

// NextKey returns the record of a key with one generation more, made now, for Append
// to the ledger; those before it are good until then. role is for the keys of an
// account; empty is all of them. boxes are the nodes' Box by Node.Server. It changes
// nothing here: Learn does, when the ledger has it.
func (a *Authority) NextKey(name, role string, before time.Time, boxes map[string]string, now time.Time) (KeyRecord, error) {
	g := KeyGeneration{ID: randomHex(8), Role: role, Made: now, Before: before}
	what := ""
	switch name {
	case KeyOperator:
		return KeyRecord{}, errors.New("making a key: that of the operator is made where its identity is")
	case KeyAuthority:
		what = "clients"
	case KeyRoutes:
		what = "mesh"
	default:
		g.secret = randomBytes(masterSize)
	}
	if what != "" {
		i, err := newIssuer(fmt.Sprintf("%s %s authority %s", a.fleet, what, g.ID), now)
		if err != nil {
			return KeyRecord{}, err
		}
		if g.secret, err = x509.MarshalPKCS8PrivateKey(i.key); err != nil {
			return KeyRecord{}, fmt.Errorf("encoding the key of %q: %w", i.cert.Subject.CommonName, err)
		}
		g.Public = string(encodeCertificates(i.cert))
	}
	return a.nextRecord(name, g, boxes, now)
}

// NextOperator is NextKey for the operator's signing key, which NewOperatorKey made.
func (a *Authority) NextOperator(operator string, seed []byte, boxes map[string]string, now time.Time) (KeyRecord, error) {
	if _, err := operatorKey(operator, seed); err != nil {
		return KeyRecord{}, fmt.Errorf("taking the operator's new key: %w", err)
	}
	if err := Succeeds(operator, a.RootOperator()); err != nil {
		return KeyRecord{}, err
	}
	g := KeyGeneration{ID: randomHex(8), Made: now, Before: now, Public: operator, secret: seed}
	return a.nextRecord(KeyOperator, g, boxes, now)
}

func (a *Authority) nextRecord(name string, g KeyGeneration, boxes map[string]string, now time.Time) (KeyRecord, error) {
	all := append(slices.Clone(a.keys.of(name)), g)
	kept := slices.DeleteFunc(slices.Clone(all), func(one KeyGeneration) bool {
		scope := forRole(all, one.Role)
		i := slices.IndexFunc(scope, func(g KeyGeneration) bool { return g.ID == one.ID })
		return !good(ends(scope)[i+1], now)
	})
	return sealRecord(name, kept, boxes)
}

// Resealed is the record of a key as it is known here, sealed to these boxes; see
// NextKey.
func (a *Authority) Resealed(name string, boxes map[string]string) (KeyRecord, error) {
	return sealRecord(name, a.keys.of(name), boxes)
}

func sealRecord(name string, kept []KeyGeneration, boxes map[string]string) (KeyRecord, error) {
	secrets := sealedKeys{}
	for _, g := range kept {
		secrets[g.ID] = g.secret
	}
	data, err := json.Marshal(secrets)
	if err != nil {
		return KeyRecord{}, fmt.Errorf("encoding key %q: %w", name, err)
	}
	sealed, err := Seal(data, boxes)
	if err != nil {
		return KeyRecord{}, fmt.Errorf("making key %q: %w", name, err)
	}
	return KeyRecord{Generations: kept, Sealed: sealed}, nil
}

// A roleSigner signs for a role until then.
type roleSigner struct {
	keyPair
	end time.Time
}

// linkLabel is the label of the keys that sign the links of sites, and so the role
// leaf's.
const linkLabel = "session"

// roleSigners are the keys that sign for a role of an account: all that are good, the
// newest last.
func (a *Authority) roleSigners(id, role string, now time.Time) ([]roleSigner, error) {
	label := "account/" + id + "/role/" + role
	if role == RoleLeaf {
		label = "account/" + id + "/" + linkLabel
	}
	above := forRole(a.keys.of("account."+id), role)
	var all []roleSigner
	for i, end := range ends(above) {
		if !good(end, now) {
			continue
		}
		secret := a.master
		if i > 0 {
			secret = above[i-1].secret
		}
		key, err := deriveKey(secret, nkeys.PrefixByteAccount, label)
		if err != nil {
			return nil, err
		}
		all = append(all, roleSigner{key, end})
	}
	return all, nil
}

// roleKey is the one of them that signs.
func (a *Authority) roleKey(id, role string) (keyPair, error) {
	all, err := a.roleSigners(id, role, time.Now())
	if err != nil {
		return keyPair{}, err
	}
	return all[len(all)-1].keyPair, nil
}

// deriveKey returns the key of that label from a secret.
func deriveKey(secret []byte, prefix nkeys.PrefixByte, label string) (keyPair, error) {
	raw, err := hkdf.Key(sha256.New, secret, nil, "fleetbus/"+label, masterSize)
	if err != nil {
		return keyPair{}, fmt.Errorf("deriving key %q: %w", label, err)
	}
	if prefix != nkeys.PrefixByteCurve {
		return newKeyPair(nkeys.FromRawSeed(prefix, raw))
	}
	seed, err := nkeys.EncodeSeed(prefix, raw)
	if err != nil {
		return keyPair{}, fmt.Errorf("deriving key %q: %w", label, err)
	}
	return newKeyPair(nkeys.FromCurveSeed(seed))
}

// first is the authority of that name which the fleet began with.
func (a *Authority) first(name string) *issuer {
	if name == KeyRoutes {
		return a.mesh
	}
	return a.clients
}

// issuersOf are the authorities of that name that are trusted, the oldest first, and
// the index of the one that signs for nodes.
func (a *Authority) issuersOf(name string, now time.Time) (trusted []*issuer, nodes int) {
	above := a.keys.of(name)
	all := []*issuer{a.first(name)}
	for _, g := range above {
		all = append(all, g.issuer)
	}
	for i, end := range ends(above) {
		if !good(end, now) {
			continue
		}
		trusted = append(trusted, all[i])
		if !good(withLead(above, i, end), now) {
			nodes++
		}
	}
	return trusted, nodes
}

func (a *Authority) pool(name string) *x509.CertPool {
	trusted, _ := a.issuersOf(name, time.Now())
	pool := x509.NewCertPool()
	for _, i := range trusted {
		pool.AddCert(i.cert)
	}
	return pool
}

func (a *Authority) pem(name string) (out []byte) {
	trusted, _ := a.issuersOf(name, time.Now())
	for _, i := range slices.Backward(trusted) {
		out = append(out, encodeCertificates(i.cert)...)
	}
	return out
}

// newest is the authority that signs for users, and nodes the one for nodes.
func (a *Authority) newest(name string, now time.Time) *issuer {
	trusted, _ := a.issuersOf(name, now)
	return trusted[len(trusted)-1]
}

func (a *Authority) forNodes(name string, now time.Time) *issuer {
	trusted, nodes := a.issuersOf(name, now)
	return trusted[min(nodes, len(trusted)-1)]
}

// operatorKey checks that a seed is that of one of the operator's signing keys.
func operatorKey(operator string, seed []byte) (nkeys.KeyPair, error) {
	claims, err := jwt.DecodeOperatorClaims(operator)
	if err != nil {
		return nil, fmt.Errorf("decoding the operator: %w", err)
	}
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, errors.New("its signing key is none")
	}
	if public, err := key.PublicKey(); err != nil || !claims.SigningKeys.Contains(public) {
		return nil, errors.New("its signing key is not one of the operator")
	}
	return key, nil
}

// operatorNow is the operator's JWT and the key that signs for it.
func (a *Authority) operatorNow() (string, nkeys.KeyPair, error) {
	g := a.KeyNewest(KeyOperator, "")
	if g.ID == "" {
		return a.operator, a.signing, nil
	}
	key, err1 := operatorKey(g.Public, g.secret)
	own, err2 := a.inRegion(g.Public)
	return own, key, errors.Join(err1, err2)
}

// NewOperatorKey makes a signing key for the operator whose JWT that is, by its
// identity: the new JWT, which has no other signing key but that and the one that is
// kept offline, and the seed. It is for the machine where those are.
func NewOperatorKey(operator string, offline Offline, now time.Time) (next string, seed []byte, err error) {
	claims, err := jwt.DecodeOperatorClaims(operator)
	if err != nil {
		return "", nil, fmt.Errorf("decoding the operator: %w", err)
	}
	root, err := newKeyPair(nkeys.FromSeed(offline.OperatorSeed))
	if err != nil {
		return "", nil, errors.New("making the operator's key: the operator's identity is no seed")
	}
	if root.public != claims.Subject {
		return "", nil, fmt.Errorf("making the operator's key: the identity is another operator's than %s", quote(claims.Subject))
	}
	spare, err := newKeyPair(nkeys.FromSeed(offline.SigningSeed))
	if err != nil {
		return "", nil, errors.New("making the operator's key: the second signing key is no seed")
	}
	key, err := newKeyPair(nkeys.CreateOperator())
	if err != nil {
		return "", nil, err
	}
	claims.SigningKeys = jwt.StringList{key.public, spare.public}
	// Of two, the later counts.
	if issued := time.Unix(claims.IssuedAt+1, 0); now.Before(issued) {
		now = issued
	}
	if next, err = encode(claims, root, now); err != nil {
		return "", nil, fmt.Errorf("making the operator's key: %w", err)
	}
	seed, err = key.Seed()
	return next, seed, err
}

// Succeeds returns nil if the operator's JWT next comes after the one that is known:
// it is vouched for by the same identity, and is newer. ErrSameOperator says that it
// is the same.
func Succeeds(next, known string) error {
	if next == known {
		return ErrSameOperator
	}
	n, err := jwt.DecodeOperatorClaims(next)
	if err != nil {
		return fmt.Errorf("reading the operator: %w", err)
	}
	k, err := jwt.DecodeOperatorClaims(known)
	if err != nil {
		return fmt.Errorf("reading the operator that is known: %w", err)
	}
	switch {
	case n.Subject != k.Subject || n.Issuer != n.Subject:
		return fmt.Errorf("taking a new operator: the identity %s has not signed it", quote(k.Subject))
	case n.IssuedAt <= k.IssuedAt:
		return errors.New("taking a new operator: it is no newer than the one that is known")
	case n.Name != k.Name || !n.StrictSigningKeyUsage:
		return errors.New("taking a new operator: it is another fleet's")
	}
	return nil
}

// ErrSameOperator says that there is nothing to take.
var ErrSameOperator = errors.New("it is the operator that is known")

// storedKey is a generation as an Authority is stored and sent.
type storedKey struct {
	KeyGeneration
	Secret []byte `json:"secret"`
}

func (k *keys) stored() map[string][]storedKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	all := map[string][]storedKey{}
	for name, above := range k.all {
		for _, g := range above {
			all[name] = append(all[name], storedKey{g, g.secret})
		}
	}
	return all
}

func restoreKeys(stored map[string][]storedKey) (*keys, error) {
	k := &keys{all: map[string][]KeyGeneration{}}
	for name, some := range stored {
		if err := CheckKeyName(name); err != nil {
			return nil, err
		}
		secrets := sealedKeys{}
		var above []KeyGeneration
		for _, s := range some {
			secrets[s.ID] = s.Secret
			above = append(above, s.KeyGeneration)
		}
		var err error
		if k.all[name], err = withSecrets(name, above, secrets); err != nil {
			return nil, err
		}
	}
	return k, nil
}
