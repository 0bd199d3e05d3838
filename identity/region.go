package identity

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// A region is one cluster of a fleet that has several, with an engine's group and a
// ledger of its own. All of them have the fleet's secrets, so that an account has the
// same keys everywhere; what a cluster has for itself, the engine's account and the
// fleet's, has keys of its own in each region but the first.

// RegionsName is the account in which the nodes of regions talk with one another. It
// is the same in all of them, and nobody else is in it.
const RegionsName = "REGIONS"

const regionsID = "regions"

// regionSegment takes the place of the account in the names of nodes in certificates
// for gateways.
const regionSegment = "region"

// A Region is what a region knows of another one, or of itself. It is a record of the
// ledger.
type Region struct {
	// Name of the region, and of its cluster.
	Name string `json:"name"`
	// Key is the public key that its secrets were sealed to. Empty for the first.
	Key string `json:"key,omitempty"`
	// Machine is the name of the host where it joined.
	Machine string `json:"machine,omitempty"`
	// Addrs are host:port of its gateways.
	Addrs []string `json:"addrs,omitempty"`
	// Boxes are the Box of each of its nodes, by Authority.SealName. An empty one has
	// not been said yet.
	Boxes map[string]string `json:"boxes,omitempty"`
	// Joined is when it became a region of the fleet.
	Joined time.Time `json:"joined,omitzero"`
	// Removed is true once it is none any more, RemovedAt since when.
	Removed   bool      `json:"removed,omitempty"`
	RemovedAt time.Time `json:"removed_at,omitzero"`
}

// CheckRegionName says what is wrong with name as that of a region.
func CheckRegionName(name string) error {
	if len(name) > 32 {
		return fmt.Errorf("name %s is longer than 32 bytes", quote(name))
	}
	return CheckName(name)
}

// MergeRegions is what is known of a region when two have different records of it:
// the later one, of one the removal, and the addresses of the first.
func MergeRegions(a, b Region) Region {
	if c := b.Joined.Compare(a.Joined); c != 0 {
		if c > 0 {
			return b
		}
		return a
	}
	if b.Removed && !a.Removed {
		a.Removed, a.RemovedAt = true, b.RemovedAt
	}
	return a
}

// InRegion is the authority as another region of the fleet has it: the same secrets,
// under another operator, who trusts the same signing keys and has an engine's
// account of the region's own.
func (a *Authority) InRegion(name string) (*Authority, error) {
	if err := CheckRegionName(name); err != nil {
		return nil, fmt.Errorf("making the authority of a region: %w", err)
	}
	first, err := jwt.DecodeOperatorClaims(a.operator)
	if err != nil {
		return nil, fmt.Errorf("making the authority of region %q: %w", name, err)
	}
	next := *a
	next.region, next.root = name, a.RootOperator()
	root, err1 := a.derive(nkeys.PrefixByteOperator, "operator/"+name)
	system, err2 := next.accountKey(next.own(systemID))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("making the authority of region %q: %w", name, err)
	}
	claims := jwt.NewOperatorClaims(root.public)
	claims.Name = a.fleet
	claims.SigningKeys = slices.Clone(first.SigningKeys)
	claims.StrictSigningKeyUsage = true
	claims.SystemAccount = system.public
	var errs [2]error
	next.operator, errs[0] = encode(claims, root, time.Unix(first.IssuedAt, 0))
	next.engine, errs[1] = newEngine(a.fleet, system.public)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("making the authority of region %q: %w", name, err)
	}
	return &next, nil
}

// SealName is what a record of a key calls a node of this region, by its
// Node.Server: nodes of two regions may have one name.
func (a *Authority) SealName(server string) string {
	if a.region == "" {
		return server
	}
	return a.region + "/" + server
}

