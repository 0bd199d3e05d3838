// Package keys decides on the keys that a fleet shares: which there are, how one is
// changed, and whom the end of an old one cuts off. It opens no socket; the server
// asks it, and acts.
package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// RoleKey is the Name of an admin.Key that signs for a role.
const RoleKey = "role"

// ownKeep is how long "now" is for what the fleet's own administrators have: the
// answer, and new credentials, reach them by what the old key signed.
const ownKeep = 5 * time.Second

// A Ring has the keys of a fleet as one node knows them. Make it with Open. It is safe
// for concurrent use.
type Ring struct {
	authority *identity.Authority
	directory *identity.Directory
	server    string // as records of keys call the node
	own       []identity.Account
	region    string
	box       nkeys.KeyPair
	public    string

	mu sync.Mutex
	// unknown says why a key of the ledger is not known here, by its name.
	unknown map[string]error
}

// Open returns the ring of the node that the engine calls server, with its box from
// the file path, which write makes if it is missing. cluster is its own. own are the fleet's own
// accounts that can have users.
func Open(path string, write func(path string, data []byte, mode fs.FileMode) error, authority *identity.Authority, directory *identity.Directory, cluster, server string, own []identity.Account) (*Ring, error) {
	r := &Ring{authority: authority, directory: directory, server: authority.SealName(server), region: cluster, own: own, unknown: map[string]error{}}
	seed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if r.box, err = nkeys.CreateCurveKeys(); err != nil {
			return nil, fmt.Errorf("making the node's box: %w", err)
		}
		if seed, err = r.box.Seed(); err == nil {
			err = write(path, seed, 0o600)
		}
	} else if err == nil {
		r.box, err = nkeys.FromCurveSeed(seed)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the node's box %q: %w", path, err)
	}
	if r.public, err = r.box.PublicKey(); err != nil {
		return nil, fmt.Errorf("reading the node's box %q: %w", path, err)
	}
	return r, nil
}

// Box is the public key that secrets for this node are sealed to.
func (r *Ring) Box() string { return r.public }

// LearnAll takes what the directory says of all keys.
func (r *Ring) LearnAll() error {
	var errs []error
	for name := range r.directory.Records(identity.KeyNoun) {
		errs = append(errs, r.Learn(name))
	}
	return errors.Join(errs...)
}

// Learn takes what the directory says of one key.
func (r *Ring) Learn(name string) error {
	var record identity.KeyRecord
	var err error
	if data := r.directory.Records(identity.KeyNoun)[name]; data != nil {
		err = json.Unmarshal(data, &record)
	}
	if err == nil {
		err = r.authority.Learn(name, record, r.server, r.box)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.unknown, name); err != nil {
		r.unknown[name] = err
	}
	return err
}

// State tells apart what the keys are at one time and at another.
func (r *Ring) State(now time.Time) string {
	var out strings.Builder
	out.WriteString(r.authority.KeyState(now))
	for _, a := range r.directory.Accounts() {
		if a.Guest() {
			out.WriteString(a.TermsState(now))
		}
	}
	return out.String()
}

// accounts are all that have users, but for those of a hub.
func (r *Ring) accounts() []identity.Account {
	return slices.DeleteFunc(slices.Concat(r.own, r.directory.Accounts()), identity.Account.Guest)
}

func (r *Ring) account(name string) (identity.Account, bool) {
	for _, a := range slices.Concat(r.own, r.directory.Accounts()) {
		if a.Name == name {
			return a, true
		}
	}
	return identity.Account{}, false
}

// over reports whether a generation is good no more. One that is not known is long
// gone.
func over(ends map[string]time.Time, generation string, now time.Time) bool {
	end, ok := ends[generation]
	return !ok || !end.IsZero() && !now.Before(end)
}

// Void are, by the public key of their account, the public keys of creds files that a
// role's key signed which is good no more.
func (r *Ring) Void(now time.Time) map[string][]string {
	all := map[string][]string{}
	for _, a := range r.accounts() {
		for _, u := range r.directory.Users(a.Name) {
			ends := r.authority.KeyEnds(identity.RoleKeys(a), u.Role)
			for _, k := range u.Keys {
				if over(ends, k.Signer, now) {
					all[a.Public] = append(all[a.Public], k.Public)
				}
			}
		}
	}
	return all
}

