package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

// A tally is what a counter was at a time, by which a rate is known the next time.
type tally struct {
	in, out int64
	at      time.Time
}

// metaRow says what a list lacks.
type metaRow struct {
	More    int      `json:"more"`
	Missing []string `json:"missing"`
	Errors  []string `json:"errors,omitempty"`
}

// connectionRow is a live connection.
type connectionRow struct {
	Node      string `json:"node"`
	ID        uint64 `json:"id"`
	Account   string `json:"account"`
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	Listener  string `json:"listener"`
	Remote    string `json:"remote"`
	Started   int64  `json:"started"`
	InRate    int64  `json:"in_rate"`
	OutRate   int64  `json:"out_rate"`
	InBytes   int64  `json:"in_bytes"`
	OutBytes  int64  `json:"out_bytes"`
	Pending   int    `json:"pending,omitempty"`
	RoundTrip int64  `json:"rtt_us,omitempty"`
}

func connectionsPoller() poller {
	before := map[string]tally{}
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		found, err := feedOf(ctx).client(nc).Connections(ctx, admin.ConnectionsRequest{})
		if err != nil {
			return nil, err
		}
		out, now := rows{}, map[string]tally{}
		out.put("meta", metaRow{More: found.More, Missing: found.Missing})
		for _, c := range found.Connections {
			key := fmt.Sprintf("connection:%s/%s/%d", c.Node, c.Kind, c.ID)
			row := connectionRow{
				Node: c.Node, ID: c.ID, Account: c.Account, Name: c.Name, Kind: c.Kind, Listener: cmp.Or(c.Listener, "nats"), Remote: c.Remote, Started: milli(c.Started),
				InBytes: c.InBytes, OutBytes: c.OutBytes, Pending: c.Pending, RoundTrip: coarse(c.RoundTrip),
			}
			now[key] = tally{c.InBytes, c.OutBytes, found.Time}
			if b, ok := before[key]; ok {
				if took := found.Time.Sub(b.at).Seconds(); took > 0 {
					row.InRate, row.OutRate = coarseNumber(int64(float64(c.InBytes-b.in)/took)), coarseNumber(int64(float64(c.OutBytes-b.out)/took))
				}
			}
			out.put(key, row)
		}
		before = now
		return out, nil
	}
}

// topPoller measures the accounts for a second.
func topPoller() poller {
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		top, err := feedOf(ctx).client(nc).Top(ctx, admin.TopRequest{Interval: time.Second})
		if err != nil {
			return nil, err
		}
		out := rows{}
		out.put("meta", metaRow{Missing: top.Missing, Errors: top.Errors})
		// The time is in each row, so that a graph has a point for each second.
		out.put("at", top.Time.UnixMilli())
		for _, r := range top.Rates {
			out.put("rate:"+r.Name, r)
		}
		return out, nil
	}
}

// accountRow is an account as the fleet agrees on it.
type accountRow struct {
	Name    string             `json:"name"`
	Users   int                `json:"users"`
	Limits  identity.Limits    `json:"limits"`
	Exports []admin.ExportInfo `json:"exports,omitempty"`
	Imports []admin.ImportInfo `json:"imports,omitempty"`
}

func accountsPoller() poller {
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		all, err := feedOf(ctx).client(nc).AccountsBrief(ctx)
		if err != nil {
			return nil, err
		}
		out := rows{}
		for _, a := range all {
			out.put("account:"+a.Name, accountRow{Name: a.Name, Users: a.Users, Limits: a.Limits})
		}
		return out, nil
	}
}

// streamRow is a stream, without what is in it.
type streamRow struct {
	admin.StreamInfo
	Last int64 `json:"last"`
	// Rate is messages a second that came, Lag the most that waits for a reader, and
	// Behind what the copy lacks that is furthest behind.
	Rate   float64 `json:"rate"`
	Lag    uint64  `json:"lag"`
	Behind uint64  `json:"behind"`
}

func streamsPoller() poller {
	before := map[string]tally{}
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		found, err := feedOf(ctx).client(nc).Streams(ctx, admin.StreamsRequest{})
		if err != nil {
			return nil, err
		}
		return streamRows(found, before), nil
	}
}

