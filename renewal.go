package fleetbus

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// renewUser gives the holder of a creds file a new JWT of the same key. Who it is
// is the engine's word: of the account by the subject, of the user by its key.
func (s *Server) renewUser(ctx context.Context, msg *nats.Msg) (any, error) {
	public, key, err := identity.RenewalFrom(msg.Subject, msg.Header.Get(identity.RenewInfoHeader))
	if err != nil {
		return nil, err
	}
	account, ok := s.fleet.directory.AccountByPublic(public)
	switch {
	case !ok:
		return nil, errNotRenewable
	case account.Guest():
		return s.renewAtHub(ctx, key)
	}
	return s.renewKey(ctx, account.Name, key)
}

// errNotRenewable says that what was shown to the engine is no creds file.
var errNotRenewable = admin.Errorf(admin.Denied, "connect with the creds file that is to be renewed", "only the key of a creds file can be renewed")

// renewKey makes a new JWT for the key of a creds file in an account.
func (s *Server) renewKey(ctx context.Context, in, key string) (any, error) {
	account, err := s.wantAccount(in)
	if err != nil {
		return nil, err
	}
	holds := func(u identity.User) bool {
		return slices.ContainsFunc(u.Keys, func(k identity.UserKey) bool { return k.Public == key })
	}
	user, ok := s.fleet.directory.UserByKey(account.Name, key)
	if !ok || user.Site != nil {
		return nil, errNotRenewable
	}
	name := user.String()
	g, err := s.newGrant(account.Name, user.Name, admin.UserRequest{Name: name, Key: key})
	if err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, userSubject(account.Name, user.Name), func() (any, error) {
		u, ok := s.fleet.directory.User(account.Name, user.Name)
		if !ok || u.Denied || !holds(u) {
			return nil, admin.Errorf(admin.Denied, "", "user %q may not be renewed", name)
		}
		if g.Fresh(u, key) {
			return nil, errSame
		}
		return g.User(s.fleet.directory)
	})
	if err != nil {
		return nil, err
	}
	reply := admin.UserReply{
		Spread: admin.Spread{Nodes: []admin.Applied{}, Missing: []string{}, Changed: seq > 0, Took: time.Since(g.Now)},
		User:   identity.User{Account: account.Name, Name: user.Name, Role: g.Role.Name},
		CA:     string(s.certs.CAPEM()), Servers: s.clientAddrs(),
	}
	return reply, g.Issue(&reply)
}
