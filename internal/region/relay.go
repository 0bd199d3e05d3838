package region

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

const (
	// relaysCheck is how often a node looks for accounts that have streams on it. A node
	// that has just started may have none yet, and looks at relaysFirst, and then after
	// twice as long each time.
	relaysCheck, relaysFirst = 2 * time.Second, 50 * time.Millisecond
	// relayStays is how long a relay stays that nobody needs any more: much longer than
	// it takes until another node of the region has opened its own.
	relayStays = time.Minute
	// relayTimeout is longer than an engine waits for the answer.
	relayTimeout = 40 * time.Second
	// heardTimeout is how long it may take until a node knows what another region hears.
	heardTimeout = 2 * time.Second
	// relayed bounds the requests of one account that wait for their answers at once.
	relayed = 256
)

// RelayName is the name of the principal that a relay is.
const RelayName = "relay"

// RelayPrincipal is who hands on what is asked of the streams of a region, in an
// account.
func RelayPrincipal(account, region string) identity.Principal {
	p := identity.Principal{Account: account, Name: RelayName, Kind: identity.KindService}
	p.Permissions = identity.Permissions{
		Publish:   identity.Rule{Allow: []string{api + ">"}},
		Subscribe: identity.Rule{Allow: []string{apiOf(region) + ">", p.Inbox() + ".>"}},
		Replies:   &identity.Replies{},
	}
	return p
}

// api begins the subjects where an engine is asked for its streams, and apiOf those where
// it is asked by another region.
const api = "$JS.API."

func apiOf(region string) string { return "$JS." + region + ".API." }

// Relays are one node's answers to what other regions ask of the streams of this one: an
// engine takes such requests from its own clients alone. A node does so for the accounts
// that have streams on it, and for those of its clients. Since a stream is made by a
// client, the relay is there first; it must be, because an engine that asks for what
// nobody answers asks again after most of a minute. Make it with NewRelays.
type Relays struct {
	opts RelayOptions
	open map[string]*relay
	// many says that there were other regions when it looked last.
	many bool

	mu   sync.Mutex
	came map[string]bool
	some chan struct{}
}

// RelayOptions are what Relays are made of. All are required.
type RelayOptions struct {
	// Region is the name of this one.
	Region string
	// Many reports whether there are others.
	Many func() bool
	// Streams names the accounts that have streams on this node, and Clients those that
	// have clients. Both may name accounts that no other region has.
	Streams, Clients func() []string
	// Known reports whether other regions have the account.
	Known func(account string) bool
	// Alone reports whether the relay of an account is its only client on this node.
	Alone func(account string) bool
	// Heard reports whether another region hears a subject of the account, as far as this
	// node has been told.
	Heard func(account, subject string) bool
	// Open opens the session of a RelayPrincipal. end ends it.
	Open   func(identity.Principal) (nc *nats.Conn, end func(), err error)
	Logger *slog.Logger
}

// relay is the session in one account.
type relay struct {
	*nats.Conn
	end    func()
	wanted time.Time
}

// NewRelays makes Relays, none of them open.
func NewRelays(o RelayOptions) *Relays {
	return &Relays{opts: o, open: map[string]*relay{}, came: map[string]bool{}, some: make(chan struct{}, 1)}
}

// Came says that a client of the account came in. It does not block, and may be called
// from any goroutine.
func (r *Relays) Came(account string) {
	r.mu.Lock()
	r.came[account] = true
	r.mu.Unlock()
	select {
	case r.some <- struct{}{}:
	default:
	}
}

// Keep keeps the relays open that are needed, until ctx is done.
func (r *Relays) Keep(ctx context.Context) {
	defer func() {
		for _, one := range r.open {
			one.end()
		}
	}()
	again := relaysFirst
	tick := time.NewTimer(again)
	defer tick.Stop()
	r.look(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.some:
			r.mu.Lock()
			came := r.came
			r.came = map[string]bool{}
			r.mu.Unlock()
			if !r.opts.Many() {
				continue // look finds them
			}
			for account := range came {
				r.want(ctx, account)
			}
		case <-tick.C:
			r.look(ctx)
			again = min(2*again, relaysCheck)
			tick.Reset(again)
		}
	}
}