func streamRows(found admin.Streams, before map[string]tally) rows {
	out, now := rows{}, time.Now()
	out.put("meta", metaRow{More: found.More, Missing: found.Missing})
	for _, s := range found.Streams {
		key := "stream:" + s.Account + "/" + s.Name
		row := streamRow{StreamInfo: s, Last: milli(s.Last)}
		for _, r := range s.Readers {
			row.Lag = max(row.Lag, r.Pending+uint64(max(r.AckPending, 0)))
		}
		for _, c := range s.Copies {
			row.Behind = max(row.Behind, c.Lag)
		}
		if b, ok := before[key]; ok && now.After(b.at) {
			row.Rate = float64(coarseNumber(int64(10*float64(int64(s.LastSeq)-b.in)/now.Sub(b.at).Seconds()))) / 10
		}
		before[key] = tally{in: int64(s.LastSeq), at: now}
		out.put(key, row)
	}
	return out
}

// ownStreams is how many streams of its own account a user is shown, and ownReaders of
// how many of them the readers.
const ownStreams, ownReaders = 1000, 50

// ownStreamsPoller shows a user the streams of its account, by the engine's own API.
func ownStreamsPoller(account string) func() poller {
	return func() poller {
		before := map[string]tally{}
		return func(ctx context.Context, nc *nats.Conn) (rows, error) {
			js, err := jetstream.New(nc)
			if err != nil {
				return nil, err
			}
			var found admin.Streams
			lister := js.ListStreams(ctx)
			for i := range lister.Info() {
				if len(found.Streams) >= ownStreams {
					found.More++
					continue
				}
				one := admin.StreamInfo{
					Account: account, Name: i.Config.Name, Subjects: i.Config.Subjects, Storage: strings.ToLower(i.Config.Storage.String()), Messages: i.State.Msgs, Bytes: i.State.Bytes,
					MaxBytes: max(i.Config.MaxBytes, 0), FirstSeq: i.State.FirstSeq, LastSeq: i.State.LastSeq, Last: i.State.LastTime, Replicas: i.Config.Replicas, Consumers: i.State.Consumers,
				}
				if c := i.Cluster; c != nil {
					one.Leader = c.Leader
					for _, r := range c.Replicas {
						one.Copies = append(one.Copies, admin.Copy{Node: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag})
					}
				}
				found.Streams = append(found.Streams, one)
			}
			if err := lister.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
				return nil, err
			}
			for i := range found.Streams[:min(len(found.Streams), ownReaders)] {
				addReaders(ctx, js, &found.Streams[i])
			}
			return streamRows(found, before), nil
		}
	}
}

// addReaders adds the consumers of a stream, as far as they may be seen.
func addReaders(ctx context.Context, js jetstream.JetStream, one *admin.StreamInfo) {
	if one.Consumers == 0 {
		return
	}
	stream, err := js.Stream(ctx, one.Name)
	if err != nil {
		return
	}
	for c := range stream.ListConsumers(ctx).Info() {
		r := admin.ConsumerInfo{Name: c.Name, Pending: c.NumPending, AckPending: c.NumAckPending, Redelivered: c.NumRedelivered}
		if c.Delivered.Last != nil {
			r.Active = *c.Delivered.Last
		}
		one.Readers = append(one.Readers, r)
	}
	slices.SortFunc(one.Readers, func(a, b admin.ConsumerInfo) int { return cmp.Compare(b.Pending, a.Pending) })
	one.Readers = one.Readers[:min(len(one.Readers), 20)]
}

// certRow is a certificate, over all its generations.
type certRow struct {
	Account    string   `json:"account"`
	ID         string   `json:"id"`
	Group      string   `json:"group"`
	Names      []string `json:"names"`
	NotAfter   int64    `json:"not_after,omitempty"`
	Renews     int64    `json:"renews,omitempty"`
	Generation uint64   `json:"generation"`
	Wave       string   `json:"wave,omitempty"`
	Failure    string   `json:"failure,omitempty"`
	Targets    int      `json:"targets"`
	Current    int      `json:"current"`
	Pending    int      `json:"pending"`
	Failed     int      `json:"failed"`
	Away       int      `json:"away"`
	Details    []string `json:"details,omitempty"`
}

