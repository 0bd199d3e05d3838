package identity

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nkeys"
)

// A Directory is what the fleet agreed on: the accounts, roles, users, nodes and
// enrollment tokens after some event of the ledger. An event is the whole new
// record of its subject, or its removal:
//
//	account.<name>  user.<account>.<name>  role.<name>  node.<name>  token.<id>
//	export.<account>.<id>  import.<account>.<id>  adapter.<name>  region.<name>
//
// Records of other nouns are kept and given back by Marshal, and so are the
// fields that this version does not know, so that nothing is lost when a node
// runs an older version for a while.
//
// NewDirectory makes one. It is safe for concurrent use, and what its methods
// return belongs to the caller.
type Directory struct {
	mu        sync.RWMutex
	state     state
	passwords chan struct{} // holds one per password that is being verified
}

// maxPasswords is how many passwords are verified at once: each takes a
// processor and 19 MiB or more.
const maxPasswords = 2

// NewDirectory returns an empty Directory, before the first event.
func NewDirectory() *Directory {
	return &Directory{state: newState(), passwords: make(chan struct{}, maxPasswords)}
}

// Apply folds the event with that sequence number into d. Subject is without the
// ledger's prefix; empty data removes the record. An event that d already has is
// ignored, and so is an unknown noun. Sequence 0 is for the records that a fleet
// starts with, before any event.
//
// An error says that the event cannot be read; the records are then as before,
// but Seq and Version count the event, so that a follower goes on and a writer
// can replace it.
func (d *Directory) Apply(seq uint64, subject string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if seq < d.state.seq || seq == d.state.seq && seq > 0 {
		return nil
	}
	d.state.seq = seq
	if err := d.state.put(seq, subject, data); err != nil {
		return fmt.Errorf("applying event %d of %s: %w", seq, quote(subject), err)
	}
	return nil
}

// Seq is the sequence number of the last event that was applied; 0 if none was.
func (d *Directory) Seq() uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.state.seq
}

// Version is the sequence number of the last event of that subject, even if it
// was a removal; 0 if there was none. It is what a writer must expect.
func (d *Directory) Version(subject string) uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.state.records[subject].version
}

// Records returns the records of a noun that this package does not read, by what
// follows the noun in their subjects.
func (d *Directory) Records(noun string) map[string][]byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := map[string][]byte{}
	for subject, r := range d.state.records {
		if name, ok := strings.CutPrefix(subject, noun+"."); ok && len(r.data) > 0 {
			all[name] = slices.Clone(r.data)
		}
	}
	return all
}

// Account returns the account of that name.
func (d *Directory) Account(name string) (Account, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	a, ok := d.state.accounts[name]
	return a, ok
}

// Accounts returns all accounts, sorted by name.
func (d *Directory) Accounts() []Account {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.state.accounts)
}

// AccountByPublic returns the account with that public nkey. It looks at all of
// them.
func (d *Directory) AccountByPublic(public string) (Account, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, a := range d.state.accounts {
		if a.Public == public {
			return a, true
		}
	}
	return Account{}, false
}

// User returns the user of that name in that account.
func (d *Directory) User(account, name string) (User, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	u, ok := d.state.users[account+"/"+name]
	return u.clone(), ok
}

// Users returns the users of an account, sorted by name.
func (d *Directory) Users(account string) []User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.state.named(d.state.members[account])
}

// NumUsers counts the users of an account.
func (d *Directory) NumUsers(account string) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.state.members[account])
}

// UserByKey returns the user of an account that a creds file with that public key was
// made for.
func (d *Directory) UserByKey(account, public string) (User, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	u, ok := d.state.users[d.state.keys[account+"/"+public]]
	return u.clone(), ok
}

// SiteUsers returns the users that are the links of sites, sorted by account and name.
func (d *Directory) SiteUsers() []User {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.state.named(d.state.sites)
}

