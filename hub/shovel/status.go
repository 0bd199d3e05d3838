package shovel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
)

// snapshot is the view of a route, of this moment.
func (r *route) snapshot() view {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view
}

// here reports whether this node has the link, or gave it up a moment ago and tries again.
func (l *Link) here() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds || time.Since(l.away) < tries
}

// Beside is how the link stands, beside the mesh.
func (l *Link) Beside() admin.Hub {
	h := admin.Hub{Account: l.o.Account, Server: redacted(l.o.Remote.URL), State: admin.HubStandby, Peers: []admin.HubPeer{}}
	here := l.here()
	if here {
		h.State = admin.HubConnected
	}
	for _, r := range l.routes {
		v := r.snapshot()
		one := admin.HubLink{Name: r.name(), State: admin.HubStandby, Moved: v.moved, Returned: v.returned, Refused: v.nacked, Again: v.again, Looped: v.looped, Parked: v.parked, Blocked: v.blocked}
		if here {
			one.State = admin.HubConnected
			if !v.up || v.illFor() > pending {
				one.State, h.State = admin.HubNotConnected, admin.HubNotConnected
			}
			if v.err != nil && one.State != admin.HubConnected {
				one.Error = v.err.Error()
				h.Error = one.Name + ": " + one.Error
			}
		}
		h.Links = append(h.Links, one)
		if r.out {
			h.Sent += v.moved
		} else {
			h.Received += v.moved
		}
		h.Dropped += v.looped
	}
	return h
}

// Check lists what is wrong with the link.
func (l *Link) Check(context.Context) []doctor.Finding {
	var all []doctor.Finding
	add := func(code string, severity doctor.Severity, fix, format string, args ...any) {
		all = append(all, doctor.Finding{Code: code, Severity: severity, Subject: "hub " + l.o.Account, Text: fmt.Sprintf(format, args...), Fix: fix})
	}
	for _, e := range []struct {
		t    target
		what string
	}{{l.remote, "hub.servers"}, {l.local, "hub.local"}} {
		if !e.t.tls && !isLoopback(e.t.host) {
			add("HUB-PLAINTEXT", doctor.Warning, "use amqps:// in "+e.what, "the way to the broker at %s is without TLS", e.t.addr)
		}
	}
	here := l.here()
	for _, r := range l.routes {
		v := r.snapshot()
		if ill := v.illFor(); here && ill > handOver {
			why := "it is not up yet"
			if v.err != nil {
				why = v.err.Error()
			}
			add("HUB-LINK-DOWN", doctor.Problem, fixFor(v.err), "link %q moves nothing since %v: %s", r.name(), ill.Round(time.Second), why)
		}
		if v.parked > 0 {
			add("HUB-LINK-PARKED", doctor.Warning, "look at queue "+l.o.Park+" of the side that they are from; raise limits.payload, or the broker's max_message_size",
				"%d messages of link %q could not pass, and were put aside", v.parked, r.name())
		}
	}
	return all
}

func fixFor(err error) string {
	switch {
	case errors.Is(err, errReturned):
		return "make the queue there, or bind one to the exchange with the key that messages have"
	case errors.Is(err, errNacked):
		return "consume from the queue there, or raise its bound"
	}
	return "look at both brokers, the user's rights there, and the log of the node that has the link"
}
