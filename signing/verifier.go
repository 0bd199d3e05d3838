package signing

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	defaultWindow   = 2 * time.Minute
	defaultAhead    = 5 * time.Second
	defaultRemember = 1 << 20
	// keyShare is the share of a memory that one key may have: the others are not refused
	// because of it.
	keyShare = 4
	// keyLife is how long a Directory believes what it was told of a key, and maxKeys of how
	// many keys it remembers something.
	keyLife, maxKeys = 10 * time.Second, 4096
)

// A Principal is who signed.
type Principal struct {
	// Name is the user's within the account.
	Name string `json:"name"`
	// Expires is when its key does. Zero: never.
	Expires time.Time `json:"expires,omitzero"`
}

// Keys tell whose a key is: a Directory, KeyList, or your own. The error wraps
// ErrUnknownKey if it is nobody's who may sign. It is called by several goroutines at
// once.
type Keys interface {
	Find(ctx context.Context, key string) (Principal, error)
}

// KeyList are keys that are known without asking: the name of the user of each.
type KeyList map[string]string

// Find finds key in the list.
func (l KeyList) Find(_ context.Context, key string) (Principal, error) {
	name, ok := l[key]
	if !ok {
		return Principal{}, ErrUnknownKey
	}
	return Principal{Name: name}, nil
}

// Options of a Verifier. The zero value is right for most.
type Options struct {
	// Window is how old a message may be. Default 2 m. Ahead is how far in the future it
	// may have been signed, by clocks that differ. Default 5 s.
	Window, Ahead time.Duration
	// Since is when a message must have been signed at the earliest. Zero: Ahead from
	// now, so that nothing is accepted that was accepted before a restart, or by another
	// verifier that this one takes over from. Who has no such past gives the time now.
	Since time.Time
	// Remember bounds the messages that are remembered, which takes about 100 bytes for
	// each; one key may have a quarter of it. Default 1 Mi. When it is full messages are
	// refused with ErrFull, and none is forgotten.
	Remember int
	// Stored is for messages that were kept before they are read: they may have any age,
	// and come again.
	Stored bool
}

// A Verifier tells who signed messages to an account, and accepts each once. NewVerifier
// makes one. It is safe for concurrent use, and remembers in memory alone.
type Verifier struct {
	audience string
	keys     Keys
	options  Options
	memory   *Memory
	now      func() time.Time
}

// NewVerifier makes a Verifier for the account with that public key.
func NewVerifier(audience string, keys Keys, o Options) *Verifier {
	o.Window, o.Ahead = cmp.Or(o.Window, defaultWindow), cmp.Or(o.Ahead, defaultAhead)
	if o.Since.IsZero() {
		o.Since = time.Now().Add(o.Ahead)
	}
	return &Verifier{audience: audience, keys: keys, options: o, memory: NewMemory(o.Remember, o.Window+o.Ahead), now: time.Now}
}

// Verify returns who signed msg. It accepts a message once, unless the options say
// otherwise; whatever error it returns, the message must not be acted on.
func (v *Verifier) Verify(ctx context.Context, msg *nats.Msg) (Principal, error) {
	text := ""
	switch values := msg.Header[Header]; {
	case len(values) > 1:
		return Principal{}, fmt.Errorf("%w: there are %d", ErrMalformed, len(values))
	case len(values) == 1:
		text = values[0]
	}
	return v.VerifyText(ctx, text, msg.Subject, msg.Data)
}

// VerifyText is Verify for a message that came over another protocol: text is what Header
// has, and subject is what was signed.
func (v *Verifier) VerifyText(ctx context.Context, text, subject string, body []byte) (Principal, error) {
	p, use, err := v.Check(ctx, text, subject, sha256.Sum256(body))
	if err != nil || v.options.Stored {
		return p, err
	}
	return p, v.memory.Use(use, v.now())
}

// Check is VerifyText for who knows the SHA-256 of the body and has a Memory of its own,
// which is to be asked last: a message that is refused does not use up its nonce.
func (v *Verifier) Check(ctx context.Context, text, subject string, sum [sha256.Size]byte) (Principal, Use, error) {
	sig, err := Parse(text)
	if err != nil {
		return Principal{}, Use{}, err
	}
	now := v.now()
	if !v.options.Stored {
		switch {
		case sig.Time.After(now.Add(v.options.Ahead)):
			return Principal{}, Use{}, fmt.Errorf("%w: by %s", ErrEarly, sig.Time.Sub(now).Round(time.Second))
		case sig.Time.Before(now.Add(-v.options.Window)):
			return Principal{}, Use{}, fmt.Errorf("%w: %s ago, and %s are allowed", ErrStale, now.Sub(sig.Time).Round(time.Second), v.options.Window)
		case sig.Time.Before(v.options.Since):
			return Principal{}, Use{}, fmt.Errorf("%w: before who verifies it was ready; sign it again", ErrStale)
		}
	}
	// Whose the key is costs less than to verify what anybody can make up.
	p, err := v.keys.Find(ctx, sig.Key)
	if err != nil {
		return Principal{}, Use{}, err
	}
	if !p.Expires.IsZero() && !now.Before(p.Expires) {
		return Principal{}, Use{}, fmt.Errorf("%w: it expired at %s", ErrUnknownKey, p.Expires.UTC().Format(time.RFC3339))
	}
	if err := sig.verify(v.audience, subject, sum); err != nil {
		return Principal{}, Use{}, err
	}
	return p, sig.use(), nil
}