// named are the users of those full names, sorted.
func (s *state) named(names map[string]struct{}) []User {
	users := make([]User, 0, len(names))
	for full := range names {
		users = append(users, s.users[full].clone())
	}
	slices.SortFunc(users, func(a, b User) int { return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Name, b.Name)) })
	return users
}

// Role returns the role of that name. A role that the fleet defined goes before
// the built-in one.
func (d *Directory) Role(name string) (Role, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.state.role(name)
}

// Roles returns all roles, the built-in ones too, sorted by name.
func (d *Directory) Roles() []Role {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := map[string]Role{}
	for _, r := range BuiltinRoles() {
		all[r.Name] = r
	}
	for name, r := range d.state.roles {
		all[name] = r.clone()
	}
	for name, r := range all {
		all[name] = d.state.regional(r)
	}
	return sorted(all)
}

// Node returns the node of that name, even if it has been removed.
func (d *Directory) Node(name string) (Node, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, ok := d.state.nodes[name]
	return n, ok
}

// Nodes returns the members of the cluster, sorted by name.
func (d *Directory) Nodes() []Node {
	return slices.DeleteFunc(d.AllNodes(), func(n Node) bool { return n.Removed })
}

// AllNodes is Nodes with those that have been removed.
func (d *Directory) AllNodes() []Node {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.state.nodes)
}

// Token returns the enrollment token of that ID.
func (d *Directory) Token(id string) (Token, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	t, ok := d.state.tokens[id]
	return t, ok
}

// Tokens returns all enrollment tokens, sorted by ID.
func (d *Directory) Tokens() []Token {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.state.tokens)
}

// sorted returns the values of m in the order of their keys.
func sorted[T any](m map[string]T) []T {
	values := make([]T, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		values = append(values, m[key])
	}
	return values
}

// Revocations returns the keys of creds files that are void in an account, and
// the time up to which what was issued to them is: those of denied users since
// their denial, and those of removed users for good. Keys that have expired are
// left out, and what is no key. It is what Authority.AccountJWT takes.
func (d *Directory) Revocations(account string) map[string]time.Time {
	now := time.Now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	revoked := map[string]time.Time{}
	revoke := func(public string, expires, until time.Time) {
		if !expired(expires, now) && nkeys.IsValidPublicUserKey(public) {
			revoked[public] = until
		}
	}
	for public, w := range d.state.withdrawn {
		if w.Account == account {
			revoke(public, w.Expires, forever())
		}
	}
	for full := range d.state.denied {
		u := d.state.users[full]
		if u.Account != account {
			continue
		}
		until := u.DeniedAt
		if until.IsZero() {
			until = forever()
		}
		for _, k := range u.Keys {
			revoke(k.Public, k.Expires, until)
		}
	}
	return revoked
}

// Issued is the time of issue for the token of an account after the last event:
// a second later with each event, so that the newest state always wins, and the
// same on every node.
func (d *Directory) Issued(account Account) time.Time {
	return time.Unix(account.Created.Unix()+1+int64(d.Seq()), 0)
}

// expired reports whether what ends at t, or never if t is zero, has ended.
func expired(t, now time.Time) bool { return !t.IsZero() && t.Before(now) }

// forever is a time after everything that is issued.
func forever() time.Time { return time.Date(9999, time.December, 31, 0, 0, 0, 0, time.UTC) }

// snapshot is a Directory as Marshal writes it, in the order of subjects.
type snapshot struct {
	Seq       uint64           `json:"seq"`
	Records   []snapshotRecord `json:"records"`
	Withdrawn []withdrawnKey   `json:"withdrawn,omitempty"`
}

type snapshotRecord struct {
	Subject string          `json:"subject"`
	Version uint64          `json:"version"`
	Data    json.RawMessage `json:"data,omitempty"` // nothing if it was removed
}

// withdrawnKey is the key of a creds file whose user was removed. The engine
// would still take it if nothing remembered it.
type withdrawnKey struct {
	Account string    `json:"account"`
	Public  string    `json:"public"`
	Expires time.Time `json:"expires,omitzero"`
}

