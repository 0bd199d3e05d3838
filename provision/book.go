package provision

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// Waiting is a request that waits for a person.
	Waiting State = "waiting"
	// Approved is a request that is to have an identity, and does not have it yet.
	Approved State = "approved"
)

const (
	// maxWaiting bounds the requests that wait for a person, in all and from one
	// address.
	maxWaiting, maxWaitingEach = 5000, 100
	// keptWaiting is how long a request waits for a person, and kept how long one that
	// is settled is remembered.
	keptWaiting, kept = 7 * 24 * time.Hour, 2 * time.Hour
)

// A Request is what provisioners remember of a machine's request.
type Request struct {
	// ID of the request; see Code.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Address that the machine asked from, and Facts what it said of itself.
	Address string            `json:"address"`
	Facts   map[string]string `json:"facts,omitempty"`
	// Proof is what it proved, in words, and Rule the one that was followed.
	Proof string `json:"proof"`
	Rule  string `json:"rule,omitempty"`
	// State is Waiting, Approved, Granted or Denied. Account and Role are what it is to
	// have, Reason why it is not to, and By who decided.
	State   State     `json:"state"`
	Account string    `json:"account,omitempty"`
	Role    string    `json:"role,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by,omitempty"`
	Asked   time.Time `json:"asked"`
	Decided time.Time `json:"decided,omitzero"`
}

// use is one use of a token, or of a claim, by a request.
type use struct {
	Request string    `json:"request"`
	Expires time.Time `json:"expires"`
}

// uses are those of a token, by slot, and the slot of each request.
type uses struct {
	slots map[int]use
	of    map[string]int
}

// A Book is what all provisioners of an account agree on: tokens and what became of
// them, and requests. Open one with OpenBook. It is safe for concurrent use.
type Book struct {
	ledger   *ledger.Ledger
	js       jetstream.JetStream
	follower *ledger.Follower
	stop     context.CancelFunc
	done     chan struct{}

	mu       sync.Mutex
	seq      uint64
	versions map[string]uint64
	tokens   map[string]Token
	uses     map[string]*uses // by token
	claims   map[string]use
	requests map[string]Request
	waiting  map[string]int // by address
	waits    int
}

// OpenBook opens the book over nc, the connection of a provisioner, and returns when
// it is read to its end. It is made if there is none. Close it.
func OpenBook(ctx context.Context, nc *nats.Conn, replicas int) (*Book, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("opening the book of provisioning: %w", err)
	}
	l, err := ledger.Open(ctx, js, ledger.Options{
		Stream: identity.ProvisionStream, Prefix: identity.ProvisionLedger, History: 1, Replicas: replicas, OrOne: true, Attempt: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the book of provisioning: %w", err)
	}
	b := &Book{
		ledger: l, js: js, done: make(chan struct{}), versions: map[string]uint64{}, tokens: map[string]Token{},
		uses: map[string]*uses{}, claims: map[string]use{}, requests: map[string]Request{}, waiting: map[string]int{},
	}
	if b.follower, err = ledger.NewFollower(b, ledger.FollowOptions{}); err != nil {
		return nil, fmt.Errorf("opening the book of provisioning: %w", err)
	}
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	go func() {
		defer close(b.done)
		_ = b.follower.Run(following, l) // it ends with the connection
	}()
	if err := b.sync(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close ends following.
func (b *Book) Close() {
	b.stop()
	<-b.done
}

// sync returns when everything is read that was in the book when it was called.
func (b *Book) sync(ctx context.Context) error {
	stream, err := b.js.Stream(ctx, identity.ProvisionStream)
	if err == nil {
		err = b.follower.Wait(ctx, stream.CachedInfo().State.LastSeq)
	}
	if err != nil {
		return fmt.Errorf("reading the book of provisioning: %w", err)
	}
	return nil
}

// Apply implements ledger.State.
func (b *Book) Apply(seq uint64, subject string, data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seq = seq
	b.versions[subject] = seq
	if len(data) == 0 {
		delete(b.versions, subject) // what is gone is not remembered: see append
	}
	words := strings.Split(subject, ".")
	switch noun := words[0]; {
	case noun == "token" && len(words) == 2:
		return put(b.tokens, words[1], data)
	case noun == "use" && len(words) == 3:
		slot, err := strconv.Atoi(words[2])
		if err != nil {
			return fmt.Errorf("reading a use: %w", err)
		}
		u := b.uses[words[1]]
		if u == nil {
			u = &uses{map[int]use{}, map[string]int{}}
			b.uses[words[1]] = u
		}
		delete(u.of, u.slots[slot].Request)
		err = put(u.slots, slot, data)
		if taken, ok := u.slots[slot]; ok {
			u.of[taken.Request] = slot
		}
		if len(u.slots) == 0 {
			delete(b.uses, words[1])
		}
		return err
	case noun == "claim" && len(words) == 2:
		return put(b.claims, words[1], data)
	case noun == "request" && len(words) == 2:
		b.count(b.requests[words[1]], -1)
		err := put(b.requests, words[1], data)
		b.count(b.requests[words[1]], 1)
		return err
	}
	return nil
}

// count counts a request that waits; mu is held.
func (b *Book) count(r Request, n int) {
	if r.State != Waiting {
		return
	}
	b.waits += n
	if b.waiting[r.Address] += n; b.waiting[r.Address] == 0 {
		delete(b.waiting, r.Address)
	}
}

func put[K comparable, V any](into map[K]V, key K, data []byte) error {
	delete(into, key)
	if len(data) == 0 {
		return nil
	}
	var v V
	if err := json.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("reading a record: %w", err)
	}
	into[key] = v
	return nil
}

// Seq implements ledger.State.
func (b *Book) Seq() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seq
}

