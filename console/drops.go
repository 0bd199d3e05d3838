package console

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// dropsKept bounds how many reasons are told apart.
const dropsKept = 200

// dropRow is why somebody was not let in, lost its connection or was told less, and how
// often since somebody looks.
type dropRow struct {
	Kind     string `json:"kind"`
	Account  string `json:"account"`
	Listener string `json:"listener"`
	Reason   string `json:"reason"`
	Count    int    `json:"count"`
	Last     int64  `json:"last"`
	// Who it was the last time, and at which node.
	Who  string `json:"who"`
	Node string `json:"node"`
}

// drops counts what events tell of, by reason.
type drops struct {
	mu    sync.Mutex
	since time.Time
	all   map[string]*dropRow
}

func (d *drops) take(msg *nats.Msg) {
	e, err := admin.DecodeEvent(msg)
	if err != nil {
		return
	}
	key := string(e.Kind) + "/" + e.Account + "/" + e.Listener + "/" + e.Reason
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.all[key]
	if one == nil {
		if len(d.all) >= dropsKept {
			d.forget()
		}
		one = &dropRow{Kind: string(e.Kind), Account: e.Account, Listener: e.Listener, Reason: e.Reason}
		d.all[key] = one
	}
	one.Count += max(1, e.Count)
	one.Last, one.Who, one.Node = e.Time.UnixMilli(), cmp.Or(e.Principal, e.Address), e.Node
}

// forget makes room for one more.
func (d *drops) forget() {
	oldest := ""
	for key, row := range d.all {
		if oldest == "" || row.Last < d.all[oldest].Last {
			oldest = key
		}
	}
	delete(d.all, oldest)
}

// dropsPoller shows what is refused and dropped, from the time on that somebody looks.
func dropsPoller() poller {
	d := &drops{all: map[string]*dropRow{}, since: time.Now()}
	var on *nats.Conn
	var subs []*nats.Subscription
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		if on != nc {
			// A subscription ends with the connection of whoever it was made for.
			for _, s := range subs {
				_ = s.Unsubscribe()
			}
			on, subs = nil, nil
			for _, kind := range []admin.EventKind{admin.EventRefused, admin.EventLimit, admin.EventSlow, admin.EventDropped} {
				made, err := nc.Subscribe(identity.EventsPrefix+"*."+string(kind), d.take)
				if err != nil {
					return nil, err
				}
				subs = append(subs, made)
				context.AfterFunc(feedOf(ctx).ctx, func() { _ = made.Unsubscribe() })
			}
			if err := nc.FlushWithContext(ctx); err != nil {
				return nil, err
			}
			on = nc
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		out := rows{}
		out.put("meta", map[string]int64{"since": d.since.UnixMilli()})
		for key, row := range d.all {
			out.put("drop:"+key, row)
		}
		return out, nil
	}
}
