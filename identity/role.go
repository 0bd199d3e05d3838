package identity

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// The names of the built-in roles.
const (
	// RoleClient may do everything within its account, but with certificates, and speak
	// as a machine.
	RoleClient = "client"
	// RoleMachine may publish to machine.<its name>.out.>, which no client may, hear
	// machine.<its name>.in.> and machines.>, answer what it is asked there, and receive
	// replies.
	RoleMachine = "machine"
	// RoleAuditor may read everything within its account, its events too, and write
	// nothing.
	RoleAuditor = "auditor"
	// RoleTarget may receive certificates and say which of them it serves.
	RoleTarget = "target"
	// RoleCertManager may obtain certificates and ask the managers for everything.
	RoleCertManager = "certmanager"
	// RoleAdmin administers the fleet. It is a role of the fleet's account alone.
	RoleAdmin = "admin"
)

// A Role is a named set of permissions. Users refer to it by name, so that a
// change of the role changes what all of them may do.
type Role struct {
	// Name of the role, unique in the fleet.
	Name string `json:"name"`
	// Permissions within the account of the user. Their subjects may hold the
	// templates {{name()}} and {{account-name()}}.
	Permissions Permissions `json:"permissions"`
	// Limits of each connection: Subscriptions, Payload and Data count. Connections
	// is how many each user may have.
	Limits Limits `json:"limits,omitzero"`
	// Expires is the life of credentials and sessions. Zero: no end.
	Expires time.Duration `json:"expires,omitempty"`
	// Networks that a user may come from, such as 10.0.0.0/8. Empty: any.
	Networks []string `json:"networks,omitempty"`
	// Listeners that a user may come in by. Empty: any.
	Listeners []string `json:"listeners,omitempty"`
	// Hours of the day at which a user may be connected. Zero: any.
	Hours Hours `json:"hours,omitzero"`
	// Builtin is true for a role that every fleet has.
	Builtin bool `json:"builtin,omitempty"`
}

// BuiltinRoles returns the roles that every fleet has, sorted by name. The
// caller owns the result.
func BuiltinRoles() []Role {
	everything := Rule{Allow: []string{">"}, Deny: []string{"$SYS.>"}}
	const day = 24 * time.Hour
	// The ledgers of certificates and of reports about them, and what is asked about them.
	const certs, reports, cert = Private + "certs.", Private + "certreports.", Private + "cert."
	inbox := Inbox(nameTemplate) + ".>"
	user := everything.clone()
	user.Deny = append(user.Deny, certsAPI()...)
	user.Deny = append(user.Deny, machineSays("*"))
	audited := everything.clone()
	audited.Allow = append(audited.Allow, AccountEvents+"*")
	return []Role{
		{Name: RoleAdmin, Builtin: true, Expires: day, Permissions: Permissions{
			Publish:   Rule{Allow: []string{adminBy + ">"}},
			Subscribe: Rule{Allow: []string{inbox, EventsPrefix + ">"}},
		}},
		{Name: RoleAuditor, Builtin: true, Expires: day, Permissions: Permissions{
			Subscribe: audited,
		}},
		{Name: RoleCertManager, Builtin: true, Expires: day, Permissions: Permissions{
			Publish:   Rule{Allow: []string{certs + ">", reports + ">", cert + ">", "$JS.API.>"}},
			Subscribe: Rule{Allow: []string{certs + ">", reports + ">", cert + ">", inbox}},
			Replies:   &Replies{Max: 100, For: time.Hour},
		}},
		// Nobody says anything under $SYS in an account of users, so that it costs a
		// connection less not to deny hearing it.
		{Name: RoleClient, Builtin: true, Expires: day, Permissions: Permissions{
			Publish:   user,
			Subscribe: Rule{Allow: []string{">"}},
		}},
		leafRole(),
		{Name: RoleMachine, Builtin: true, Expires: day, Permissions: Permissions{
			Publish:   Rule{Allow: []string{machineSays(nameTemplate)}},
			Subscribe: Rule{Allow: []string{"machine." + nameTemplate + ".in.>", "machines.>", inbox}},
			Replies:   &Replies{Max: 1, For: time.Minute},
		}},
		metricsRole(),
		provisionerRole(),
		// Its credentials outlive any outage of the bus that is worth waiting for. It
		// reads the ledger by way of a node: whoever may use the engine's API can have
		// it write what is stored to any subject.
		{Name: RoleTarget, Builtin: true, Expires: 90 * day, Permissions: Permissions{
			Publish:   Rule{Allow: []string{reports + "report.*." + nameTemplate + ".*", cert + "enroll." + nameTemplate, cert + "read." + nameTemplate + ".>"}},
			Subscribe: Rule{Allow: []string{cert + "ask.*", inbox}},
			Replies:   &Replies{Max: 1, For: time.Minute},
		}},
	}
}

// adminBy begins the requests of an administrator, whose name the engine vouches for.
const adminBy = "admin.by." + nameTemplate + "."

// machineSays are the subjects that only the machine of that name may publish to.
func machineSays(name string) string { return "machine." + name + ".out.>" }

// certsAPI are the subjects by which the engine is asked to read the streams of the
// certificates' ledgers, to change them, and to delete them.
func certsAPI() []string {
	const verb, longer = "$JS.API.*.*.", "$JS.API.*.*.*." // such as STREAM.DELETE and STREAM.MSG.DELETE
	var all []string
	for _, stream := range []string{"CERTS", "CERTREPORTS"} {
		all = append(all, verb+stream, verb+stream+".>", longer+stream, longer+stream+".>")
	}
	return all
}

// Validate returns every problem of r, joined; nil if there is none.
func (r Role) Validate() error {
	errs := []error{CheckName(r.Name), r.Permissions.Validate(), r.Limits.Validate(), checkNetworks(r.Networks), r.Hours.Validate()}
	if r.Expires < 0 {
		errs = append(errs, errors.New("checking expires: it is negative"))
	}
	for _, l := range r.Listeners {
		errs = append(errs, CheckName(l))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking role %s: %w", quote(r.Name), err)
	}
	return nil
}

func (r Role) clone() Role {
	r.Permissions = r.Permissions.clone()
	r.Networks = slices.Clone(r.Networks)
	r.Listeners = slices.Clone(r.Listeners)
	r.Hours = r.Hours.clone()
	return r
}