// A Use is that of a nonce, of which there is one.
type Use struct {
	// ID is a digest of the key and the nonce.
	ID [16]byte
	// Key is a digest of the key.
	Key [8]byte
}

// use is that of s.
func (s Signature) use() (u Use) {
	sum := sha256.Sum256([]byte(s.Key + ";" + s.Nonce))
	copy(u.ID[:], sum[:])
	sum = sha256.Sum256([]byte(s.Key))
	copy(u.Key[:], sum[:])
	return u
}

// A Memory remembers which nonces were used, each at least as long as its messages could
// come again. It is safe for concurrent use.
type Memory struct {
	limit int
	life  time.Duration

	mu        sync.Mutex
	now, then generation
	began     time.Time
}

// generation is what was used during one life.
type generation struct {
	used map[[16]byte]struct{}
	keys map[[8]byte]int
}

func newGeneration() generation {
	return generation{map[[16]byte]struct{}{}, map[[8]byte]int{}}
}

// NewMemory makes a Memory of at most limit uses, of which each is remembered for one life
// to two. 0: 1 Mi.
func NewMemory(limit int, life time.Duration) *Memory {
	return &Memory{limit: cmp.Or(limit, defaultRemember), life: life, now: newGeneration(), then: newGeneration()}
}

// Use notes a use, or returns ErrReplayed or ErrFull.
func (m *Memory) Use(u Use, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if age := now.Sub(m.began); age >= m.life {
		m.then, m.now, m.began = m.now, newGeneration(), now
		if age >= 2*m.life {
			m.then = newGeneration()
		}
	}
	if _, used := m.now.used[u.ID]; used {
		return ErrReplayed
	}
	if _, used := m.then.used[u.ID]; used {
		return ErrReplayed
	}
	if len(m.now.used)+len(m.then.used) >= m.limit || m.now.keys[u.Key]+m.then.keys[u.Key] >= max(1, m.limit/keyShare) {
		return ErrFull
	}
	m.now.used[u.ID] = struct{}{}
	m.now.keys[u.Key]++
	return nil
}

// Len is how many uses are remembered.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.now.used) + len(m.then.used)
}

// A KeyAnswer is what a fleet tells of a key, on KeysSubject.
type KeyAnswer struct {
	Principal
	// Audience is the public key of the account that was asked in.
	Audience string `json:"audience"`
	// Unknown says that the key is of nobody who may sign.
	Unknown bool `json:"unknown,omitempty"`
}

// FetchKey asks the account of nc for a key. nats.ErrNoResponders says that signatures are
// off there, or that no node is ready.
func FetchKey(ctx context.Context, nc *nats.Conn, key string) (KeyAnswer, error) {
	var a KeyAnswer
	msg, err := nc.RequestWithContext(ctx, KeysSubject, []byte(key))
	if err != nil {
		return a, fmt.Errorf("asking for a key: %w", err)
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, fmt.Errorf("asking for a key: reading the answer: %w", err)
	}
	return a, nil
}

// FetchAudience asks the account of nc for its public key.
func FetchAudience(ctx context.Context, nc *nats.Conn) (string, error) {
	a, err := FetchKey(ctx, nc, "")
	return a.Audience, err
}

// A Directory asks the fleet whose keys are, and remembers it for ten seconds: so long may
// a user who is denied go on. NewDirectory makes one.
type Directory struct {
	nc *nats.Conn

	mu    sync.Mutex
	known map[string]knownKey
}

type knownKey struct {
	answer KeyAnswer
	until  time.Time
}

// NewDirectory makes a Directory of the account of nc.
func NewDirectory(nc *nats.Conn) *Directory { return &Directory{nc: nc, known: map[string]knownKey{}} }

// Find asks for key, unless it knows. While no node answers nobody is known.
func (d *Directory) Find(ctx context.Context, key string) (Principal, error) {
	now := time.Now()
	d.mu.Lock()
	k, ok := d.known[key]
	d.mu.Unlock()
	if !ok || now.After(k.until) {
		answer, err := FetchKey(ctx, d.nc, key)
		if err != nil {
			return Principal{}, err
		}
		k = knownKey{answer, now.Add(keyLife)}
		d.mu.Lock()
		if len(d.known) >= maxKeys {
			clear(d.known)
		}
		d.known[key] = k
		d.mu.Unlock()
	}
	if k.answer.Unknown {
		return Principal{}, ErrUnknownKey
	}
	return k.answer.Principal, nil
}
