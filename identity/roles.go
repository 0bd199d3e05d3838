package identity

import "time"

// RoleMetrics may ask how much its account uses, and how its streams stand.
const RoleMetrics = "metrics"

func metricsRole() Role {
	return Role{Name: RoleMetrics, Builtin: true, Expires: 90 * 24 * time.Hour, Permissions: Permissions{
		// Each node answers the first for the account that asks.
		Publish: Rule{Allow: []string{"$SYS.REQ.ACCOUNT.PING.STATZ", "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
			"$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*"}},
		Subscribe: Rule{Allow: []string{"_INBOX." + nameTemplate + ".>"}},
	}}
}

// systemEvents are what an auditor may hear in the engine's own account.
func systemEvents() Permissions {
	const account, server = "$SYS.ACCOUNT.*.", "$SYS.SERVER.*."
	return Permissions{Subscribe: Rule{Allow: []string{
		account + "CONNECT", account + "DISCONNECT", account + "SERVER.CONNS", account + "LEAFNODE.CONNECT",
		"$SYS.ACCOUNT.CLIENT.AUTH.ERR", server + "CLIENT.AUTH.ERR", server + "STATSZ", server + "SHUTDOWN", server + "LAMEDUCK",
	}}}
}

// AllowedIn reports whether the role can be had in the account of that name. The
// fleet's own account holds the ledger and has administrators and provisioners alone,
// the engine's has auditors, who hear its events and nothing else, and nobody stays in
// the callout's, nor is in that of the regions.
func (r Role) AllowedIn(account string) bool {
	switch account {
	case FleetName:
		return r.Name == RoleAdmin || r.Name == RoleProvisioner
	case SystemName:
		return r.Name == RoleAuditor
	case CalloutName, RegionsName:
		return false
	}
	return r.Name != RoleAdmin && r.Name != RoleProvisioner
}

// In is what the role allows in the account of that name.
func (r Role) In(account string) Permissions {
	if account == SystemName {
		return systemEvents()
	}
	return r.Permissions
}