// Uncertified are, by account, the users whose every certificate is of an authority
// that is good no more.
func (r *Ring) Uncertified(now time.Time) map[identity.Account]map[string]bool {
	ends := r.authority.KeyEnds(identity.KeyAuthority, "")
	all := map[identity.Account]map[string]bool{}
	for _, a := range slices.Concat(r.own, r.directory.Accounts()) {
		for _, u := range r.directory.Users(a.Name) {
			good := func(c identity.UserCertificate) bool { return c.Registered || !over(ends, c.Signer, now) }
			if len(u.Certificates) == 0 || slices.ContainsFunc(u.Certificates, good) {
				continue
			}
			if all[a] == nil {
				all[a] = map[string]bool{}
			}
			all[a][u.Name] = true
		}
	}
	return all
}

// Stale reports whether a key of a user was signed by another generation than the one
// that signs now.
func (r *Ring) Stale(u identity.User, key identity.UserKey) bool {
	a, ok := r.account(u.Account)
	return ok && key.Signer != r.authority.KeyNewest(identity.RoleKeys(a), u.Role).ID
}

// Name is the name of the record of the key that is to be changed.
func (r *Ring) Name(q admin.KeyRequest) (string, error) {
	switch q.Name {
	case identity.KeyOperator, identity.KeyAuthority, identity.KeyRoutes:
		return q.Name, nil
	case RoleKey:
	default:
		return "", admin.Errorf(admin.NotFound, "fleetbus key ls", "there is no key %q", q.Name)
	}
	a, ok := r.account(q.Account)
	if !ok {
		return "", admin.Errorf(admin.NotFound, "fleetbus account ls", "there is no account %q", q.Account)
	}
	if a.Guest() {
		return "", admin.Errorf(admin.Invalid, "change it at the hub", "account %q is a guest here: its keys are the hub's", q.Account)
	}
	if q.Role == "" {
		return identity.RoleKeys(a), nil
	}
	if role, ok := r.directory.Role(q.Role); !ok || !role.AllowedIn(q.Account) {
		return "", admin.Errorf(admin.NotFound, "fleetbus role ls", "there is no role %q in account %q", q.Role, q.Account)
	}
	return identity.RoleKeys(a), nil
}

// Next is the record of that name with the generation that q asks for.
func (r *Ring) Next(name string, q admin.KeyRequest, now time.Time) (identity.KeyRecord, error) {
	var none identity.KeyRecord
	keep := q.Keep
	if keep == 0 && q.Account == identity.FleetName {
		keep = ownKeep
	}
	if keep < 0 {
		return none, admin.Errorf(admin.Invalid, "--keep 24h, or --now", "the old key cannot have ended before")
	}
	boxes, err := r.boxes()
	if err != nil {
		return none, err
	}
	if newest := r.authority.KeyNewest(name, q.Role); newest.ID != q.Known {
		return none, admin.Errorf(admin.Conflict, "fleetbus key ls; and do it again, if it is to be changed once more",
			"somebody else has changed it at %s", newest.Made.UTC().Format(time.RFC3339))
	}
	if !r.learned(name, r.record(name)) {
		return none, admin.Errorf(admin.Conflict, "fleetbus key ls; and do it again, if it is to be changed once more", "somebody else changes it now")
	}
	r.mu.Lock()
	err = r.unknown[name]
	r.mu.Unlock()
	if err != nil {
		return none, admin.Errorf(admin.Conflict, "ask another node", "node %s does not know the key: %v", r.server, err)
	}
	if q.Name != identity.KeyOperator {
		return r.authority.NextKey(name, q.Role, now.Add(keep), boxes, now)
	}
	seed, err := q.Seed.Open(r.server, r.box)
	if err != nil || seed == nil {
		return none, admin.Errorf(admin.Conflict, "do it again", "the operator's new key is not sealed to node %s", r.server)
	}
	record, err := r.authority.NextOperator(q.Operator, seed, boxes, now)
	if err != nil {
		return none, admin.Errorf(admin.Invalid, "give the directory with the operator's offline keys: --offline DIR", "%v", err)
	}
	return record, nil
}