// Marshal and Unmarshal implement ledger.State; there is no snapshot.
func (b *Book) Marshal() ([]byte, error) { return nil, errors.ErrUnsupported }

// Unmarshal is not called.
func (b *Book) Unmarshal([]byte) error { return errors.ErrUnsupported }

// locked is what f says with mu held.
func locked[T any](b *Book, f func() T) T {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f()
}

// append writes a record if its version is still that, and returns when it is here.
func (b *Book) append(ctx context.Context, subject string, version uint64, record any) error {
	var data []byte
	if record != nil {
		var err error
		if data, err = json.Marshal(record); err != nil {
			return fmt.Errorf("encoding %q: %w", subject, err)
		}
	}
	seq, err := b.ledger.Append(ctx, subject, version, data)
	if version == 0 && errors.Is(err, ledger.ErrConflict) {
		// Perhaps there was a record, which is gone.
		if last, ok := b.removed(ctx, subject); ok {
			seq, err = b.ledger.Append(ctx, subject, last, data)
		}
	}
	if err != nil {
		return fmt.Errorf("writing into the book of provisioning: %w", err)
	}
	return b.follower.Wait(ctx, seq)
}

// removed is the event by which a record was removed, if it was.
func (b *Book) removed(ctx context.Context, subject string) (uint64, bool) {
	stream, err := b.js.Stream(ctx, identity.ProvisionStream)
	if err != nil {
		return 0, false
	}
	msg, err := stream.GetLastMsgForSubject(ctx, identity.ProvisionLedger+"."+subject)
	if err != nil || len(msg.Data) > 0 {
		return 0, false
	}
	return msg.Sequence, true
}

// change writes the record that build makes of the newest state; nil for none.
// build is called again when somebody was faster; its error ends it.
func (b *Book) change(ctx context.Context, subject string, build func() (any, error)) error {
	for {
		version := locked(b, func() uint64 { return b.versions[subject] })
		record, err := build()
		if err != nil {
			return err
		}
		err = b.append(ctx, subject, version, record)
		if !errors.Is(err, ledger.ErrConflict) {
			return err
		}
		if err := b.sync(ctx); err != nil {
			return err
		}
	}
}

// AddToken writes a token.
func (b *Book) AddToken(ctx context.Context, t Token) error {
	return b.append(ctx, "token."+t.ID, 0, t)
}

// ErrNotFound is what is not in the book.
var ErrNotFound = errors.New("it is not there")

// RevokeToken makes a token good for nothing from now on.
func (b *Book) RevokeToken(ctx context.Context, id string) error {
	return b.change(ctx, "token."+id, func() (any, error) {
		t, ok := b.token(id)
		if !ok {
			return nil, fmt.Errorf("revoking token %q: %w", id, ErrNotFound)
		}
		t.Revoked = true
		return t, nil
	})
}

// TokenInfo is a token and how often it has been used.
type TokenInfo struct {
	Token
	Used int `json:"used"`
}

// Tokens are all, the oldest first.
func (b *Book) Tokens() []TokenInfo {
	all := locked(b, func() (all []TokenInfo) {
		for _, t := range b.tokens {
			used := 0
			if u := b.uses[t.ID]; u != nil {
				used = len(u.slots)
			}
			all = append(all, TokenInfo{t, used})
		}
		return all
	})
	slices.SortFunc(all, func(a, b TokenInfo) int { return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID)) })
	return all
}

func (b *Book) token(id string) (t Token, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok = b.tokens[id]
	return t, ok
}

// What slot says that is no slot.
const (
	slotMine = -1
	slotNone = -2
)

// slot is one that is free, of most; others look for one at the same time.
func (u *uses) slot(request string, most int) int {
	if u == nil {
		return rand.IntN(most)
	}
	if _, mine := u.of[request]; mine {
		return slotMine
	}
	if len(u.slots) >= most {
		return slotNone
	}
	for slot, i := rand.IntN(most), 0; i < most; slot, i = (slot+1)%most, i+1 {
		if _, taken := u.slots[slot]; !taken {
			return slot
		}
	}
	return slotNone
}

