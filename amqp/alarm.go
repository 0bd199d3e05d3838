package amqp

import "sync"

// alarm stops what is published, on all connections. The zero value does not.
type alarm struct {
	mu     sync.Mutex
	reason string
	over   chan struct{} // closed when it is; nil: there is none
	all    map[*conn]struct{}
}

// raise has nothing that is published read until clear.
func (a *alarm) raise(reason string) {
	a.mu.Lock()
	if a.over == nil {
		a.over = make(chan struct{})
	}
	a.reason = reason
	conns := a.conns()
	a.mu.Unlock()
	for _, c := range conns {
		c.blocked(reason)
	}
}

// clear ends it.
func (a *alarm) clear() {
	a.mu.Lock()
	if a.over != nil {
		close(a.over)
		a.over = nil
	}
	conns := a.conns()
	a.mu.Unlock()
	for _, c := range conns {
		c.unblocked()
	}
}

func (a *alarm) conns() (conns []*conn) {
	for c := range a.all {
		conns = append(conns, c)
	}
	return conns
}

// add has c told of it, until remove.
func (a *alarm) add(c *conn) {
	a.mu.Lock()
	if a.all == nil {
		a.all = map[*conn]struct{}{}
	}
	a.all[c] = struct{}{}
	reason, on := a.reason, a.over != nil
	a.mu.Unlock()
	if on {
		c.blocked(reason)
	}
}

func (a *alarm) remove(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, c)
}

// raised is closed when the alarm is over, nil if there is none.
func (a *alarm) raised() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.over
}
