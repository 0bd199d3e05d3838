package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/internal/keys"
)

const (
	// boxName is the file with the key that the fleet's new secrets are sealed to.
	boxName = "box.nk"
	// keysCheck is how often a node looks whether the time of a key is over.
	keysCheck = time.Second
)

// shared is this node's part in the keys that the fleet shares.
type shared struct {
	*keys.Ring
	// changed is sent to when there is something to do beside what turn does.
	changed chan struct{}
	// renew are the node's certificates.
	renew func() error

	mu    sync.Mutex
	state string // that the engine and the listeners were told of
}

// learnKeys takes what the directory says of all keys.
func (f *fleet) learnKeys(box string) error {
	ring, err := keys.Open(box, home.WriteFile, f.authority, f.directory, f.region, f.server, f.ownAccounts())
	if err != nil {
		return err
	}
	if err := ring.LearnAll(); err != nil {
		f.log.Error("a key of the fleet is not known here", "error", err)
	}
	f.keys = &shared{Ring: ring, changed: make(chan struct{}, 1), state: ring.State(time.Now())}
	return nil
}

// actKey has what the ledger says of a key hold on this node.
func (f *fleet) actKey(name string) (closed int, err error) {
	if err := f.keys.Learn(name); err != nil {
		return 0, err
	}
	return f.turn(time.Now())
}

// turn has the engine, the listeners and the sites know which keys are good now, if
// that has changed. The engine closes who came in by one that is not.
func (f *fleet) turn(now time.Time) (closed int, err error) {
	k := f.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	state := k.State(now)
	if state == k.state {
		return 0, nil
	}
	for account, publics := range k.Void(now) {
		ids, e := f.broker.UserConnections(account, "", publics)
		closed, err = closed+len(ids), errors.Join(err, e)
	}
	err = errors.Join(err, f.storeAccounts(append(f.directory.Accounts(), f.ownAccounts()...)), k.renew())
	for account, users := range k.Uncertified(now) {
		n, e := f.closeSessions(account, users)
		closed, err = closed+n, errors.Join(err, e)
	}
	if err == nil {
		k.state = state
	}
	f.sites.forget()
	f.sites.kick()
	select {
	case k.changed <- struct{}{}:
	default:
	}
	return closed, err
}

// closeSessions ends those of some users that came in by anything but a creds file.
func (f *fleet) closeSessions(a identity.Account, of map[string]bool) (closed int, err error) {
	closed = f.resting.end(a.Name, func(one string) bool { return of[one] })
	all, err := f.broker.Connections(a.Public)
	for _, c := range all {
		if c.Session && of[c.Name] && f.broker.Close(c.ID) {
			closed++
		}
	}
	return closed, err
}

