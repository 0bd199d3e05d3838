package fleetbus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/grant"
	"github.com/fleetbus/fleetbus/internal/signed"
)

// putAccount makes an account or sets the limits of one.
func (f *fleet) putAccount(ctx context.Context, r admin.AccountRequest) (uint64, error) {
	if err := r.Validate(); err != nil {
		return 0, err
	}
	return f.change(ctx, "account."+r.Name, func() (any, error) {
		a, ok := f.directory.Account(r.Name)
		next := r.Apply(a)
		switch {
		case ok && sameRecord(next, a):
			return nil, errSame
		case ok && a.Guest():
			return nil, admin.Errorf(admin.Invalid, "set them at the hub", "account %q is a guest here, and its limits are the hub's", r.Name)
		case next.Signing == identity.SigningRequired && f.directory.HasSites(r.Name):
			return nil, signed.ErrSites()
		case ok:
			return next, nil
		}
		a, err := f.authority.NewAccount(r.Name, r.Limits, time.Now())
		return r.Apply(a), err
	})
}

func (s *Server) addAccount(ctx context.Context, r admin.AccountRequest) (any, error) {
	began := time.Now()
	seq, err := s.fleet.putAccount(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) listAccounts(ctx context.Context, r admin.AccountsRequest) (any, error) {
	all := []admin.AccountInfo{}
	managed := s.fleet.directory.Records(certNoun)
	for _, a := range s.fleet.directory.Accounts() {
		if _, certs := managed[a.Name]; r.Brief {
			all = append(all, admin.AccountInfo{Account: a, Users: s.fleet.directory.NumUsers(a.Name), Certificates: certs})
			continue
		}
		all = append(all, s.accountInfo(ctx, a))
	}
	return all, nil
}

func (s *Server) getAccount(ctx context.Context, r admin.Name) (any, error) {
	a, err := s.wantAccount(r.Name)
	if err != nil {
		return nil, err
	}
	return s.accountInfo(ctx, a), nil
}

func (s *Server) wantAccount(name string) (identity.Account, error) {
	a, ok := s.fleet.directory.Account(name)
	if !ok {
		return a, admin.Errorf(admin.NotFound, "fleetbus account ls", "there is no account %q", name)
	}
	return a, nil
}

// accountInfo adds what the engine knows; what it does not tell is an error in
// the answer, not the end of it.
func (s *Server) accountInfo(ctx context.Context, a identity.Account) admin.AccountInfo {
	info := admin.AccountInfo{
		Account: a, Users: s.fleet.directory.NumUsers(a.Name), Exports: s.fleet.exports(a.Name), Imports: s.fleet.imports(a.Name),
	}
	var err error
	info.Connections, err = s.countConnections(ctx, a.Public)
	if err != nil {
		info.Errors = append(info.Errors, err.Error())
	}
	err = s.inAccount(a.Name, func(js jetstream.JetStream) error {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		usage, err := js.AccountInfo(ctx)
		if err == nil {
			info.Streams, info.Bytes = usage.Streams, usage.Store
		}
		return err
	})
	if err != nil {
		info.Errors = append(info.Errors, err.Error())
	}
	return info
}

// inAccount does something with the streams of an account, as this node.
func (s *Server) inAccount(account string, do func(jetstream.JetStream) error) error {
	session, err := s.open(s.nodePrincipal(account))
	if err != nil {
		return err
	}
	defer session.Close()
	js, err := jetstream.New(session.Conn)
	if err != nil {
		return err
	}
	return do(js)
}

func (s *Server) removeAccount(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	a, err := s.wantAccount(r.Name)
	if err != nil {
		return nil, err
	}
	if a.Guest() {
		return nil, admin.Errorf(admin.Invalid, "fleetbus leaf rm, at the hub", "account %q is a guest here", a.Name)
	}
	if err := s.clearAccount(ctx, a); err != nil {
		return nil, err
	}
	if err := s.removeFlows(ctx, a.Name); err != nil {
		return nil, err
	}
	for _, u := range s.fleet.directory.Users(a.Name) {
		if _, err := s.fleet.change(ctx, userSubject(u.Account, u.Name), func() (any, error) { return nil, nil }); err != nil {
			return nil, err
		}
	}
	seq, err := s.fleet.change(ctx, "account."+a.Name, func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func userSubject(account, name string) string { return "user." + account + "." + name }

// wantUser finds a user by account/name.
func (s *Server) wantUser(full string) (identity.User, error) {
	account, name, err := identity.SplitName(full)
	if err != nil {
		return identity.User{}, admin.Errorf(admin.Invalid, "write it as account/name", "%v", err)
	}
	u, ok := s.fleet.directory.User(account, name)
	if !ok {
		return u, admin.Errorf(admin.NotFound, "fleetbus user ls "+account, "there is no user %q", full)
	}
	return u, nil
}

// addUser makes a user, or gives one another credential.
func (s *Server) addUser(ctx context.Context, r admin.UserRequest) (any, error) {
	began := time.Now()
	account, name, err := identity.SplitName(r.Name)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "write it as account/name", "%v", err)
	}
	if r.Role == identity.RoleLeaf {
		return nil, admin.Errorf(admin.Invalid, fmt.Sprintf("fleetbus leaf token %s --site %s", account, name), "a site joins with a token")
	}
	g, err := s.newGrant(account, name, r)
	if err != nil {
		return nil, err
	}
	var user identity.User
	seq, err := s.fleet.change(ctx, userSubject(account, name), func() (any, error) {
		user, err = g.User(s.fleet.directory)
		return user, err
	})
	if err != nil {
		return nil, err
	}
	if user.Role == identity.RoleTarget {
		if err := s.haveCertificates(ctx, account); err != nil {
			return nil, err
		}
	}
	reply := admin.UserReply{User: user.Told(), CA: string(s.certs.CAPEM()), Servers: s.clientAddrs()}
	if err := g.Issue(&reply); err != nil {
		return nil, err
	}
	reply.Spread, err = s.fleet.spread(ctx, s.conn, seq, began)
	return reply, err
}

func (s *Server) newGrant(account, name string, r admin.UserRequest) (*grant.Grant, error) {
	return grant.New(grant.Fleet{Authority: s.fleet.authority, Directory: s.fleet.directory, Account: s.fleet.account}, account, name, r)
}

// usersPage bounds the users in one answer, in bytes.
const usersPage = 512 << 10

func (s *Server) listUsers(_ context.Context, r admin.UsersRequest) (any, error) {
	all := []identity.User{}
	accounts := []identity.Account{{Name: r.Name}}
	if r.Name == "" {
		accounts = append(s.fleet.directory.Accounts(), s.fleet.ownAccounts()...)
		slices.SortFunc(accounts, func(a, b identity.Account) int { return strings.Compare(a.Name, b.Name) })
	} else if _, ok := s.fleet.account(r.Name); !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account ls", "there is no account %q", r.Name)
	}
	size, after := 0, strings.Split(r.After+"/", "/")
	for _, a := range accounts {
		if a.Name < after[0] {
			continue
		}
		for _, u := range s.fleet.directory.Users(a.Name) {
			if a.Name == after[0] && u.Name <= after[1] {
				continue
			}
			text, err := json.Marshal(u.Told())
			if err != nil {
				return nil, err
			}
			if size += len(text); r.Pages && size > usersPage && len(all) > 0 {
				return all, nil
			}
			all = append(all, u.Told())
		}
	}
	return all, nil
}

