package amqp

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/metrics"
)

// Metrics implements metrics.Source: what is in the queues of the accounts that this node
// has. Accounts that others have are told of by those.
func (p *Protocol) Metrics(context.Context) []metrics.Sample {
	p.mu.Lock()
	own := p.own
	p.mu.Unlock()
	if own == nil {
		return nil
	}
	all := []metrics.Sample{
		metrics.Of("fleetbus_amqp_memory_bytes", float64(own.held.Load())),
		metrics.Of("fleetbus_amqp_memory_limit_bytes", float64(own.most)),
		metrics.Of("fleetbus_amqp_blocked", metrics.Truth(own.blocked.Load())),
	}
	for i, a := range own.here() {
		c, name := a.census(), a.name
		if i >= metrics.MostAccounts {
			name = metrics.Other
		}
		for durable, n := range c.queues {
			all = append(all, metrics.Of("fleetbus_amqp_queues", float64(n), name, strconv.FormatBool(durable)))
		}
		all = append(all,
			metrics.Of("fleetbus_amqp_messages", float64(c.ready), name, "ready"),
			metrics.Of("fleetbus_amqp_messages", float64(c.unacked), name, "unacknowledged"),
			metrics.Of("fleetbus_amqp_consumers", float64(c.consumers), name),
			metrics.Of("fleetbus_amqp_connections", float64(c.connections), name),
			metrics.Of("fleetbus_amqp_idle_queues", float64(c.idle), name))
	}
	return all
}

// here are the accounts that this node has, by name.
func (a *accounts) here() (all []*account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { slices.SortFunc(all, func(a, b *account) int { return strings.Compare(a.name, b.name) }) }()
	for _, c := range a.all {
		if one := c.here(); one != nil {
			all = append(all, one)
		}
	}
	return all
}

// census is what an account has.
type census struct {
	queues                                       map[bool]int // by whether they are durable
	ready, unacked, consumers, connections, idle int
}

func (a *account) census() census {
	a.mu.RLock()
	queues := make([]*queue.Queue, 0, len(a.queues))
	for _, q := range a.queues {
		queues = append(queues, q)
	}
	c := census{queues: map[bool]int{true: 0, false: 0}, connections: len(a.leave)}
	a.mu.RUnlock()
	for _, q := range queues {
		n := q.Counts()
		c.queues[durable(q.Settings())]++
		c.ready += n.Ready
		c.unacked += n.Unacked
		c.consumers += n.Consumers
		if n.Ready > 0 && n.Consumers == 0 {
			c.idle++
		}
	}
	return c
}
