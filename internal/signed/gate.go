package signed

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/lease"
	"github.com/fleetbus/fleetbus/metrics"
	"github.com/fleetbus/fleetbus/signing"
)

const (
	// check is how often a node looks for accounts whose messages are to be verified.
	check = time.Second
	// pause is how long a node leaves an account to others that it could not serve.
	pause = time.Second
	// underWay is how many messages of an account wait to be verified here, and together
	// how many of them at most are written down at once.
	underWay, together = 4096, 512
	// window and ahead are those of signing.Options.
	window, ahead = 2 * time.Minute, 5 * time.Second
	// tellEvery is how often the operator is told of refusals of one sort.
	tellEvery = 10 * time.Second
	// service is the name of the connections that verify.
	service = "signing"
)

// A Host is the node that verifies.
type Host struct {
	Node string
	// Conn is in the account that keeps the leases, from when Run is called.
	Conn func() *nats.Conn
	// Accounts are those of the fleet.
	Accounts func() []identity.Account
	// Signer is identity.Directory.KeySigner.
	Signer func(account, key string, now time.Time) (identity.Principal, time.Time, error)
	// Open connects to the account of a principal, and says how that ends.
	Open func(p identity.Principal) (conn *nats.Conn, end func(), err error)
	// Failed is told what is wrong, nil when nothing is. Tell tells of an event.
	Failed func(what string, err error)
	Tell   func(admin.Event)
	Logger *slog.Logger
}

// Gates are those of a node. New makes them; they are safe for concurrent use.
type Gates struct {
	Host
	mu       sync.Mutex
	accepted uint64
	refused  map[string]uint64 // by reason
}

// New makes the gates of a node, which do nothing before Run.
func New(h Host) *Gates { return &Gates{Host: h, refused: map[string]uint64{}} }

// Metrics implements metrics.Source: messages that this node accepted, and refused by
// reason.
func (g *Gates) Metrics(context.Context) []metrics.Sample {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []metrics.Sample{metrics.Of("fleetbus_signed_messages_total", float64(g.accepted), "accepted")}
	for _, r := range reasons() {
		if n := g.refused[r]; n > 0 {
			all = append(all, metrics.Of("fleetbus_signed_messages_total", float64(n), r))
		}
	}
	return all
}