// inRegion is the first region's operator as this region has it: with its signing keys,
// vouched for by the identity that the sites of this region know.
func (a *Authority) inRegion(operator string) (string, error) {
	if a.region == "" {
		return operator, nil
	}
	first, err := jwt.DecodeOperatorClaims(operator)
	if err != nil {
		return "", fmt.Errorf("decoding the operator: %w", err)
	}
	own, err := jwt.DecodeOperatorClaims(a.operator)
	if err != nil {
		return "", fmt.Errorf("decoding the operator of region %q: %w", a.region, err)
	}
	root, err := a.derive(nkeys.PrefixByteOperator, "operator/"+a.region)
	if err != nil {
		return "", err
	}
	own.SigningKeys = slices.Clone(first.SigningKeys)
	return encode(own, root, time.Unix(first.IssuedAt, 0))
}

// Region is the name of the region whose authority it is. Empty: the first one.
func (a *Authority) Region() string { return a.region }

// own is the ID of an account that every region has for itself.
func (a *Authority) own(id string) string {
	if a.region == "" {
		return id
	}
	return id + "-" + a.region
}

// RegionsAccount makes the record of the account in which regions talk.
func (a *Authority) RegionsAccount(now time.Time) (Account, error) {
	return a.newAccount(RegionsName, regionsID, Limits{}, now)
}

// SignGateway issues the certificate of a node's links with other regions, in both
// directions. It names spiffe://<fleet>/region/<region>/<node>. For the rest see
// SignNode.
func (a *Authority) SignGateway(csr *x509.CertificateRequest, region, node string, ttl time.Duration, now time.Time) ([]byte, error) {
	_, err := SplitServer(node)
	if err := errors.Join(err, CheckRegionName(region)); err != nil {
		return nil, fmt.Errorf("signing the gateway certificate of a node: %w", err)
	}
	cert, err := a.forNodes(KeyRoutes, now).sign(csr, &x509.Certificate{
		Subject:     pkix.Name{CommonName: node},
		URIs:        []*url.URL{a.name(regionSegment, region, node)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("signing the gateway certificate of node %q: %w", node, err)
	}
	return encodeCertificates(cert), nil
}

// RegionFromCertificate returns the region in a certificate of SignGateway for that
// fleet; false if it is not one. It verifies no signature.
func RegionFromCertificate(cert *x509.Certificate, fleet string) (region, node string, ok bool) {
	path, ok := spiffePath(cert, fleet)
	rest, ok2 := strings.CutPrefix(path, regionSegment+"/")
	region, node, ok3 := strings.Cut(rest, "/")
	_, err := SplitServer(node)
	if !ok || !ok2 || !ok3 || CheckRegionName(region) != nil || err != nil {
		return "", "", false
	}
	return region, node, true
}

// Regional reports whether each region has records of that noun and, for users, of
// that account for itself, and of keys those of the accounts that it has for itself. The
// others are the fleet's.
func Regional(subject string) bool {
	noun, name, _ := strings.Cut(subject, ".")
	switch noun {
	case "account", "role", "export", "import", certificatesNoun:
		return false
	case "user":
		account, _, _ := strings.Cut(name, ".")
		return isSpecialAccount(account)
	case KeyNoun:
		id, ok := strings.CutPrefix(name, "account.")
		return ok && !isRandomID(id)
	}
	return true
}

// isRandomID tells the ID of an account that somebody made from those of the accounts
// that each region has for itself, which are words.
func isRandomID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == accountIDDigits/2
}

// regional is a role where nodes have gateways: the engine's API has the name of the
// region there as well, and what is denied of it is denied by that name, too.
func (s *state) regional(r Role) Role {
	for _, n := range s.nodes {
		if n.GatewayAddr != "" && !n.Removed {
			for _, subject := range r.Permissions.Publish.Deny {
				if rest, ok := strings.CutPrefix(subject, "$JS.API."); ok {
					r.Permissions.Publish.Deny = append(r.Permissions.Publish.Deny, "$JS.*.API."+rest)
				}
			}
			break
		}
	}
	return r
}

// certificatesNoun is that of the records which say where the certificates of an
// account are managed.
const certificatesNoun = "certificates"

// A Change is the newest record of a subject in the ledger of one region.
type Change struct {
	Subject string `json:"subject"`
	// Version is that region's.
	Version uint64 `json:"version"`
	// Data is nothing if it was removed.
	Data json.RawMessage `json:"data,omitempty"`
}

// Before orders changes: by version, and of one version, which those have that a
// region began with, by subject.
func (c Change) Before(other Change) bool {
	return cmp.Or(cmp.Compare(c.Version, other.Version), cmp.Compare(c.Subject, other.Subject)) < 0
}

// Changes returns those of the fleet's records that come after one, oldest first, and
// at most so many bytes of them but always one. The zero Change comes before all.
func (d *Directory) Changes(after Change, most int) []Change {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var all []Change
	for subject, r := range d.state.records {
		c := Change{Subject: subject, Version: r.version, Data: r.data}
		if !Regional(subject) && after.Before(c) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Version, b.Version), cmp.Compare(a.Subject, b.Subject))
	})
	size := 0
	for i, c := range all {
		if size += len(c.Subject) + len(c.Data); i > 0 && size > most {
			return all[:i]
		}
	}
	return all
}