// look opens the relays that are missing, and closes those that nobody needs.
func (r *Relays) look(ctx context.Context) {
	had := r.many
	if r.many = r.opts.Many(); r.many {
		wanted := r.opts.Streams()
		if !had {
			wanted = append(wanted, r.opts.Clients()...)
		}
		for name := range r.open {
			if !r.opts.Alone(name) {
				wanted = append(wanted, name)
			}
		}
		for _, name := range wanted {
			r.want(ctx, name)
		}
	}
	for name, one := range r.open {
		if !r.many || !r.opts.Known(name) || one.IsClosed() || time.Since(one.wanted) > relayStays {
			one.end()
			delete(r.open, name)
		}
	}
}

// want opens the relay of an account, if it is not open.
func (r *Relays) want(ctx context.Context, account string) {
	one := r.open[account]
	if one != nil && !one.IsClosed() {
		one.wanted = time.Now()
		return
	}
	if !r.opts.Known(account) {
		return
	}
	nc, end, err := r.opts.Open(RelayPrincipal(account, r.opts.Region))
	if err == nil {
		err = r.serve(ctx, account, nc)
		if err != nil {
			end()
		}
	}
	if err != nil {
		r.opts.Logger.Warn("other regions cannot ask for the streams of an account", "account", account, "error", err)
		return
	}
	if one != nil {
		one.end()
	}
	r.open[account] = &relay{nc, end, time.Now()}
	r.opts.Logger.Info("other regions can ask for the streams of an account", "account", account)
}

// serve hands on what is asked, and the answers.
//
// The answer has to leave by the connection that the request came to. The subject of a
// reply is new, and which node of which region listens there is told on another
// connection than the request is on: an answer that leaves the engine by itself can be
// faster than that, and is then for nobody. Whereas the engine knows where a request
// came from, and sends an answer to it there, if it is from whom it gave the request to.
func (r *Relays) serve(ctx context.Context, account string, nc *nats.Conn) error {
	busy := make(chan struct{}, relayed)
	here := apiOf(r.opts.Region)
	_, err := nc.QueueSubscribe(here+">", RelayName, func(msg *nats.Msg) {
		asked := &nats.Msg{Subject: api + strings.TrimPrefix(msg.Subject, here), Header: msg.Header, Data: msg.Data}
		if msg.Reply != "" {
			select {
			case busy <- struct{}{}:
				go func() {
					defer func() { <-busy }()
					ctx, cancel := context.WithTimeout(ctx, relayTimeout)
					defer cancel()
					if oneAnswer(asked) {
						r.answer(ctx, nc, msg, asked)
						return
					}
					r.awaitHeard(ctx, account, msg.Reply)
					r.pass(nc, msg, asked)
				}()
				return
			default: // perhaps it is not too early
			}
		}
		r.pass(nc, msg, asked)
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		return fmt.Errorf("answering what is asked of streams: %w", err)
	}
	return nil
}

// pass hands on a request whose answers go to where it says, by themselves.
func (r *Relays) pass(nc *nats.Conn, msg, asked *nats.Msg) {
	asked.Reply = msg.Reply
	if err := nc.PublishMsg(asked); err != nil {
		r.opts.Logger.Debug("a request of another region was not handed on", "subject", msg.Subject, "error", err)
	}
}

// awaitHeard waits until this node knows that another region hears subject, but not for
// long: who asked may have gone.
func (r *Relays) awaitHeard(ctx context.Context, account, subject string) {
	ctx, cancel := context.WithTimeout(ctx, heardTimeout)
	defer cancel()
	for again := time.Millisecond; !r.opts.Heard(account, subject); again *= 2 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

// answer waits for the answer to what was asked.
func (r *Relays) answer(ctx context.Context, nc *nats.Conn, msg, asked *nats.Msg) {
	answer, err := nc.RequestMsgWithContext(ctx, asked)
	if err == nil {
		err = msg.RespondMsg(&nats.Msg{Header: answer.Header, Data: answer.Data})
	}
	if err != nil && ctx.Err() == nil {
		r.opts.Logger.Debug("a request of another region was not answered", "subject", msg.Subject, "error", err)
	}
}

// oneAnswer reports whether a request has one answer. Those for messages have any number,
// which have subjects of their own besides.
func oneAnswer(asked *nats.Msg) bool {
	switch what := strings.TrimPrefix(asked.Subject, api); {
	case strings.HasPrefix(what, "CONSUMER.MSG.NEXT."):
		return false
	case strings.HasPrefix(what, "DIRECT.GET."):
		var batch map[string]json.RawMessage
		if json.Unmarshal(asked.Data, &batch) != nil {
			return len(asked.Data) == 0
		}
		return batch["batch"] == nil && batch["multi_last"] == nil
	}
	return true
}
