package fleetbus

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/nodetls"
)

// putAccount makes an account or sets the limits of one.
func (f *fleet) putAccount(ctx context.Context, name string, limits identity.Limits) (uint64, error) {
	if err := identity.CheckAccountName(name); err != nil {
		return 0, admin.Errorf(admin.Invalid, "choose another name", "%v", err)
	}
	if err := limits.Validate(); err != nil {
		return 0, admin.Errorf(admin.Invalid, "", "%v", err)
	}
	return f.change(ctx, "account."+name, func() (any, error) {
		a, ok := f.directory.Account(name)
		if ok && a.Limits == limits {
			return nil, errSame
		}
		if ok && a.Guest() {
			return nil, admin.Errorf(admin.Invalid, "set them at the hub", "account %q is a guest here, and its limits are the hub's", name)
		}
		if ok {
			a.Limits = limits
			return a, nil
		}
		return f.authority.NewAccount(name, limits, time.Now())
	})
}

func (s *Server) addAccount(ctx context.Context, r admin.AccountRequest) (any, error) {
	began := time.Now()
	seq, err := s.fleet.putAccount(ctx, r.Name, r.Limits)
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) listAccounts(ctx context.Context, _ struct{}) (any, error) {
	all := []admin.AccountInfo{}
	for _, a := range s.fleet.directory.Accounts() {
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
		user, err = g.user(s.fleet.directory)
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
	reply := admin.UserReply{User: public(user), CA: string(s.certs.CAPEM()), Servers: s.clientAddrs()}
	if err := g.issue(&reply); err != nil {
		return nil, err
	}
	reply.Spread, err = s.fleet.spread(ctx, s.conn, seq, began)
	return reply, err
}

// public is a user without what only the fleet may know.
func public(u identity.User) identity.User {
	if u.Password != "" {
		u.Password = "set"
	}
	if u.Bearer != nil {
		u.Bearer = &identity.Bearer{SecretHash: "set", Created: u.Bearer.Created, Expires: u.Bearer.Expires}
	}
	return u
}

// grant is one credential on its way to a user.
type grant struct {
	s            *Server
	account      identity.Account
	role         identity.Role
	request      admin.UserRequest
	name         string
	kind         identity.Kind
	now, expires time.Time
	// signer is the generation of the role's key that signs, or an older one.
	signer        string
	csr           *x509.CertificateRequest
	registered    *x509.Certificate
	chain         string
	certificate   identity.UserCertificate
	roleRequested bool
}

// canHaveUsers reports whether an account that exists may.
func canHaveUsers(account string) bool {
	return account != identity.CalloutName && account != identity.RegionsName
}

func (s *Server) newGrant(account, name string, r admin.UserRequest) (*grant, error) {
	g := &grant{s: s, request: r, name: name, kind: identity.KindUser, now: time.Now(), roleRequested: r.Role != ""}
	var ok bool
	if g.account, ok = s.fleet.account(account); !ok || !canHaveUsers(account) {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account add "+account, "there is no account %q", account)
	}
	if g.account.Guest() && r.Key != "" {
		return nil, admin.Errorf(admin.Invalid, "make it at the hub, or give the user a certificate or a password here",
			"account %q is a guest here: its creds files are the hub's", account)
	}
	known, exists := s.fleet.directory.User(account, name)
	if exists && known.Site != nil && r.Role == "" {
		return nil, admin.Errorf(admin.Conflict, "choose another name", "%q is a site, which has one credential", r.Name)
	}
	roleName := r.Role
	switch {
	case exists && roleName == "":
		roleName = known.Role
	case roleName == "" && account == identity.FleetName:
		roleName = identity.RoleAdmin
	case roleName == "" && account == identity.SystemName:
		roleName = identity.RoleAuditor
	case roleName == "":
		roleName = "client"
	}
	if exists && known.Role != roleName {
		return nil, admin.Errorf(admin.Conflict, "fleetbus user rm "+r.Name, "user %q exists with role %q", r.Name, known.Role)
	}
	if g.role, ok = s.fleet.directory.Role(roleName); !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus role ls", "there is no role %q", roleName)
	}
	if !g.role.AllowedIn(account) {
		return nil, admin.Errorf(admin.Invalid, "fleetbus role ls", "role %q is not for users of account %q", roleName, account)
	}
	g.signer = s.fleet.authority.KeyNewest(identity.RoleKeys(g.account), roleName).ID
	life := g.role.Expires
	if exists {
		life = known.Life(g.role)
	}
	if r.Expires != 0 {
		life = r.Expires
	}
	if life > 0 {
		g.expires = g.now.Add(life)
	}
	return g, g.parse()
}

