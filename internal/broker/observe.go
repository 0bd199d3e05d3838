package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fleetbus/fleetbus/admin"
)

// readersTold is how many consumers of a stream are told of.
const readersTold = 20

// Leaderless are the streams, by account and name, of which this server has a copy and
// knows no leader. The account is a public key.
func (b *Broker) Leaderless() (all [][2]string) {
	b.claims.RLock()
	defer b.claims.RUnlock()
	z, err := b.srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Limit: 1 << 20})
	if err != nil {
		return nil // there are none without JetStream
	}
	for _, a := range z.AccountDetails {
		for _, st := range a.Streams {
			if st.Cluster != nil && st.Cluster.Leader == "" {
				all = append(all, [2]string{a.Id, st.Name})
			}
		}
	}
	return all
}

// Led are the streams that this server leads, with who reads them. Their account is a
// public key. What it knows of a reader that another server leads is old; of those that it
// leads itself, of other servers' streams, it tells in read.
func (b *Broker) Led() (led, read []admin.StreamInfo, err error) {
	b.claims.RLock()
	defer b.claims.RUnlock()
	z, err := b.srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, Config: true, Limit: 1 << 20})
	if err != nil {
		return nil, nil, fmt.Errorf("listing streams: %w", err)
	}
	for _, a := range z.AccountDetails {
		for _, st := range a.Streams {
			if st.Cluster != nil && st.Cluster.Leader != b.opts.Name {
				if readers := b.readers(st.Consumer, true); len(readers) > 0 {
					read = append(read, admin.StreamInfo{Account: a.Id, Name: st.Name, Readers: readers})
				}
				continue
			}
			one := admin.StreamInfo{
				Account: a.Id, Name: st.Name, Messages: st.State.Msgs, Bytes: st.State.Bytes, FirstSeq: st.State.FirstSeq, LastSeq: st.State.LastSeq,
				Last: st.State.LastTime, Consumers: st.State.Consumers, Replicas: 1, Leader: b.opts.Name,
			}
			if c := st.Config; c != nil {
				one.Subjects, one.Storage, one.Replicas, one.MaxBytes = c.Subjects, strings.ToLower(c.Storage.String()), c.Replicas, max(c.MaxBytes, 0)
				one.MaxMessages, one.Refuses, one.Distinct = max(c.MaxMsgs, 0), c.Discard == server.DiscardNew, st.State.NumSubjects
			}
			if st.Cluster != nil {
				for _, r := range st.Cluster.Replicas {
					one.Copies = append(one.Copies, admin.Copy{Node: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag})
				}
			}
			one.Readers = b.readers(st.Consumer, false)
			led = append(led, one)
		}
	}
	return led, read, nil
}

// readers are the first of some consumers, or of those that this server leads.
func (b *Broker) readers(consumers []*server.ConsumerInfo, led bool) (all []admin.ConsumerInfo) {
	for _, c := range consumers {
		if led && (c.Cluster == nil || c.Cluster.Leader != b.opts.Name) {
			continue
		}
		one := admin.ConsumerInfo{Name: c.Name, Pending: c.NumPending, AckPending: c.NumAckPending, Redelivered: c.NumRedelivered, Created: c.Created}
		one.Temporary = c.Config != nil && c.Config.InactiveThreshold > 0
		if c.Delivered.Last != nil {
			one.Active = *c.Delivered.Last
		}
		all = append(all, one)
	}
	return first(all)
}

// first are the readers that have most to do.
func first(readers []admin.ConsumerInfo) []admin.ConsumerInfo {
	slices.SortFunc(readers, func(a, b admin.ConsumerInfo) int {
		return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(b.AckPending, a.AckPending), cmp.Compare(a.Name, b.Name))
	})
	return readers[:min(len(readers), readersTold)]
}

// MergeRead puts into streams what the leaders of their readers say of them.
func MergeRead(streams, read []admin.StreamInfo) {
	for _, r := range read {
		i := slices.IndexFunc(streams, func(s admin.StreamInfo) bool { return s.Account == r.Account && s.Name == r.Name })
		if i < 0 {
			continue
		}
		known := map[string]bool{}
		for _, c := range r.Readers {
			known[c.Name] = true
		}
		others := slices.DeleteFunc(streams[i].Readers, func(c admin.ConsumerInfo) bool { return known[c.Name] })
		streams[i].Readers = first(append(others, r.Readers...))
	}
}