// targetRow is a load balancer.
type targetRow struct {
	Account string `json:"account"`
	Group   string `json:"group"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Why     string `json:"why,omitempty"`
	Fix     string `json:"fix,omitempty"`
	Joined  int64  `json:"joined,omitempty"`
}

func certsPoller() poller {
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		all, err := feedOf(ctx).client(nc).AccountsBrief(ctx)
		if err != nil {
			return nil, err
		}
		out, meta := rows{}, metaRow{Missing: []string{}}
		var mu sync.Mutex
		var asked sync.WaitGroup
		busy := make(chan struct{}, 8)
		for _, a := range all {
			if !a.Certificates { // asking would make managers for it
				continue
			}
			busy <- struct{}{}
			asked.Go(func() {
				defer func() { <-busy }()
				c := certmanager.NewAdminClient(nc, a.Name)
				status, err := c.Status(ctx, certmanager.StatusRequest{})
				targets, err2 := c.Targets(ctx, "")
				mu.Lock()
				defer mu.Unlock()
				if err := errors.Join(err, err2); err != nil {
					what, _ := tell(err)
					meta.Errors = append(meta.Errors, a.Name+": "+what)
				}
				certRows(out, a.Name, status, targets)
			})
		}
		asked.Wait()
		slices.Sort(meta.Errors)
		out.put("meta", meta)
		return out, nil
	}
}

func certRows(out rows, account string, status certmanager.Status, targets []certmanager.TargetInfo) {
	failed := map[string]string{}
	for _, c := range status.Certificates {
		row := certRow{
			Account: account, ID: c.ID, Group: c.Group, Names: c.Names, NotAfter: milli(c.NotAfter), Renews: milli(c.Renews), Generation: c.Generation,
			Targets: c.Targets, Current: c.Current, Pending: c.Pending, Failed: c.Failed, Away: c.Away, Details: c.Details,
		}
		if c.Wave != nil {
			row.Wave = fmt.Sprintf("generation %d is rolled out in waves", c.Generation)
		}
		if c.Failure != nil {
			row.Failure = fmt.Sprint(c.Failure.Problem)
		}
		for _, d := range c.Details {
			name, why, _ := strings.Cut(d, ": ")
			failed[c.Group+"/"+name] = why
		}
		out.put("cert:"+account+"/"+c.ID, row)
	}
	for _, t := range targets {
		row := targetRow{Account: account, Group: t.Group, Name: t.Name, State: stateUp, Joined: milli(t.Joined)}
		switch why := failed[t.Group+"/"+t.Name]; {
		case t.State == "removed":
			continue
		case t.State == "invited":
			row.State, row.Why, row.Fix = stateUnknown, "it was invited and has not enrolled yet", "fleetbus target enroll, on its machine"
		case why != "":
			row.State, row.Why, row.Fix = statePartly, why, "look at its log, and at fleetbus cert status"
		case !t.Present:
			row.State, row.Why, row.Fix = stateDown, "it does not answer, and goes on serving what it has", "start fleetbus target run there, or look at its network"
		}
		out.put("target:"+account+"/"+t.Group+"/"+t.Name, row)
	}
	for i, f := range status.Findings {
		if f.Severity > doctor.Info {
			out.put(fmt.Sprintf("finding:%s/%04d", account, i), f)
		}
	}
}

// noticesKept is how many changes of the last time are shown.
const noticesKept = 100

// noticeRow is a change that was told of: where, and never what.
type noticeRow struct {
	At     int64  `json:"at"`
	Source string `json:"source"`
	Key    string `json:"key"`
	Bytes  int    `json:"bytes"`
}

// noticesPoller shows the keys of what changes, from the time on that somebody looks.
func noticesPoller() poller {
	var mu sync.Mutex
	var sub *nats.Subscription
	var on *nats.Conn
	var kept []noticeRow
	var first int
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		if on != nc {
			// A subscription ends with the connection of whoever it was made for.
			if sub != nil {
				_ = sub.Unsubscribe()
			}
			made, err := nc.Subscribe("change.>", func(msg *nats.Msg) {
				_, rest, _ := strings.Cut(msg.Subject, ".")
				source, key, _ := strings.Cut(rest, ".")
				mu.Lock()
				defer mu.Unlock()
				kept = append(kept, noticeRow{At: time.Now().UnixMilli(), Source: source, Key: key, Bytes: len(msg.Data)})
				if over := len(kept) - noticesKept; over > 0 {
					kept, first = kept[over:], first+over
				}
			})
			if err != nil {
				return nil, err
			}
			sub, on = made, nc
			// It ends with the feed, too, while the connection goes on.
			context.AfterFunc(feedOf(ctx).ctx, func() { _ = made.Unsubscribe() })
			return rows{}, nc.FlushWithContext(ctx)
		}
		mu.Lock()
		defer mu.Unlock()
		out := rows{}
		for i, n := range kept {
			out.put(fmt.Sprintf("notice:%09d", first+i), n)
		}
		return out, nil
	}
}
