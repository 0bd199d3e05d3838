package broker

import (
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
)

// An AccountMeter is what an account has and did at this server since it started.
type AccountMeter struct {
	// Account is the public key.
	Account string
	// Clients and Sites are connected, those inside the process among the clients.
	Clients, Sites int
	// ClientIn and the others are what came in from clients and sites, and went out to
	// them, without what was exchanged with other servers.
	ClientIn, ClientOut, SiteIn, SiteOut Flow
}

// Flow counts messages and their bytes.
type Flow struct{ Messages, Bytes int64 }

// AccountMeters reads the meters of all accounts.
func (b *Broker) AccountMeters() ([]AccountMeter, error) {
	z, err := b.srv.AccountStatz(&server.AccountStatzOptions{IncludeUnused: true})
	if err != nil {
		return nil, fmt.Errorf("reading the meters of accounts: %w", err)
	}
	all := make([]AccountMeter, len(z.Accounts))
	for i, a := range z.Accounts {
		m := AccountMeter{Account: a.Account, Clients: a.Conns, Sites: a.LeafNodes}
		m.ClientIn, m.SiteIn = clientsAndSites(a.Received)
		m.ClientOut, m.SiteOut = clientsAndSites(a.Sent)
		all[i] = m
	}
	return all, nil
}

// clientsAndSites tells what was exchanged with clients and with sites.
func clientsAndSites(d server.DataStats) (clients, sites Flow) {
	n := clientsOf(d)
	if d.Leafs != nil {
		sites = Flow{d.Leafs.Msgs, d.Leafs.Bytes}
	}
	return Flow{n.Msgs - sites.Messages, n.Bytes - sites.Bytes}, sites
}

// A StreamMeter is how a stream stands that this server leads, or whose consumers it
// leads.
type StreamMeter struct {
	// Account is the public key.
	Account, Name string
	// Leads says that this server leads the stream: what follows is true there alone.
	Leads           bool
	Messages, Bytes uint64
	Consumers       int
	Copies          []Member
	// Of are the consumers that this server leads.
	Of []ConsumerMeter
}

// A ConsumerMeter is how a consumer stands.
type ConsumerMeter struct {
	Name                             string
	Pending                          uint64
	AckPending, Redelivered, Waiting int
}

// StreamMeters reads the meters of streams, and, unless there are more than most of them
// on this server, of consumers: each costs the engine some locks. Uncounted says how many
// were not read.
func (b *Broker) StreamMeters(most int) (all []StreamMeter, uncounted int, err error) {
	b.claims.RLock()
	defer b.claims.RUnlock()
	o := server.JSzOptions{Accounts: true, Streams: true, Limit: 1 << 20}
	z, err := b.srv.Jsz(&o)
	if err == nil && z.Consumers <= most {
		o.Consumer = true
		z, err = b.srv.Jsz(&o)
	} else if err == nil {
		uncounted = z.Consumers
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the meters of streams: %w", err)
	}
	leads := func(c *server.ClusterInfo) bool { return c == nil || c.Leader == b.srv.Name() }
	for _, a := range z.AccountDetails {
		for _, st := range a.Streams {
			m := StreamMeter{Account: a.Id, Name: st.Name, Leads: leads(st.Cluster), Messages: st.State.Msgs, Bytes: st.State.Bytes, Consumers: st.State.Consumers}
			if st.Cluster != nil && m.Leads {
				for _, r := range st.Cluster.Replicas {
					m.Copies = append(m.Copies, Member{Name: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag, Active: r.Active})
				}
			}
			for _, c := range st.Consumer {
				if leads(c.Cluster) {
					m.Of = append(m.Of, ConsumerMeter{c.Name, c.NumPending, c.NumAckPending, c.NumRedelivered, c.NumWaiting})
				}
			}
			if m.Leads || len(m.Of) > 0 {
				all = append(all, m)
			}
		}
	}
	return all, uncounted, nil
}

// StoreMeter is what streams have and may have on this server, in bytes.
type StoreMeter struct{ File, Memory, MaxFile, MaxMemory int64 }

// StoreMeter reads the meter of the store; false if the engine has closed it.
func (b *Broker) StoreMeter() (StoreMeter, bool) {
	z, err := b.srv.Jsz(&server.JSzOptions{})
	if err != nil || z.Disabled {
		return StoreMeter{}, false
	}
	return StoreMeter{File: int64(z.Store), Memory: int64(z.Memory), MaxFile: b.opts.MaxFile, MaxMemory: b.opts.MaxMemory}, true
}

// Current reports whether this server has all that the group that agrees on streams has
// decided, as far as it knows. A leader that has lost the others says so for up to twenty
// seconds more.
func (b *Broker) Current() bool { return b.srv.JetStreamEnabled() && b.srv.JetStreamIsCurrent() }

// Enabled reports whether the engine has streams open: a disk that is full closes them.
func (b *Broker) Enabled() bool { return b.srv.JetStreamEnabled() }
