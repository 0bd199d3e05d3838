package fleetbus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// errCrowd is why a connection above the number that its user may have is closed.
var errCrowd = errors.New("its user has as many connections as the role allows")

// crowd keeps users to the number of connections that their roles allow, on all
// nodes together, which the engine does not. Every node hears of every arrival, and
// closes those of its own that came when the others were enough.
type crowd struct {
	mu sync.Mutex
	// looking are the users that are being looked at, true for those that somebody
	// came for meanwhile.
	looking map[string]bool
}

// quota is how many connections a user may have at once; 0 is any number.
func (f *fleet) quota(account, name string) int64 {
	u, ok := f.directory.User(account, name)
	if !ok {
		return 0
	}
	role, _ := f.directory.Role(u.Role)
	return role.Limits.Connections
}

// arrived looks at the connections of a user who has just come in somewhere.
func (s *Server) arrived(ctx context.Context, account identity.Account, name string) {
	if s.fleet.quota(account.Name, name) == 0 {
		return
	}
	full, c := account.Name+"/"+name, &s.fleet.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.looking[full]; ok {
		c.looking[full] = true
		return
	}
	if c.looking == nil {
		c.looking = map[string]bool{}
	}
	c.looking[full] = false
	s.group.Go(func() {
		for again := true; again; {
			if err := s.thin(ctx, account, name); err != nil && ctx.Err() == nil {
				s.log.Warn("the connections of a user could not be counted", "principal", full, "error", err)
			}
			c.mu.Lock()
			if again = c.looking[full]; again {
				c.looking[full] = false
			} else {
				delete(c.looking, full)
			}
			c.mu.Unlock()
		}
	})
}

// thin closes those connections of a user on this node that are too many. The
// oldest stay, and of two nodes' each keeps the same order.
func (s *Server) thin(ctx context.Context, account identity.Account, name string) error {
	most := s.fleet.quota(account.Name, name)
	if most == 0 {
		return nil
	}
	all, err := s.fleetConnections(ctx, account.Public, name)
	if int64(len(all)) <= most {
		return err
	}
	slices.SortFunc(all, func(a, b admin.Connection) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	for _, c := range all[most:] {
		if c.Node == s.fleet.node && s.closeConnection(account.Name, c) {
			s.log.Warn("client refused", "listener", c.Kind, "remote", c.Remote, "principal", account.Name+"/"+name, "error", errCrowd)
		}
	}
	return err
}

// closeConnection ends one of this node's, whether the engine knows it or not.
func (s *Server) closeConnection(account string, c admin.Connection) bool {
	for _, one := range s.fleet.resting.of(account) {
		if one.id == c.ID && one.listener == c.Kind {
			return one.end()
		}
	}
	return strings.Contains(c.Kind, "/") && s.broker.Close(c.ID)
}