// keepKeys says which box this node has, ends keys whose time is over, and keeps what
// lies in the data directory good, until ctx is done.
func (s *Server) keepKeys(ctx context.Context) {
	tick := time.NewTicker(keysCheck)
	defer tick.Stop()
	recorded, fresh, sealed := false, false, uint64(0)
	for {
		if !recorded {
			recorded = s.recordBox(ctx) == nil // it is not while there is no quorum
		}
		if _, err := s.fleet.turn(time.Now()); err != nil {
			s.log.Error("keys could not be changed", "error", err)
		}
		if seq := s.fleet.directory.Seq(); seq != sealed && s.broker.IsLeader() && s.sealAnew(ctx) == nil {
			sealed = seq
		}
		if !fresh {
			err := s.freshenHome(ctx)
			if fresh = err == nil; err != nil && ctx.Err() == nil {
				s.log.Warn("the credentials in the data directory are not renewed yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.fleet.keys.changed:
			fresh = false
		}
	}
}

// sealAnew has nodes know the keys that were changed before it was known of them.
func (s *Server) sealAnew(ctx context.Context) error {
	for _, name := range s.fleet.keys.Unsealed() {
		_, err := s.fleet.change(ctx, identity.KeyNoun+"."+name, func() (any, error) {
			record, ok, err := s.fleet.keys.Reseal(name)
			if !ok && err == nil {
				return nil, errSame
			}
			return record, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recordBox tells the fleet what secrets for this node are sealed to, and what it signs
// its journal by.
func (s *Server) recordBox(ctx context.Context) error {
	_, err := s.fleet.change(ctx, "node."+s.fleet.node, func() (any, error) {
		n, ok := s.fleet.directory.Node(s.fleet.node)
		if !ok || n.Removed || n.Box == s.fleet.keys.Box() && n.Audit == s.fleet.audit.Public() {
			return nil, errSame
		}
		n.Box = s.fleet.keys.Box()
		return s.recordAudit(n), nil
	})
	return err
}

// renewShown has the node show certificates by the keys that are good now, and commands
// on this machine trust them. A key may have ended since the caller looked at the clock.
func (s *Server) renewShown() error {
	return errors.Join(s.certs.Renew(time.Now()), home.WriteFile(s.home.Path("admin", "ca.pem"), s.certs.CAPEM(), 0o600))
}

// freshenHome keeps the local admin's credentials good.
func (s *Server) freshenHome(ctx context.Context) error {
	path := s.home.Path("admin", "admin.creds")
	creds, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("renewing the local admin's credentials: %w", err)
	}
	name, public, err := identity.CredsUser(creds)
	if err != nil {
		return err
	}
	u, ok := s.fleet.directory.User(identity.FleetName, name)
	i := slices.IndexFunc(u.Keys, func(k identity.UserKey) bool { return k.Public == public })
	if !ok || u.Denied || i < 0 || !s.fleet.keys.Stale(u, u.Keys[i]) {
		return nil
	}
	g, err := s.newGrant(u.Account, u.Name, admin.UserRequest{Name: u.String(), Key: public})
	if err != nil {
		return err
	}
	g.Expires = u.Keys[i].Expires
	if _, err := s.fleet.change(ctx, userSubject(u.Account, u.Name), func() (any, error) { return g.User(s.fleet.directory) }); err != nil {
		return fmt.Errorf("renewing the local admin's credentials: %w", err)
	}
	var reply admin.UserReply
	if err := g.Issue(&reply); err != nil {
		return err
	}
	return renewFile(path, reply.JWT)
}

// renewFile writes a new JWT for the key in a creds file.
func renewFile(path, token string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("renewing credentials: %w", err)
	}
	key, err := nkeys.ParseDecoratedNKey(old)
	if err != nil {
		return fmt.Errorf("renewing credentials: %w", err)
	}
	defer key.Wipe()
	seed, err := key.Seed()
	if err != nil {
		return fmt.Errorf("renewing credentials: %w", err)
	}
	creds, err := identity.RenewCreds(token, seed)
	if err != nil {
		return fmt.Errorf("renewing credentials: %w", err)
	}
	return home.WriteFile(path, creds, 0o600)
}

// downNodes are those that this one has no route to, and the regions that it has no
// gateway to.
func (f *fleet) downNodes() (all []string) {
	up := f.up()
	for _, n := range f.directory.Nodes() {
		if !up[n.Name] {
			all = append(all, "node "+n.Name)
		}
	}
	return append(all, f.awayRegions()...)
}

func (f *fleet) awayRegions() (all []string) {
	linked := f.broker.Gateways()
	for _, r := range f.directory.Regions() {
		if r.Name != f.region && !slices.Contains(linked, r.Name) {
			all = append(all, "region "+r.Name)
		}
	}
	return all
}

// ownKey reports whether a request changes the key of an account that every region has
// for itself.
func (s *Server) ownKey(body []byte) bool {
	var r admin.KeyRequest
	return json.Unmarshal(body, &r) == nil && (r.Account == identity.FleetName || r.Account == identity.SystemName)
}

func (s *Server) listKeys(context.Context, struct{}) (any, error) {
	return s.fleet.keys.Keys(time.Now(), s.fleet.downNodes()), nil
}

// rotateKey makes one more generation of a key.
func (s *Server) rotateKey(ctx context.Context, r admin.KeyRequest) (any, error) {
	began, f := time.Now(), s.fleet
	name, err := f.keys.Name(r)
	if err != nil {
		return nil, err
	}
	if away := f.awayRegions(); name == identity.KeyRoutes && r.Keep == 0 && len(away) > 0 {
		return nil, admin.Errorf(admin.Conflict, "give it time: --keep 24h; or if it is lost for good: fleetbus gateway rm",
			"%s is away, and could never be linked again", strings.Join(away, ", "))
	}
	subject := identity.KeyNoun + "." + name
	seq, err := f.change(ctx, subject, func() (any, error) { return f.keys.Next(name, r, time.Now()) })
	if err != nil {
		return nil, err
	}
	var reply admin.KeyReply
	for _, k := range f.keys.List(time.Now(), f.downNodes()) {
		if k.Name == r.Name && k.Account == r.Account && (r.Role == "" || k.Role == r.Role) {
			reply.Keys = append(reply.Keys, k)
		}
	}
	reply.Spread, err = f.spread(ctx, s.conn, seq, began)
	return reply, err
}
