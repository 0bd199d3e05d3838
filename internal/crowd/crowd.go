// Package crowd counts the connections of users who may have a number of them only, and
// says which are too many: what is counted and decided, without a server.
package crowd

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fleetbus/fleetbus/admin"
)

// atOnce bounds the users that are asked for at once.
const atOnce = 500

// A Crowd keeps users to the number of connections that their roles allow, on all
// nodes together, which the engine does not. Every node hears of every arrival, and
// closes those of its own that came when the others were enough. The zero value is one
// of nobody; it is safe for concurrent use.
type Crowd struct {
	// limits says that some role has such a number.
	limits atomic.Bool

	mu sync.Mutex
	// came are the users, by account, that somebody has come for and that nobody has
	// looked at since. An account that is there is being looked at.
	came map[string]map[string]bool
	// here counts the engine's connections of users who have such a number, on this node,
	// by account/name, and names has those users by connection. They are as the engine's
	// events say; stale says that some were missed, or that others have a number now.
	here  map[string]int
	names map[uint64]string
	stale bool
}

// Limit notes whether any role has a number of connections.
func (c *Crowd) Limit(any bool) {
	c.limits.Store(any)
	c.Doubt()
}

// Limited reports whether any role has a number of connections.
func (c *Crowd) Limited() bool { return c.limits.Load() }

// Enter notes a connection of this node.
func (c *Crowd) Enter(account, name string, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(account+"/"+name, id)
}

// note is Enter with mu held.
func (c *Crowd) note(full string, id uint64) {
	if c.here == nil {
		c.here, c.names = map[string]int{}, map[uint64]string{}
	}
	if _, ok := c.names[id]; !ok {
		c.names[id] = full
		c.here[full]++
	}
}

// Leave notes that a connection of this node is gone.
func (c *Crowd) Leave(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	full, ok := c.names[id]
	if !ok {
		return
	}
	delete(c.names, id)
	if c.here[full]--; c.here[full] == 0 {
		delete(c.here, full)
	}
}

// Doubt has the connections looked for again.
func (c *Crowd) Doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = true
}

// Count adds the engine's connections of users of an account to counts, by name.
func (c *Crowd) Count(account string, names []string, counts map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if n := c.here[account+"/"+name]; n > 0 {
			counts[name] += n
		}
	}
}

// Recount looks for all connections, if what is noted of them is stale. look has the
// account/name of users who have a number, by connection.
func (c *Crowd) Recount(look func() (map[uint64]string, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stale {
		return nil
	}
	all, err := look()
	if err != nil {
		return err
	}
	c.here, c.names, c.stale = nil, nil, false
	for id, full := range all {
		c.note(full, id)
	}
	return nil
}

// Add notes that somebody came, and reports whether nobody is looking.
func (c *Crowd) Add(account, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	names, busy := c.came[account]
	if !busy {
		names = map[string]bool{}
		if c.came == nil {
			c.came = map[string]map[string]bool{}
		}
		c.came[account] = names
	}
	names[name] = true
	return !busy
}

// Next takes some of those who came; after the last nobody is looking any more.
func (c *Crowd) Next(account string) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.came[account] {
		if len(names) == atOnce {
			return names
		}
		names = append(names, name)
		delete(c.came[account], name)
	}
	if len(names) == 0 {
		delete(c.came, account)
	}
	return names
}

// Surplus are those of a user's connections on all nodes that are too many when it may
// have most; 0 is any number. The oldest stay, and every node says the same. It sorts
// connections.
func Surplus(connections []admin.Connection, most int64) []admin.Connection {
	if most == 0 || int64(len(connections)) <= most {
		return nil
	}
	slices.SortFunc(connections, func(a, b admin.Connection) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	return connections[most:]
}