// Record is the newest record of a subject; nothing if there is none.
func (d *Directory) Record(subject string) json.RawMessage {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.state.records[subject].data)
}

// Regions returns the regions of the fleet, sorted by name; none if it has one
// cluster.
func (d *Directory) Regions() []Region {
	return slices.DeleteFunc(d.AllRegions(), func(r Region) bool { return r.Removed })
}

// AllRegions is Regions with those that have been removed.
func (d *Directory) AllRegions() []Region {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sorted(d.state.regions)
}

// Region returns the region of that name, even if it has been removed.
func (d *Directory) Region(name string) (Region, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	r, ok := d.state.regions[name]
	return r, ok
}

// HomeRegion is the name of the region that alone changes what is not a user: the
// oldest of them. Empty: there are no regions.
func (d *Directory) HomeRegion() string {
	home := Region{}
	for _, r := range d.Regions() {
		if c := r.Joined.Compare(home.Joined); home.Name == "" || c < 0 {
			home = r
		}
	}
	return home.Name
}

// Merge says what the record of a subject has to be here, where it is mine, when
// another region has theirs; home says whether that region is the one which alone
// changes what is not a user. Regions that merge what the other has come to the same
// record, in whatever order they do so.
func Merge(subject string, mine, theirs json.RawMessage, home bool) (json.RawMessage, error) {
	noun, _, _ := strings.Cut(subject, ".")
	if noun != "user" {
		if home {
			return theirs, nil
		}
		return mine, nil
	}
	a, err1 := decode[User](mine)
	b, err2 := decode[User](theirs)
	switch {
	case errors.Join(err1, err2) != nil:
		return mine, fmt.Errorf("merging %s: %w", quote(subject), errors.Join(err1, err2))
	case b == nil:
		return mine, nil
	case a == nil:
		return theirs, nil
	}
	merged := MergeUsers(*a, *b)
	for _, same := range []struct {
		user User
		data json.RawMessage
	}{{*a, mine}, {*b, theirs}} {
		if sameJSON(merged, same.user) {
			return same.data, nil
		}
	}
	return json.Marshal(merged)
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// MergeUsers is the user that two regions know by different records. A user who was
// made anew takes the place of the one before. Of one and the same, a removal is for
// good; who has been denied or allowed last is so, and denied in doubt; the keys and
// certificates are those of both; and the rest is of whoever wrote last. It does not
// matter in which order records are merged, nor how often.
func MergeUsers(a, b User) User {
	if c := a.Created.Compare(b.Created); c != 0 {
		if c > 0 {
			return a
		}
		return b
	}
	last := a
	if cmp.Or(cmp.Compare(b.Revision, a.Revision), cmp.Compare(b.Region, a.Region)) > 0 {
		last = b
	}
	denial := a
	switch c := cmp.Compare(b.Denials, a.Denials); {
	case c > 0, c == 0 && b.Denied && (!a.Denied || b.DeniedAt.After(a.DeniedAt)):
		denial = b
	}
	last.Denials, last.Denied, last.DeniedAt = denial.Denials, denial.Denied, denial.DeniedAt
	last.Keys = mergeKeys(a.Keys, b.Keys)
	last.Certificates = mergeCertificates(a.Certificates, b.Certificates)
	if a.Removed || b.Removed {
		return last.Gone()
	}
	return last
}

func mergeKeys(a, b []UserKey) []UserKey {
	all := map[string]UserKey{}
	for _, k := range slices.Concat(a, b) {
		known, ok := all[k.Public]
		switch {
		case !ok:
			known = k
		case k.Expires.IsZero() || known.Expires.IsZero():
			known.Expires = time.Time{}
		case k.Expires.After(known.Expires):
			known.Expires = k.Expires
		}
		if k.Issued.After(known.Issued) {
			known.Issued, known.Signer = k.Issued, k.Signer
		}
		all[k.Public] = known
	}
	return sorted(all)
}

func mergeCertificates(a, b []UserCertificate) []UserCertificate {
	all := map[string]UserCertificate{}
	for _, c := range slices.Concat(a, b) {
		known, ok := all[c.SHA256]
		if !ok || cmp.Or(c.NotAfter.Compare(known.NotAfter), cmp.Compare(c.Serial, known.Serial)) > 0 {
			c.Registered = c.Registered || known.Registered
			known = c
		}
		known.Registered = known.Registered || c.Registered
		all[c.SHA256] = known
	}
	return sorted(all)
}

// Gone is what regions remember of a user who was removed: which one it was, and the
// keys that must not be good any more.
func (u User) Gone() User {
	return User{Account: u.Account, Name: u.Name, Created: u.Created, Keys: slices.Clone(u.Keys), Revision: u.Revision, Region: u.Region, Removed: true}
}

// Stamped is u as a region writes it that had before in its place, so that the other
// regions can tell which is the later.
func (u User) Stamped(before User, region string) User {
	u.Revision, u.Region = before.Revision+1, region
	if u.Removed {
		return u
	}
	if before.Removed && !u.Created.After(before.Created) {
		u.Created = before.Created.Add(1)
	}
	u.Denials = 0
	if u.Created.Equal(before.Created) {
		u.Denials = before.Denials
	}
	if u.Denied != before.Denied || u.Denied && !u.DeniedAt.Equal(before.DeniedAt) {
		u.Denials++
	}
	return u
}

// UserRecord is the record of a user, even of one who was removed in a fleet of
// regions, as regions merge it.
func (d *Directory) UserRecord(account, name string) (User, bool) {
	u, err := decode[User](d.Record("user." + account + "." + name))
	if err != nil || u == nil {
		return User{}, false
	}
	return *u, true
}

// RegionSnapshot is what Marshal returns of the directory that a new region begins with:
// the fleet's records, the regions, and its first node.
func (d *Directory) RegionSnapshot(first Node) ([]byte, error) {
	next := NewDirectory()
	for _, c := range d.Changes(Change{}, 1<<62) {
		if err := next.Apply(0, c.Subject, c.Data); err != nil && len(c.Data) > 0 {
			return nil, err
		}
	}
	for _, r := range d.AllRegions() {
		if err := next.Apply(0, "region."+r.Name, d.Record("region."+r.Name)); err != nil {
			return nil, err
		}
	}
	data, err := json.Marshal(first)
	if err != nil {
		return nil, fmt.Errorf("encoding node %q: %w", first.Name, err)
	}
	if err := next.Apply(0, "node."+first.Name, data); err != nil {
		return nil, err
	}
	return next.Marshal()
}