// Marshal returns d as JSON. Two Directories with the same events give the same
// bytes.
func (d *Directory) Marshal() ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := snapshot{Seq: d.state.seq, Records: []snapshotRecord{}}
	for _, subject := range slices.Sorted(maps.Keys(d.state.records)) {
		r := d.state.records[subject]
		s.Records = append(s.Records, snapshotRecord{Subject: subject, Version: r.version, Data: r.data})
	}
	for _, public := range slices.Sorted(maps.Keys(d.state.withdrawn)) {
		s.Withdrawn = append(s.Withdrawn, d.state.withdrawn[public])
	}
	return json.Marshal(s)
}

// Unmarshal replaces the content of d by what Marshal returned. After an error d
// is as before.
func (d *Directory) Unmarshal(data []byte) error {
	var s snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("decoding a directory: %w", err)
	}
	next := newState()
	next.seq = s.Seq
	for _, r := range s.Records {
		if err := next.put(r.Version, r.Subject, r.Data); err != nil {
			return fmt.Errorf("decoding record %s of a directory: %w", quote(r.Subject), err)
		}
	}
	for _, w := range s.Withdrawn {
		next.withdrawn[w.Public] = w
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = next
	return nil
}

// state is the content of a Directory.
type state struct {
	seq uint64
	// records are the events by subject, those of unknown nouns too.
	records map[string]record
	// What follows is decoded from records.
	accounts map[string]Account
	roles    map[string]Role
	users    map[string]User // by full name
	nodes    map[string]Node
	tokens   map[string]Token
	exports  map[string]Export // by account.id
	imports  map[string]Import // by account.id
	adapters map[string]Adapter
	regions  map[string]Region
	// flowing is worked out from them when it is wanted. Nil: not yet.
	flowing flowing
	// holders are the full names of the users that a certificate is registered
	// for, by its KeyHash; members those of the users of each account.
	holders, members map[string]map[string]struct{}
	// denied and sites are the full names of those users, and keys those of the users
	// who have a creds file or a certificate, by account/public key or its KeyHash.
	denied, sites map[string]struct{}
	keys          map[string]string
	// withdrawn are keys of removed users, by the public key. They are history:
	// records alone do not tell them.
	withdrawn map[string]withdrawnKey
}

type record struct {
	version uint64
	data    []byte // empty if it was removed
}

func newState() state {
	return state{
		records:   map[string]record{},
		accounts:  map[string]Account{},
		roles:     map[string]Role{},
		users:     map[string]User{},
		nodes:     map[string]Node{},
		tokens:    map[string]Token{},
		exports:   map[string]Export{},
		imports:   map[string]Import{},
		adapters:  map[string]Adapter{},
		regions:   map[string]Region{},
		holders:   map[string]map[string]struct{}{},
		members:   map[string]map[string]struct{}{},
		denied:    map[string]struct{}{},
		sites:     map[string]struct{}{},
		keys:      map[string]string{},
		withdrawn: map[string]withdrawnKey{},
	}
}

// role finds what the fleet defined before what is built in.
func (s *state) role(name string) (Role, bool) {
	if r, ok := s.roles[name]; ok {
		return s.regional(r.clone()), true
	}
	for _, r := range BuiltinRoles() {
		if r.Name == name {
			return s.regional(r), true
		}
	}
	return Role{}, false
}

// put makes data the record of subject. After an error only the version of the
// record is new, and not even that if there can be no record of that name.
func (s *state) put(version uint64, subject string, data []byte) error {
	noun, name, _ := strings.Cut(subject, ".")
	switch noun {
	case "account", "role", "node", "token", "adapter", "region":
		if err := CheckName(name); err != nil {
			return err
		}
	case "user", "export", "import":
		if _, _, err := SplitName(strings.Replace(name, ".", "/", 1)); err != nil {
			return err
		}
	default:
		if CheckSubject(subject) != nil || len(data) > 0 && !json.Valid(data) {
			return nil // no event that a snapshot could hold
		}
	}
	switch noun {
	case "account", "export", "import", "adapter":
		s.flowing = nil
	}
	r := record{version: version, data: slices.Clone(data)}
	err := s.fold(noun, name, data)
	if err != nil {
		r.data = s.records[subject].data
	}
	s.records[subject] = r
	return err
}

