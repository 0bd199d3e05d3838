package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// EventKind says what an Event is about.
type EventKind string

// The kinds of events. There are no others.
const (
	// EventConnect: a principal came in.
	EventConnect EventKind = "connect"
	// EventDisconnect: its connection ended, by itself or not.
	EventDisconnect EventKind = "disconnect"
	// EventRefused: somebody was not let in.
	EventRefused EventKind = "refused"
	// EventLimit: an account, a connection or the node itself is at a limit.
	EventLimit EventKind = "limit"
	// EventDenied: a denial or a removal closed connections.
	EventDenied EventKind = "denied"
	// EventSlow: a connection was closed because its client did not read.
	EventSlow EventKind = "slow"
	// EventLeaf, EventRoute and EventGateway: a link to a site, to another node or to
	// another cluster is up or down.
	EventLeaf    EventKind = "leaf"
	EventRoute   EventKind = "route"
	EventGateway EventKind = "gateway"
	// EventProvision: a machine that nobody knew asked for an identity. State is granted,
	// denied or pending.
	EventProvision EventKind = "provision"
	// EventUnsigned: messages were refused for their signatures, Count of them.
	EventUnsigned EventKind = "unsigned"
	// EventDropped: the node could not tell of everything.
	EventDropped EventKind = "dropped"
)

// EventKinds are all kinds.
func EventKinds() []EventKind {
	return []EventKind{EventConnect, EventDisconnect, EventRefused, EventLimit, EventDenied, EventSlow, EventLeaf, EventRoute, EventGateway, EventProvision, EventUnsigned, EventDropped}
}

// The states of a link.
const (
	LinkUp   = "up"
	LinkDown = "down"
)

// An Event is something that happened on one node, told once, by that node. Events
// are not stored: who is not there misses them. They hold no secret.
type Event struct {
	Kind EventKind `json:"kind"`
	// Time is when the node learned of it, by its clock.
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Account that it is about; empty for strangers and for what belongs to nobody.
	Account string `json:"account,omitempty"`
	// Principal is account/name: who it is, or, of a refusal, who it says it is.
	Principal string `json:"principal,omitempty"`
	// Listener that the client came in by, and its address, with a port if it is
	// known.
	Listener string `json:"listener,omitempty"`
	Address  string `json:"address,omitempty"`
	// Reason is why, as an operator may know it. Of the end of a connection it is in
	// the engine's words.
	Reason string `json:"reason,omitempty"`
	// State of a link, LinkUp or LinkDown, and the Peer at its other end.
	State string `json:"state,omitempty"`
	Peer  string `json:"peer,omitempty"`
	// Count of the connections that a denial closed, or of the events dropped, or of the
	// messages refused.
	Count int `json:"count,omitempty"`
	// Duration of a connection that ended, and what came in from its client and went
	// out to it.
	Duration time.Duration `json:"duration_ns,omitempty"`
	InMsgs   int64         `json:"in_msgs,omitempty"`
	OutMsgs  int64         `json:"out_msgs,omitempty"`
	InBytes  int64         `json:"in_bytes,omitempty"`
	OutBytes int64         `json:"out_bytes,omitempty"`
}

// NoAccount stands for an empty account in the subjects of events.
const NoAccount = "-"

// Subject is where e is published, in the fleet's account.
func (e Event) Subject() string {
	account := e.Account
	if account == "" {
		account = NoAccount
	}
	return identity.EventsPrefix + account + "." + string(e.Kind)
}

// An EventWatch is a subscription to events. Make one with WatchEvents.
type EventWatch struct {
	// Messages hold an event each: see DecodeEvent. They are in the order in which
	// each node told of them.
	Messages <-chan *nats.Msg

	subs []*nats.Subscription
}

const (
	// eventsWaiting is how many events may wait for a watcher.
	eventsWaiting = 1 << 16
	// administratorTimeout is how long the fleet may take to show that it takes a
	// connection for an administrator's.
	administratorTimeout = 2 * time.Second
)

// WatchEvents subscribes to the events of kinds, or of all if there are none. What
// was dropped is told in any case. Over the connection of an administrator they are
// those of account, NoAccount and identity.FleetName among them, or of all accounts
// if it is empty; over the connection of an auditor they are those of its own
// account, and account is to be empty. It returns when the server knows of the
// subscription. The error wraps nats.ErrPermissionViolation if the connection may
// see no events.
func WatchEvents(ctx context.Context, nc *nats.Conn, account string, kinds []EventKind) (*EventWatch, error) {
	role, known := roleOf(nc)
	if role != identity.RoleAdmin {
		w, err := watchEvents(ctx, nc, identity.AccountEvents, kinds)
		if err == nil && account != "" {
			w.Stop()
			return nil, Errorf(Invalid, "leave the account out", "an auditor sees the events of its own account alone")
		}
		if known || !errors.Is(err, nats.ErrPermissionViolation) {
			return w, err
		}
		// In any other account the subject below is its users' own.
		ctx, cancel := context.WithTimeout(ctx, administratorTimeout)
		defer cancel()
		if _, adminErr := New(nc).Roles(ctx); adminErr != nil {
			return nil, err
		}
	}
	if account == "" {
		account = "*"
	}
	return watchEvents(ctx, nc, identity.EventsPrefix+account+".", kinds)
}

// roleOf is the role of the creds file that the connection was made with. Of one
// that was made with a certificate or a password it is not known.
func roleOf(nc *nats.Conn) (role string, known bool) {
	if nc.Opts.UserJWT == nil {
		return "", false
	}
	token, err := nc.Opts.UserJWT()
	if err != nil {
		return "", false
	}
	role, err = identity.RoleOfJWT(token)
	return role, err == nil && role != ""
}

func watchEvents(ctx context.Context, nc *nats.Conn, prefix string, kinds []EventKind) (_ *EventWatch, err error) {
	subjects := []string{prefix + "*"}
	if len(kinds) > 0 {
		subjects = subjects[:0]
		for _, k := range append(slices.Clone(kinds), EventDropped) {
			if s := prefix + string(k); !slices.Contains(subjects, s) {
				subjects = append(subjects, s)
			}
		}
	}
	messages := make(chan *nats.Msg, eventsWaiting)
	w := &EventWatch{Messages: messages}
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	for _, s := range subjects {
		sub, err := nc.ChanSubscribe(s, messages)
		if err != nil {
			return nil, fmt.Errorf("subscribing to events: %w", err)
		}
		w.subs = append(w.subs, sub)
	}
	if err := nc.FlushWithContext(ctx); err != nil {
		return nil, fmt.Errorf("subscribing to events: %w", err)
	}
	if err := nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+prefix) {
		return nil, fmt.Errorf("subscribing to events: %w", err)
	}
	return w, nil
}

// Missed counts the events that came while too many waited already.
func (w *EventWatch) Missed() int {
	missed := 0
	for _, s := range w.subs {
		// It is an error of a subscription that has ended, and misses nothing.
		n, _ := s.Dropped()
		missed += n
	}
	return missed
}

// Stop ends the subscription.
func (w *EventWatch) Stop() {
	for _, s := range w.subs {
		_ = s.Unsubscribe() // the connection may be closed, which is as good
	}
}

// DecodeEvent reads the event in a message of a watch. A newer node may tell of
// kinds and fields that this version does not know.
func DecodeEvent(msg *nats.Msg) (Event, error) {
	var e Event
	if err := json.Unmarshal(msg.Data, &e); err != nil {
		return Event{}, fmt.Errorf("reading an event: %w", err)
	}
	return e, nil
}