// Run verifies for each account that wants it and that no other node serves, until ctx
// is done.
func (g *Gates) Run(ctx context.Context) {
	running := map[string]context.CancelFunc{} // by the public key of the account
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(check)
	defer tick.Stop()
	for {
		wanted := map[string]bool{}
		for _, a := range g.Accounts() {
			if a.Signing == identity.SigningOff || a.Guest() {
				continue
			}
			wanted[a.Public] = true
			if running[a.Public] == nil {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				running[a.Public] = cancel
				all.Go(func() { g.keep(ctx, a) })
			}
		}
		for public, cancel := range running {
			if !wanted[public] {
				cancel()
				delete(running, public)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keep verifies for an account whenever this node has its lease.
func (g *Gates) keep(ctx context.Context, a identity.Account) {
	what := "signatures of " + a.Name
	defer g.Failed(what, nil)
	for ctx.Err() == nil {
		err := g.hold(ctx, a, what)
		if ctx.Err() != nil {
			return
		}
		g.Failed(what, err)
		g.Logger.Warn("signatures are not verified here for a while", "account", a.Name, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (g *Gates) hold(ctx context.Context, a identity.Account, what string) error {
	js, err := jetstream.New(g.Conn())
	if err != nil {
		return err
	}
	leases, err := lease.Open(ctx, js, lease.Options{})
	if err != nil {
		return err
	}
	return leases.Hold(ctx, "signing."+a.ID, g.Node, nil, func(ctx context.Context) error {
		t := &tenure{Gates: g, account: a, told: map[string]*telling{}, order: make(chan *item, underWay), work: make(chan *item, underWay)}
		j, err := openJournal(ctx, js, a.ID)
		if err != nil {
			return err
		}
		t.journal = j
		g.Failed(what, nil)
		return t.run(ctx)
	})
}

// A tenure is one time that this node has the lease of an account.
type tenure struct {
	*Gates
	account     identity.Account
	journal     *journal
	verifier    *signing.Verifier
	conn        *nats.Conn
	order, work chan *item
	told        map[string]*telling // of the one that decides
}

// telling is what the operator was told of refusals of one sort.
type telling struct {
	last  time.Time
	count int // since then
}

// item is a message that is to be verified, or a question for one.
type item struct {
	msg   *nats.Msg
	asked bool // by a protocol, which publishes it
	done  chan struct{}

	// What follows is known when done is closed.
	subject string
	who     string
	use     signing.Use
	err     error
}

// run verifies until ctx is done, or it cannot go on.
func (t *tenure) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.verifier = signing.NewVerifier(t.account.Public, holder{t}, signing.Options{Window: window, Ahead: ahead, Since: t.journal.since})
	everything := identity.Rule{Allow: []string{">"}}
	conn, end, err := t.Open(identity.Principal{
		Account: t.account.Name, Name: service, Kind: identity.KindService,
		Permissions: identity.Permissions{Publish: everything, Subscribe: identity.Rule{Allow: []string{identity.SignedPrefix + ">", identity.SigningKeys, checkSubject}}},
	})
	if err != nil {
		return err
	}
	t.conn = conn
	closed := conn.StatusChanged(nats.CLOSED)
	var all sync.WaitGroup
	defer all.Wait()
	defer end()
	defer cancel(nil)
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() { t.verify(ctx) })
	}
	all.Go(func() { cancel(t.decide(ctx)) })
	take := func(asked bool) nats.MsgHandler {
		return func(msg *nats.Msg) {
			i := &item{msg: msg, asked: asked, done: make(chan struct{})}
			for _, to := range []chan *item{t.order, t.work} {
				select {
				case to <- i:
				case <-ctx.Done():
					return
				}
			}
		}
	}
	// The queue is for regions: each asks its own node.
	for subject, handler := range map[string]nats.MsgHandler{identity.SignedPrefix + ">": take(false), checkSubject: take(true), identity.SigningKeys: t.tellKey} {
		if _, err := conn.QueueSubscribe(subject, service, handler); err != nil {
			return fmt.Errorf("subscribing to %q: %w", subject, err)
		}
	}
	t.Logger.Info("signatures are verified here", "account", t.account.Name)
	select {
	case <-ctx.Done():
	case <-closed:
		cancel(nats.ErrConnectionClosed)
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// holder finds users by their keys.
type holder struct{ t *tenure }

// Find finds the user with key among those of the account.
func (h holder) Find(_ context.Context, key string) (signing.Principal, error) {
	p, expires, err := h.t.signer(key)
	if err != nil {
		return signing.Principal{}, fmt.Errorf("%w: %w", signing.ErrUnknownKey, err)
	}
	return signing.Principal{Name: p.Name, Expires: expires}, nil
}

// signer is who signs with a key, by its name in signatures.
func (t *tenure) signer(key string) (identity.Principal, time.Time, error) {
	if hash, ok := signing.KeyHash(key); ok {
		key = hash
	}
	return t.Signer(t.account.Name, key, time.Now())
}

// verify verifies one item after another.
func (t *tenure) verify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case i := <-t.work:
			i.err = t.judge(ctx, i)
			close(i.done)
		}
	}
}

// judge says why an item is refused, but for what was used before.
func (t *tenure) judge(ctx context.Context, i *item) error {
	var q question
	if i.asked {
		if err := json.Unmarshal(i.msg.Data, &q); err != nil || len(q.Sum) != sha256.Size {
			return errSubject
		}
	} else {
		q.Subject = strings.TrimPrefix(i.msg.Subject, identity.SignedPrefix)
		q.Right = q.Subject
		sum := sha256.Sum256(i.msg.Data)
		q.Sum = sum[:]
		values := i.msg.Header[signing.Header]
		if len(values) > 1 {
			return signing.ErrMalformed
		}
		if len(values) == 1 {
			q.Signature = values[0]
		}
	}
	i.subject = q.Subject
	switch reply := i.msg.Reply; {
	case !literal(q.Right), strings.HasPrefix(q.Right, identity.SignedPrefix), strings.HasPrefix(q.Right, identity.Private):
		return errSubject
	case reply != "" && !strings.HasPrefix(reply, "_INBOX.") && !strings.HasPrefix(reply, "_R_."):
		// Whoever answers would publish there what nobody signed.
		return errReply
	}
	p, use, err := t.verifier.Check(ctx, q.Signature, q.Subject, [sha256.Size]byte(q.Sum))
	if err != nil {
		return err
	}
	i.who, i.use = p.Name, use
	sig, err := signing.Parse(q.Signature)
	if err != nil {
		return err
	}
	who, _, err := t.signer(sig.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", signing.ErrUnknownKey, err)
	}
	if !who.Permissions.Publish.Allows(q.Right) {
		return fmt.Errorf("%w: %q has no permission to publish to %q", errForbidden, who.Name, clip(q.Right))
	}
	return nil
}

// literal reports whether messages can be published to a subject, which is no pattern.
func literal(subject string) bool {
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || token == "*" || token == ">" {
			return false
		}
	}
	return true
}

// decide takes what was verified in the order in which it came: what was not used before
// is written down, and then passed on.
func (t *tenure) decide(ctx context.Context) error {
	for {
		batch, ok := t.next(ctx)
		if !ok {
			return context.Cause(ctx)
		}
		var uses []signing.Use
		for _, i := range batch {
			if i.err == nil {
				i.err = t.journal.memory.Use(i.use, time.Now())
			}
			if i.err == nil {
				uses = append(uses, i.use)
			}
		}
		failed := t.journal.write(ctx, uses)
		for _, i := range batch {
			if i.err == nil && failed != nil {
				i.err = fmt.Errorf("%w: %w", ErrUnavailable, failed)
			}
			t.finish(i)
		}
		if failed != nil {
			return failed
		}
	}
}

// next is what waits to be decided, at least one.
func (t *tenure) next(ctx context.Context) (batch []*item, ok bool) {
	take := func(i *item) bool {
		select {
		case <-i.done:
			batch = append(batch, i)
			return true
		case <-ctx.Done():
			return false
		}
	}
	select {
	case i := <-t.order:
		if !take(i) {
			return nil, false
		}
	case <-ctx.Done():
		return nil, false
	}
	for len(batch) < together {
		select {
		case i := <-t.order:
			if !take(i) {
				return nil, false
			}
		default:
			return batch, true
		}
	}
	return batch, true
}

// finish passes a message on, or tells who sent it why not.
func (t *tenure) finish(i *item) {
	confirm := i.asked
	if i.err == nil && !i.asked {
		confirm = i.msg.Header.Get(signing.ConfirmHeader) != ""
		i.msg.Header.Del(signing.ConfirmHeader)
		out := &nats.Msg{Subject: i.subject, Reply: i.msg.Reply, Header: i.msg.Header, Data: i.msg.Data}
		if confirm {
			out.Reply = ""
		}
		i.err = t.conn.PublishMsg(out)
	}
	t.count(i)
	switch {
	case i.msg.Reply == "", i.err == nil && !confirm, errors.Is(i.err, errReply):
		return
	case i.err != nil:
		_ = i.msg.RespondMsg(refusing(i.err)) // the connection is gone, or the sender waits in vain
	default:
		_ = i.msg.Respond(nil)
	}
}

// count counts an item, and tells the operator now and then why some were refused.
func (t *tenure) count(i *item) {
	t.mu.Lock()
	if i.err == nil {
		t.accepted++
		t.mu.Unlock()
		return
	}
	why := reason(i.err)
	t.refused[why]++
	t.mu.Unlock()
	told := t.told[why]
	if told == nil {
		told = &telling{}
		t.told[why] = told
	}
	told.count++
	if time.Since(told.last) < tellEvery {
		return
	}
	ev := admin.Event{Kind: admin.EventUnsigned, Account: t.account.Name, Reason: i.err.Error(), Count: told.count}
	if i.who != "" {
		ev.Principal = t.account.Name + "/" + i.who
	}
	t.Logger.Warn("messages were refused for their signatures", "account", ev.Account, "principal", ev.Principal, "subject", clip(i.subject), "error", i.err, "count", told.count)
	t.Tell(ev)
	told.last, told.count = time.Now(), 0
}

// clip is what a subject is logged as.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}

// tellKey tells whose a key is.
func (t *tenure) tellKey(msg *nats.Msg) {
	if msg.Reply == "" {
		return
	}
	answer := signing.KeyAnswer{Audience: t.account.Public}
	if p, expires, err := t.signer(string(msg.Data)); err != nil {
		answer.Unknown = true
	} else {
		answer.Name, answer.Expires = p.Name, expires
	}
	data, err := json.Marshal(answer)
	if err == nil {
		err = msg.Respond(data)
	}
	if err != nil {
		t.Logger.Debug("a sender could not be answered", "error", err)
	}
}
