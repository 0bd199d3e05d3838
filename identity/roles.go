package identity

import "time"

// RoleMetrics may ask how much its account uses, and how its streams stand. In the fleet's
// own account it may read the metrics of nodes, and nothing else.
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

// auditOfFleet is what an auditor may do in the fleet's account, where everything else
// is of the nodes: read the audit.
func auditOfFleet() Permissions {
	return Permissions{
		Publish:   Rule{Allow: []string{adminBy + "audit.ls", adminBy + "audit.blocks", adminBy + "audit.state"}},
		Subscribe: Rule{Allow: []string{Inbox(nameTemplate) + ".>"}},
	}
}

// AllowedIn reports whether the role can be had in the account of that name. The
// fleet's own account holds the ledger and has administrators, provisioners and those who
// watch nodes alone,
// the engine's has auditors, who hear its events and nothing else, and nobody stays in
// the callout's, nor is in that of the regions. Auditors of the fleet read its audit.
func (r Role) AllowedIn(account string) bool {
	switch account {
	case FleetName:
		return r.Name == RoleAdmin || r.Name == RoleProvisioner || r.Name == RoleMetrics || r.Name == RoleAuditor
	case SystemName:
		return r.Name == RoleAuditor
	case CalloutName, RegionsName:
		return false
	}
	return r.Name != RoleAdmin && r.Name != RoleProvisioner
}

// In is what the role allows in the account of that name.
func (r Role) In(account string) Permissions {
	switch {
	case account == SystemName:
		return systemEvents()
	case account == FleetName && r.Name == RoleAuditor:
		return auditOfFleet()
	case account == FleetName && r.Name == RoleMetrics:
		// What nodes tell over HTTP; the account's own streams are nobody's to look at.
		return Permissions{Publish: Rule{Deny: []string{">"}}, Subscribe: r.Permissions.Subscribe}
	}
	return r.Permissions
}
