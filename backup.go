package fleetbus

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/backup"
)

// newBackups is where this node hands out backups until ctx is done.
func (s *Server) newBackups(ctx context.Context) *backup.Desk {
	return &backup.Desk{
		Node: s.fleet.node, Context: ctx, Group: &s.group, Conn: s.conn, Source: s.backedUp, Logger: s.log,
		Subjects: func(name string) []string { return audit.BothWays(admin.Prefix + name) },
	}
}

// inAccountAs connects to an account with every right.
func (s *Server) inAccountAs(account string) (*nats.Conn, error) {
	session, err := s.open(s.nodePrincipal(account))
	if err != nil {
		return nil, err
	}
	return session.Conn, nil
}

// backedUp describes the fleet as it is now.
func (s *Server) backedUp(r admin.BackupRequest) (backup.Source, error) {
	source := backup.Source{
		Manifest: backup.Manifest{
			Fleet: s.fleet.authority.Fleet(), Cluster: s.home.Node.Cluster, Hash: s.fleet.authority.Hash(), Node: s.fleet.node, Version: Version(), Began: time.Now().UTC(),
			Sequence: s.fleet.directory.Seq(), Accounts: map[string]int{}, WithStreams: !r.NoStreams,
		},
		Accounts: []string{identity.FleetName},
		Connect:  s.inAccountAs,
		Bare:     func(account, _ string) bool { return account == identity.FleetName },
	}
	for _, a := range s.fleet.directory.Accounts() {
		source.Manifest.Accounts[a.Name] = s.fleet.directory.NumUsers(a.Name)
		if !r.NoStreams && (r.Accounts == nil || slices.Contains(r.Accounts, a.Name)) {
			source.Accounts = append(source.Accounts, a.Name)
		}
	}
	for _, name := range r.Accounts {
		if _, err := s.wantAccount(name); err != nil {
			return source, err
		}
	}
	var err error
	if source.Authority, err = s.fleet.authority.Marshal(); err == nil {
		source.Directory, err = s.fleet.directory.Marshal()
	}
	return source, err
}