// parse reads what the request carries.
func (g *grant) parse() error {
	r := g.request
	if r.Key != "" && !nkeys.IsValidPublicUserKey(r.Key) {
		return admin.Errorf(admin.Invalid, "", "the key is not a public user nkey")
	}
	if r.CSR != "" {
		var err error
		if g.csr, err = parseCSR(r.CSR); err != nil {
			return err
		}
	}
	if r.Certificate != "" {
		block, _ := pem.Decode([]byte(r.Certificate))
		if block == nil {
			return admin.Errorf(admin.Invalid, "", "the certificate is not PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return admin.Errorf(admin.Invalid, "", "the certificate cannot be read: %v", err)
		}
		g.registered = cert
	}
	if r.Password != "" {
		if err := identity.CheckPasswordHash(r.Password); err != nil {
			return admin.Errorf(admin.Invalid, "", "%v", err)
		}
	}
	if r.Bearer != "" {
		if err := identity.CheckBearerHash(r.Bearer); err != nil {
			return admin.Errorf(admin.Invalid, "", "%v", err)
		}
	}
	if g.csr != nil {
		life := nodetls.Life
		if !g.expires.IsZero() {
			life = g.expires.Sub(g.now)
		}
		signer := g.s.fleet.authority.KeyNewest(identity.KeyAuthority, "").ID
		chain, err := g.s.fleet.authority.SignUser(g.csr, g.account.Name, g.name, life, g.now)
		if err != nil {
			return admin.Errorf(admin.Invalid, "", "%v", err)
		}
		block, _ := pem.Decode(chain)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		g.chain = string(chain)
		g.certificate = identity.UserCertificate{SHA256: identity.KeyHash(cert), Serial: cert.SerialNumber.Text(16), NotAfter: cert.NotAfter, Signer: signer}
	}
	return nil
}

// user is the record with the credential in it.
func (g *grant) user(d *identity.Directory) (identity.User, error) {
	u, ok := d.User(g.account.Name, g.name)
	if !ok {
		u = identity.User{Account: g.account.Name, Name: g.name, Kind: g.kind, Role: g.role.Name, Created: g.now}
	}
	if u.Denied {
		return u, admin.Errorf(admin.Denied, "fleetbus user allow "+g.request.Name, "user %q is denied", g.request.Name)
	}
	if g.request.Expires != 0 {
		u.Expires = g.request.Expires
	}
	// What has expired is of no use to a denial.
	u.Keys = slices.DeleteFunc(u.Keys, func(k identity.UserKey) bool {
		return k.Public == g.request.Key || !k.Expires.IsZero() && k.Expires.Before(g.now)
	})
	u.Certificates = slices.DeleteFunc(u.Certificates, func(c identity.UserCertificate) bool {
		return c.NotAfter.Before(g.now) || c.SHA256 == g.certificate.SHA256 && !c.Registered
	})
	if g.request.Key != "" {
		u.Keys = append(u.Keys, identity.UserKey{Public: g.request.Key, Issued: g.now, Expires: g.expires, Signer: g.signer})
	}
	if g.chain != "" {
		u.Certificates = append(u.Certificates, g.certificate)
	}
	if c := g.registered; c != nil {
		u.Certificates = append(u.Certificates, identity.UserCertificate{
			SHA256: identity.KeyHash(c), Serial: c.SerialNumber.Text(16), NotAfter: c.NotAfter, Registered: true,
		})
	}
	if g.request.Bearer != "" {
		u.Bearer = &identity.Bearer{SecretHash: g.request.Bearer, Created: g.now, Expires: g.expires}
	}
	if g.request.Password != "" {
		u.Password = g.request.Password
	}
	return u, nil
}

// issue puts the credential into the reply.
func (g *grant) issue(reply *admin.UserReply) error {
	reply.Chain = g.chain
	reply.Expires = g.expires
	if g.request.Key == "" {
		return nil
	}
	var err error
	reply.JWT, err = g.s.fleet.authority.UserJWT(g.account, g.role, g.name, g.request.Key, g.expires)
	return err
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
			text, err := json.Marshal(public(u))
			if err != nil {
				return nil, err
			}
			if size += len(text); r.Pages && size > usersPage && len(all) > 0 {
				return all, nil
			}
			all = append(all, public(u))
		}
	}
	return all, nil
}

// connectionsTold is how many connections of a user are told of.
const connectionsTold = 1000

func (s *Server) getUser(ctx context.Context, r admin.Name) (any, error) {
	u, err := s.wantUser(r.Name)
	if err != nil {
		return nil, err
	}
	info := admin.UserInfo{User: public(u), Connections: []admin.Connection{}}
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