func (s *state) fold(noun, name string, data []byte) error {
	switch noun {
	case "account":
		return set(s.accounts, name, data, func(a *Account) { a.Name = name })
	case "role":
		return set(s.roles, name, data, func(r *Role) { r.Name, r.Builtin = name, false })
	case "node":
		return set(s.nodes, name, data, func(n *Node) { n.Name = name })
	case "token":
		return set(s.tokens, name, data, func(t *Token) { t.ID = name })
	case "export":
		return set(s.exports, name, data, func(e *Export) { e.Account, e.ID, _ = strings.Cut(name, ".") })
	case "import":
		return set(s.imports, name, data, func(i *Import) { i.Account, i.ID, _ = strings.Cut(name, ".") })
	case "adapter":
		return set(s.adapters, name, data, func(a *Adapter) { a.Name = name })
	case "region":
		return set(s.regions, name, data, func(r *Region) { r.Name = name })
	case "user":
		account, user, _ := strings.Cut(name, ".")
		return s.foldUser(account, user, data)
	}
	return nil
}

// foldUser also keeps what follows from a user: which certificates lead to it,
// and which keys must not any more.
func (s *state) foldUser(account, name string, data []byte) error {
	after, err := decode[User](data)
	if err != nil {
		return err
	}
	full := account + "/" + name
	before := s.users[full]
	for _, c := range before.Certificates {
		drop(s.holders, c.SHA256, full)
	}
	for _, k := range before.keyNames() {
		if key := account + "/" + k; s.keys[key] == full {
			delete(s.keys, key)
		}
	}
	delete(s.denied, full)
	delete(s.sites, full)
	withdraw := func(keys []UserKey) {
		for _, k := range keys {
			s.withdrawn[k.Public] = withdrawnKey{Account: account, Public: k.Public, Expires: k.Expires}
		}
	}
	if after == nil || after.Removed || !after.Created.Equal(before.Created) {
		withdraw(before.Keys)
	}
	if after == nil || after.Removed {
		delete(s.users, full)
		drop(s.members, account, full)
		if after != nil {
			withdraw(after.Keys)
		}
		return nil
	}
	after.Account, after.Name = account, name
	s.users[full] = *after
	include(s.members, account, full)
	if after.Denied {
		s.denied[full] = struct{}{}
	}
	if after.Site != nil {
		s.sites[full] = struct{}{}
	}
	for _, k := range after.Keys {
		delete(s.withdrawn, k.Public)
	}
	for _, k := range after.keyNames() {
		s.keys[account+"/"+k] = full
	}
	for _, c := range after.Certificates {
		if c.Registered {
			include(s.holders, c.SHA256, full)
		}
	}
	return nil
}

// include puts name into the set of key, and drop takes it out.
func include(sets map[string]map[string]struct{}, key, name string) {
	if sets[key] == nil {
		sets[key] = map[string]struct{}{}
	}
	sets[key][name] = struct{}{}
}

func drop(sets map[string]map[string]struct{}, key, name string) {
	delete(sets[key], name)
	if len(sets[key]) == 0 {
		delete(sets, key)
	}
}

// set decodes data into m, or removes name if there is none. The subject says
// what a record is called, whatever the data says.
func set[T any](m map[string]T, name string, data []byte, rename func(*T)) error {
	v, err := decode[T](data)
	switch {
	case err != nil:
		return err
	case v == nil:
		delete(m, name)
	default:
		rename(v)
		m[name] = *v
	}
	return nil
}

// decode returns the record in data; nil if there is no data.
func decode[T any](data []byte) (*T, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var v *T
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("decoding its data: %w", err)
	}
	if v == nil {
		return nil, errors.New("its data is null")
	}
	return v, nil
}