// Boxes are those of the nodes of this region, as Region.Boxes has them.
func (r *Ring) Boxes() map[string]string {
	all := map[string]string{}
	for _, n := range r.directory.Nodes() {
		all[r.authority.SealName(n.Server())] = n.Box
	}
	return all
}

// allBoxes are those of the nodes of all regions, as far as they are known; silent are
// the others.
func (r *Ring) allBoxes() (all map[string]string, silent []string) {
	all = map[string]string{}
	for _, region := range r.directory.Regions() {
		if region.Name == r.region {
			continue
		}
		if len(region.Boxes) == 0 {
			silent = append(silent, "of region "+region.Name)
		}
		maps.Copy(all, region.Boxes)
	}
	maps.Copy(all, r.Boxes())
	for name, box := range all {
		if box == "" {
			delete(all, name)
			silent = append(silent, name)
		}
	}
	slices.Sort(silent)
	return all, silent
}

// record is what the directory has of a key.
func (r *Ring) record(name string) (record identity.KeyRecord) {
	_ = json.Unmarshal(r.directory.Record(identity.KeyNoun+"."+name), &record) // Learn tells of one that cannot be read
	return record
}

// learned reports whether the authority has the generations that the directory has: it
// learns of them a moment later.
func (r *Ring) learned(name string, record identity.KeyRecord) bool {
	newest := ""
	if n := len(record.Generations); n > 0 {
		newest = record.Generations[n-1].ID
	}
	return r.authority.KeyNewest(name, "").ID == newest
}

// Unsealed are the keys that some nodes of this region could not read: they joined when
// whoever changed the key did not know of them.
func (r *Ring) Unsealed() (names []string) {
	for name := range r.directory.Records(identity.KeyNoun) {
		if _, ok, err := r.Reseal(name); ok || err != nil {
			names = append(names, name)
		}
	}
	return names
}

// Reseal is the record of a key sealed anew, to all nodes that are known; false if that
// is not needed, or another node has to do it.
func (r *Ring) Reseal(name string) (identity.KeyRecord, bool, error) {
	record := r.record(name)
	missing := false
	for node, box := range r.Boxes() {
		missing = missing || box != "" && record.Sealed.For[node] == nil
	}
	if !missing || len(record.Generations) == 0 || !r.learned(name, record) {
		return identity.KeyRecord{}, false, nil
	}
	boxes, _ := r.allBoxes()
	next, err := r.authority.Resealed(name, boxes)
	return next, err == nil, err
}

// boxes are those of all nodes. It is an error if one is not known.
func (r *Ring) boxes() (map[string]string, error) {
	all, silent := r.allBoxes()
	if len(silent) > 0 {
		return nil, admin.Errorf(admin.Conflict, "start it, or remove it: fleetbus node rm "+silent[0],
			"node %s has not said yet what secrets for it are sealed to, and would be without the new key", strings.Join(silent, ", "))
	}
	return all, nil
}

// Keys are all, as an administrator sees them; down are the nodes and regions that are.
func (r *Ring) Keys(now time.Time, down []string) admin.Keys {
	boxes, _ := r.allBoxes()
	return admin.Keys{Keys: r.List(now, down), Operator: r.authority.RootOperator(), Boxes: boxes}
}

