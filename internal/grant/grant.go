// Package grant decides which credential a user gets, and makes it: a decision of the
// fleet's state and its authority, without a server.
package grant

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/nodetls"
)

// A Fleet is what grants are decided by.
type Fleet struct {
	Authority *identity.Authority
	Directory *identity.Directory
	// Account finds an account by name, the fleet's own among them.
	Account func(name string) (identity.Account, bool)
}

// A Grant is one credential on its way to a user. Make it with New.
type Grant struct {
	Account identity.Account
	Role    identity.Role
	// Kind is of the user, if it is new.
	Kind identity.Kind
	// Now is when the credential is issued, and Expires when it ends; zero is never.
	Now, Expires time.Time
	// CSR is the certificate request, nil if there is none.
	CSR *x509.CertificateRequest

	fleet   Fleet
	request admin.UserRequest
	name    string
	// signer is the generation of the role's key that signs, or an older one.
	signer      string
	registered  *x509.Certificate
	chain       string
	certificate identity.UserCertificate
}

// canHaveUsers reports whether an account that exists may.
func canHaveUsers(account string) bool {
	return account != identity.CalloutName && account != identity.RegionsName
}

// New decides whether a user of that name may have what is requested, and signs a
// certificate if it is one. Its errors are for who asked; most are an *admin.Error.
func New(f Fleet, account, name string, r admin.UserRequest) (*Grant, error) {
	g := &Grant{fleet: f, request: r, name: name, Kind: identity.KindUser, Now: time.Now()}
	var ok bool
	if g.Account, ok = f.Account(account); !ok || !canHaveUsers(account) {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account add "+account, "there is no account %q", account)
	}
	if g.Account.Guest() && r.Key != "" {
		return nil, admin.Errorf(admin.Invalid, "make it at the hub, or give the user a certificate or a password here",
			"account %q is a guest here: its creds files are the hub's", account)
	}
	known, exists := f.Directory.User(account, name)
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
	if g.Role, ok = f.Directory.Role(roleName); !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus role ls", "there is no role %q", roleName)
	}
	if !g.Role.AllowedIn(account) {
		return nil, admin.Errorf(admin.Invalid, "fleetbus role ls", "role %q is not for users of account %q", roleName, account)
	}
	g.signer = f.Authority.KeyNewest(identity.RoleKeys(g.Account), roleName).ID
	life := g.Role.Expires
	if exists {
		life = known.Life(g.Role)
	}
	if r.Expires != 0 {
		life = r.Expires
	}
	if life > 0 {
		g.Expires = g.Now.Add(life)
	}
	return g, g.parse()
}

// parse reads what the request carries.
func (g *Grant) parse() error {
	r := g.request
	if r.Key != "" && !nkeys.IsValidPublicUserKey(r.Key) {
		return admin.Errorf(admin.Invalid, "", "the key is not a public user nkey")
	}
	if r.CSR != "" {
		var err error
		if g.CSR, err = ParseCSR(r.CSR); err != nil {
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
	if g.CSR != nil {
		life := nodetls.Life
		if !g.Expires.IsZero() {
			life = g.Expires.Sub(g.Now)
		}
		signer := g.fleet.Authority.KeyNewest(identity.KeyAuthority, "").ID
		chain, err := g.fleet.Authority.SignUser(g.CSR, g.Account.Name, g.name, life, g.Now)
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

// User is the record with the credential in it.
func (g *Grant) User(d *identity.Directory) (identity.User, error) {
	u, ok := d.User(g.Account.Name, g.name)
	if !ok {
		u = identity.User{Account: g.Account.Name, Name: g.name, Kind: g.Kind, Role: g.Role.Name, Created: g.Now}
	}
	if u.Denied {
		return u, admin.Errorf(admin.Denied, "fleetbus user allow "+g.request.Name, "user %q is denied", g.request.Name)
	}
	if g.request.Expires != 0 {
		u.Expires = g.request.Expires
	}
	// What has expired is of no use to a denial.
	u.Keys = slices.DeleteFunc(u.Keys, func(k identity.UserKey) bool {
		return k.Public == g.request.Key || !k.Expires.IsZero() && k.Expires.Before(g.Now)
	})
	u.Certificates = slices.DeleteFunc(u.Certificates, func(c identity.UserCertificate) bool {
		return c.NotAfter.Before(g.Now) || c.SHA256 == g.certificate.SHA256 && !c.Registered
	})
	if g.request.Key != "" {
		u.Keys = append(u.Keys, identity.UserKey{Public: g.request.Key, Issued: g.Now, Expires: g.Expires, Signer: g.signer})
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
		u.Bearer = &identity.Bearer{SecretHash: g.request.Bearer, Created: g.Now, Expires: g.Expires}
	}
	if g.request.Password != "" {
		u.Password = g.request.Password
	}
	return u, nil
}

// Issue puts the credential into the reply.
func (g *Grant) Issue(reply *admin.UserReply) error {
	reply.Chain = g.chain
	reply.Expires = g.Expires
	if g.request.Key == "" {
		return nil
	}
	var err error
	reply.JWT, err = g.fleet.Authority.UserJWT(g.Account, g.Role, g.name, g.request.Key, g.Expires)
	return err
}

// ParseCSR reads a certificate request in PEM. Its errors are an *admin.Error.
func ParseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, admin.Errorf(admin.Invalid, "", "the certificate request is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "the certificate request cannot be read: %v", err)
	}
	return csr, nil
}

// Fresh reports whether the recorded life of a key has most of it left, and what it has
// was signed by the newest key of the role, and takes that life: a client that asks
// again and again writes nothing to the ledger.
func (g *Grant) Fresh(u identity.User, key string) bool {
	i := slices.IndexFunc(u.Keys, func(k identity.UserKey) bool { return k.Public == key })
	end := u.Keys[i].Expires
	if u.Keys[i].Signer != g.signer {
		return false
	}
	fresh := end.IsZero() || !g.Expires.IsZero() && end.Sub(g.Now) > g.Expires.Sub(g.Now)*2/3
	if fresh {
		g.Expires = end
	}
	return fresh
}