// spend takes a use of the token for a request, which may have it already.
func (b *Book) spend(ctx context.Context, t Token, request string) error {
	for {
		slot := locked(b, func() int { return b.uses[t.ID].slot(request, t.Uses) })
		switch slot {
		case slotMine:
			return nil
		case slotNone:
			return errTokenUsed
		}
		subject := fmt.Sprintf("use.%s.%d", t.ID, slot)
		version := locked(b, func() uint64 { return b.versions[subject] })
		err := b.append(ctx, subject, version, use{Request: request, Expires: t.Expires})
		if !errors.Is(err, ledger.ErrConflict) {
			return err
		}
		if err := b.sync(ctx); err != nil {
			return err
		}
	}
}

// release gives a use back that came to nothing.
func (b *Book) release(ctx context.Context, token, request string) error {
	slot, ok := locked2(b, func() (int, bool) {
		u := b.uses[token]
		if u == nil {
			return 0, false
		}
		slot, ok := u.of[request]
		return slot, ok
	})
	if !ok {
		return nil
	}
	subject := fmt.Sprintf("use.%s.%d", token, slot)
	return b.append(ctx, subject, locked(b, func() uint64 { return b.versions[subject] }), nil)
}

// spendClaim has a claim be a request's.
func (b *Book) spendClaim(ctx context.Context, c claim, request string) error {
	return b.change(ctx, "claim."+c.ID, func() (any, error) {
		if u, used := locked2(b, func() (use, bool) { u, ok := b.claims[c.ID]; return u, ok }); used && u.Request != request {
			return nil, errClaimUsed
		}
		return use{Request: request, Expires: c.Expires.Add(2 * clockSkew)}, nil
	})
}

func locked2[A, B any](b *Book, f func() (A, B)) (A, B) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f()
}

// Requests are all that are remembered, the oldest first.
func (b *Book) Requests() []Request {
	all := locked(b, func() []Request { return slices.Collect(maps.Values(b.requests)) })
	slices.SortFunc(all, func(a, b Request) int { return cmp.Or(a.Asked.Compare(b.Asked), strings.Compare(a.ID, b.ID)) })
	return all
}

func (b *Book) request(id string) (Request, bool) {
	return locked2(b, func() (Request, bool) { r, ok := b.requests[id]; return r, ok })
}

// ErrSettled is what is decided already.
var ErrSettled = errors.New("it is decided already")

// Decide lets a request that waits have an identity, or denies it: edit sets what
// becomes of it, and may be called again. The error wraps ErrNotFound, ErrSettled or
// edit's.
func (b *Book) Decide(ctx context.Context, id string, edit func(*Request) error) (Request, error) {
	var decided Request
	err := b.change(ctx, "request."+id, func() (any, error) {
		r, ok := b.request(id)
		if !ok {
			return nil, fmt.Errorf("deciding on request %s: %w", Code(id), ErrNotFound)
		}
		if r.State != Waiting {
			return nil, fmt.Errorf("deciding on request %s: %w: it is %s", Code(id), ErrSettled, r.State)
		}
		if err := edit(&r); err != nil {
			return nil, err
		}
		r.Decided = time.Now()
		decided = r
		return r, nil
	})
	return decided, err
}

// errQueue is why a request cannot even wait.
var errQueue = errors.New("too many requests wait for a person")

// enter writes a new request. If somebody was faster, his is returned.
func (b *Book) enter(ctx context.Context, r Request) (Request, error) {
	full := locked(b, func() bool {
		return r.State == Waiting && (b.waits >= maxWaiting || b.waiting[r.Address] >= maxWaitingEach)
	})
	if full {
		return r, errQueue
	}
	subject := "request." + r.ID
	err := b.append(ctx, subject, locked(b, func() uint64 { return b.versions[subject] }), r)
	if !errors.Is(err, ledger.ErrConflict) {
		return r, err
	}
	if err := b.sync(ctx); err != nil {
		return r, err
	}
	if known, ok := b.request(r.ID); ok {
		return known, nil
	}
	return r, errors.New("writing a request: it was removed at once")
}

// settle notes what became of a request.
func (b *Book) settle(ctx context.Context, r Request) error {
	return b.change(ctx, "request."+r.ID, func() (any, error) { return r, nil })
}

// sweep removes what is of no use any more.
func (b *Book) sweep(ctx context.Context, now time.Time) error {
	old := map[string]uint64{}
	b.mu.Lock()
	add := func(subject string) { old[subject] = b.versions[subject] }
	for id, r := range b.requests {
		if r.State == Waiting && now.Sub(r.Asked) > keptWaiting || r.State != Waiting && now.Sub(cmp.Or(r.Decided, r.Asked)) > kept {
			add("request." + id)
		}
	}
	for id, t := range b.tokens {
		if now.Sub(t.Expires) > kept {
			add("token." + id)
		}
	}
	for id, uses := range b.uses {
		for slot, u := range uses.slots {
			if now.Sub(u.Expires) > kept {
				add(fmt.Sprintf("use.%s.%d", id, slot))
			}
		}
	}
	for id, u := range b.claims {
		if now.Sub(u.Expires) > kept {
			add("claim." + id)
		}
	}
	b.mu.Unlock()
	var errs []error
	for subject, version := range old {
		if err := b.append(ctx, subject, version, nil); err != nil && !errors.Is(err, ledger.ErrConflict) {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}