// List are all keys: of those of roles, what somebody has and what was changed. down
// are the nodes and regions that are.
func (r *Ring) List(now time.Time, down []string) []admin.Key {
	begun := r.begun()
	all := []admin.Key{
		r.describe(admin.Key{Name: identity.KeyOperator, Signs: "terms of accounts at sites", Made: begun}, identity.KeyOperator, now,
			func(string, time.Time) []string { return nil }),
		r.describe(admin.Key{Name: identity.KeyAuthority, Signs: "certificates of listeners and users", Made: begun}, identity.KeyAuthority, now,
			func(generation string, end time.Time) []string {
				return slices.Concat(r.oldCertificates(generation, now), r.oldTokens(identity.KeyAuthority, now, end))
			}),
		r.describe(admin.Key{Name: identity.KeyRoutes, Signs: "certificates between nodes", Made: begun}, identity.KeyRoutes, now,
			func(_ string, end time.Time) []string {
				return append(slices.Clone(down), r.oldTokens(identity.KeyRoutes, now, end)...)
			}),
	}
	for _, a := range r.accounts() {
		users := r.directory.Users(a.Name)
		for _, role := range r.directory.Roles() {
			has := slices.ContainsFunc(users, func(u identity.User) bool { return u.Role == role.Name })
			if !role.AllowedIn(a.Name) || !has && r.authority.KeyNewest(identity.RoleKeys(a), role.Name).ID == "" {
				continue
			}
			k := admin.Key{Name: RoleKey, Account: a.Name, Role: role.Name, Signs: "credentials files", Made: a.Created}
			if k.Made.Before(begun) {
				k.Made = begun
			}
			all = append(all, r.describe(k, identity.RoleKeys(a), now,
				func(generation string, _ time.Time) []string { return oldCreds(users, role.Name, generation, now) }))
		}
	}
	return all
}

// begun is when the fleet was made.
func (r *Ring) begun() time.Time {
	nodes := r.directory.AllNodes()
	if len(nodes) == 0 {
		return time.Time{}
	}
	return slices.MinFunc(nodes, func(a, b identity.Node) int { return a.Joined.Compare(b.Joined) }).Joined
}

// describe completes k by its generations; cut are those whom the end of one cuts off.
func (r *Ring) describe(k admin.Key, name string, now time.Time, cut func(generation string, end time.Time) []string) admin.Key {
	newest := r.authority.KeyNewest(name, k.Role)
	if newest.ID != "" {
		k.Generation, k.Made = newest.ID, newest.Made
	}
	k.Old = []admin.OldKey{}
	ends := r.authority.KeyEnds(name, k.Role)
	for generation := range maps.Keys(ends) {
		if generation == newest.ID || over(ends, generation, now) {
			continue
		}
		old := admin.OldKey{Generation: generation, Until: ends[generation], Cut: cut(generation, ends[generation])}
		if old.Cut == nil {
			old.Cut = []string{}
		}
		k.Old = append(k.Old, old)
	}
	slices.SortFunc(k.Old, func(a, b admin.OldKey) int { return a.Until.Compare(b.Until) })
	return k
}

// oldCreds are the users of a role that have a key signed by that generation.
func oldCreds(users []identity.User, role, generation string, now time.Time) (all []string) {
	for _, u := range users {
		if u.Role == role && !u.Denied && slices.ContainsFunc(u.Keys, func(k identity.UserKey) bool {
			return k.Signer == generation && (k.Expires.IsZero() || now.Before(k.Expires))
		}) {
			all = append(all, u.String())
		}
	}
	return all
}

// oldCertificates are the users that have a certificate of that generation.
func (r *Ring) oldCertificates(generation string, now time.Time) (all []string) {
	for _, a := range slices.Concat(r.own, r.directory.Accounts()) {
		for _, u := range r.directory.Users(a.Name) {
			if !u.Denied && slices.ContainsFunc(u.Certificates, func(c identity.UserCertificate) bool {
				return !c.Registered && c.Signer == generation && now.Before(c.NotAfter)
			}) {
				all = append(all, u.String())
			}
		}
	}
	return all
}

// oldTokens are the open ones that know the authorities before the newest of that
// name, and outlive them.
func (r *Ring) oldTokens(name string, now, end time.Time) (all []string) {
	made := r.authority.KeyNewest(name, "").Made
	for _, t := range r.directory.Tokens() {
		if !t.Revoked && !t.Used && now.Before(t.Expires) && t.Created.Before(made) && t.Expires.After(end) {
			all = append(all, "token "+t.ID)
		}
	}
	return all
}