// connectionsTold is how many connections of a user are told of.
const connectionsTold = 200

func (s *Server) getUser(ctx context.Context, r admin.Name) (any, error) {
	u, err := s.wantUser(r.Name)
	if err != nil {
		return nil, err
	}
	info := admin.UserInfo{User: u.Told(), Connections: []admin.Connection{}}
	if a, ok := s.fleet.account(u.Account); ok {
		some, all, err := s.fleetConnections(ctx, a.Public, u.Name, connectionsTold)
		if err != nil {
			return nil, err
		}
		info.Connections, info.More = append(info.Connections, some...), all-len(some)
	}
	return info, nil
}

func (s *Server) removeUser(ctx context.Context, r admin.Name) (any, error) {
	return s.changeUser(ctx, r.Name, func(identity.User) (any, error) { return nil, nil })
}

func (s *Server) denyUser(ctx context.Context, r admin.Name) (any, error) {
	return s.changeUser(ctx, r.Name, func(u identity.User) (any, error) {
		if u.Denied {
			return nil, errSame
		}
		u.Denied, u.DeniedAt = true, time.Now()
		return u, nil
	})
}

func (s *Server) allowUser(ctx context.Context, r admin.Name) (any, error) {
	return s.changeUser(ctx, r.Name, func(u identity.User) (any, error) {
		if !u.Denied {
			return nil, errSame
		}
		u.Denied, u.DeniedAt = false, time.Time{}
		return u, nil
	})
}

func (s *Server) changeUser(ctx context.Context, full string, edit func(identity.User) (any, error)) (any, error) {
	began := time.Now()
	u, err := s.wantUser(full)
	if err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, userSubject(u.Account, u.Name), func() (any, error) {
		u, err := s.wantUser(full)
		if err != nil {
			return nil, err
		}
		return edit(u)
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) addRole(ctx context.Context, r identity.Role) (any, error) {
	began := time.Now()
	if err := r.Validate(); err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "%v", err)
	}
	if _, _, err := r.Hours.Open(began); err != nil {
		return nil, admin.Errorf(admin.Invalid, "write the zone like Europe/Berlin", "%v", err)
	}
	if known, ok := s.fleet.directory.Role(r.Name); ok && known.Builtin {
		return nil, admin.Errorf(admin.Conflict, "choose another name", "role %q is built in", r.Name)
	}
	r.Builtin = false
	seq, err := s.fleet.change(ctx, "role."+r.Name, func() (any, error) {
		// A change closes sessions.
		if known, ok := s.fleet.directory.Role(r.Name); ok && sameRecord(known, r) {
			return nil, errSame
		}
		return r, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// sameRecord reports whether two records are one in the ledger.
func sameRecord(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func (s *Server) listRoles(context.Context, struct{}) (any, error) {
	return s.fleet.directory.Roles(), nil
}

func (s *Server) removeRole(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	role, ok := s.fleet.directory.Role(r.Name)
	if !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus role ls", "there is no role %q", r.Name)
	}
	if role.Builtin {
		return nil, admin.Errorf(admin.Conflict, "", "role %q is built in", r.Name)
	}
	for _, a := range append(s.fleet.directory.Accounts(), s.fleet.ownAccounts()...) {
		for _, u := range s.fleet.directory.Users(a.Name) {
			if u.Role == r.Name {
				return nil, admin.Errorf(admin.Conflict, "fleetbus user rm "+u.String(), "user %q has role %q", u, r.Name)
			}
		}
	}
	seq, err := s.fleet.change(ctx, "role."+r.Name, func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}
