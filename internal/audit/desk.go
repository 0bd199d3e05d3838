package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// entryTimeout is how long a request may wait for its entry.
	entryTimeout = 15 * time.Second
	// openWait is how long who asks a node waits until it has the stream.
	openWait = 2 * time.Second
	// rescueRequest cannot wait for its entry: there is no quorum to store it.
	rescueRequest = "rescue"
)

// A Handler answers a request.
type Handler = func(context.Context, *nats.Msg) (any, error)

// A Desk is where a node takes requests down. Its fields are set before it is used.
type Desk struct {
	Journal   *Journal
	Directory *identity.Directory
	Fleet     string
	// AccountName is the name of the account with that public key.
	AccountName func(public string) (string, bool)
	// Where are the addresses where a user of an account is connected now.
	Where func(ctx context.Context, account, name string) []string
	// Heads asks every node what it remembers of the journals. Missing did not answer.
	Heads func(context.Context) (heads map[string]map[string]admin.AuditHead, missing []string, err error)
	// Streams lets do work on the streams of the fleet's account.
	Streams func(do func(jetstream.JetStream) error) error
}

// recording has the records that a request changes.
type recording struct {
	mu   sync.Mutex
	list Changes
}

type recordingKey struct{}

// Changed takes down a change of the ledger: of the request that ctx is of, or of the
// node of that name by itself.
func (j *Journal) Changed(ctx context.Context, subject string, before, after []byte) {
	if r, ok := ctx.Value(recordingKey{}).(*recording); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.list.Add(subject, before, after)
		return
	}
	var list Changes
	list.Add(subject, before, after)
	j.Tell(admin.AuditEntry{
		Kind: admin.AuditWrite, Who: "node/" + j.o.Node, What: "ledger", Account: AccountOf(subject), Changes: list.All(), Result: ResultOK,
	})
}

// Auditing is a handler whose request is in the audit before it is carried out, and its
// result before it is answered. What nodes ask one another is not taken down.
func (d *Desk) Auditing(h Handler) Handler {
	return func(ctx context.Context, msg *nats.Msg) (any, error) {
		_, what := admin.ParseSubject(msg.Subject)
		ours := slices.ContainsFunc([]string{admin.Prefix, "enroll.", "renew."}, func(prefix string) bool { return strings.HasPrefix(msg.Subject, prefix) })
		who := d.Requester(msg)
		if rest, ok := strings.CutPrefix(what, "enroll."); ok {
			kind, token, _ := strings.Cut(rest, ".")
			what, who = "enroll."+kind, "token/"+token
		}
		if Reads(what) || !ours {
			return h(ctx, msg)
		}
		ctx = context.WithValue(ctx, recordingKey{}, new(recording))
		if strings.HasPrefix(what, "renew.") {
			// Each client renews every few hours: only what comes of it is told.
			out, err := h(ctx, msg)
			return out, d.end(ctx, admin.AuditEntry{Who: who, What: "renew", Account: accountOfName(who)}, 0)(err)
		}
		end, err := d.begin(ctx, who, what, accountIn(msg.Data), msg.Data)
		if err != nil {
			return nil, err
		}
		out, err := h(ctx, msg)
		return out, end(err)
	}
}

// Begin is Auditing for a request that is answered in another way: end is called with
// what came of it, and returns what whoever asked is to be told.
func (d *Desk) Begin(ctx context.Context, msg *nats.Msg, what, account string) (end func(error) error, err error) {
	if Reads(what) {
		return func(err error) error { return err }, nil
	}
	return d.begin(ctx, d.Requester(msg), what, account, msg.Data)
}

// Requester is who makes a request. Whom the engine does not vouch for is a node.
func (d *Desk) Requester(msg *nats.Msg) string {
	if who, _ := admin.ParseSubject(msg.Subject); who != "" {
		return identity.FleetName + "/" + who
	}
	if by := msg.Header.Get(ByHeader); by != "" {
		return by // another region's nodes say it
	}
	if public, key, err := identity.RenewalFrom(msg.Subject, msg.Header.Get(identity.RenewInfoHeader)); err == nil {
		if account, ok := d.AccountName(public); ok {
			if u, ok := d.Directory.UserByKey(account, key); ok {
				return u.String()
			}
			return account + "/" + key
		}
	}
	return "node"
}

func (d *Desk) begin(ctx context.Context, who, what, account string, request []byte) (end func(error) error, err error) {
	e := admin.AuditEntry{Kind: admin.AuditRequest, Who: who, What: what, Account: account, Request: Redact(request)}
	of, name, _ := strings.Cut(who, "/")
	if of == "token" {
		of = identity.FleetName
	}
	e.From = d.Where(ctx, of, name)
	if what == rescueRequest {
		d.Journal.Tell(e)
		return func(err error) error {
			e.Kind, e.Result, e.Request = admin.AuditWrite, ResultOf(err), nil
			d.Journal.Tell(e)
			return err
		}, nil
	}
	try, cancel := context.WithTimeout(ctx, entryTimeout)
	defer cancel()
	n, err := d.Journal.Store(try, e)
	if err != nil {
		return nil, admin.Errorf(admin.Unavailable, "fleetbus status", "the audit cannot be written, without which nothing is changed")
	}
	e.Request = nil
	return d.end(ctx, e, n), nil
}

// end returns what stores the result e of a request.
func (d *Desk) end(ctx context.Context, e admin.AuditEntry, of uint64) func(error) error {
	r, _ := ctx.Value(recordingKey{}).(*recording)
	ctx = context.WithoutCancel(ctx) // the result is stored even if there was no time for the rest
	return func(err error) error {
		e.Kind, e.Of, e.Result = admin.AuditWrite, of, ResultOf(err)
		if r != nil {
			r.mu.Lock()
			e.Changes = r.list.All()
			r.mu.Unlock()
		}
		if of == 0 && len(e.Changes) == 0 {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, entryTimeout)
		defer cancel()
		if _, failed := d.Journal.Store(ctx, e); failed != nil && err == nil {
			return admin.Errorf(admin.Unavailable, "look whether it was done, and run it again if not", "it may have been done, and the audit has only that it was asked for")
		}
		return err
	}
}

// Handlers answer who reads the audit, by the names of their requests.
func (d *Desk) Handlers() map[string]Handler {
	return map[string]Handler{
		"audit.ls": reading(d, Page),
		"audit.blocks": reading(d, func(ctx context.Context, s jetstream.Stream, r admin.AuditRange) (admin.AuditBlocks, error) {
			return Blocks(ctx, s, r.From)
		}),
		"audit.state": reading(d, func(ctx context.Context, s jetstream.Stream, _ struct{}) (admin.AuditState, error) {
			return d.state(ctx, s)
		}),
		KeepRequest: reading(d, d.keep),
	}
}

func reading[In, Out any](d *Desk, do func(context.Context, jetstream.Stream, In) (Out, error)) Handler {
	return func(ctx context.Context, msg *nats.Msg) (any, error) {
		var in In
		if err := decodeRequest(msg.Data, &in); err != nil {
			return nil, err
		}
		select {
		case <-d.Journal.opened:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(openWait): // of a node that has just started, or is alone
			return nil, admin.Errorf(admin.Unavailable, "fleetbus status", "node %s cannot read the audit yet", d.Journal.o.Node)
		}
		return do(ctx, d.Journal.Stream(), in)
	}
}

func (d *Desk) state(ctx context.Context, stream jetstream.Stream) (admin.AuditState, error) {
	state := admin.AuditState{Fleet: d.Fleet, Time: time.Now(), Keys: map[string]string{}}
	for _, n := range d.Directory.AllNodes() {
		for _, key := range append(n.AuditBefore, n.Audit) {
			if key != "" {
				state.Keys[key] = n.Name
			}
		}
	}
	var err error
	if state.Heads, state.Missing, err = d.Heads(ctx); err != nil {
		return state, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return state, fmt.Errorf("reading the audit: %w", err)
	}
	state.First, state.Last, state.Bytes = info.State.FirstSeq, info.State.LastSeq, info.State.Bytes
	state.AuditKeep = kept(info.Config)
	return state, nil
}

// keep sets what the audit's stream is bound by.
func (d *Desk) keep(ctx context.Context, _ jetstream.Stream, k admin.AuditKeep) (admin.AuditKeep, error) {
	if k.MaxAge < 0 || k.MaxSize < 0 || k.MaxAge > 0 && k.MaxAge < minAge || k.MaxSize > 0 && k.MaxSize < minSize {
		return k, admin.Errorf(admin.Invalid, "keep an hour and 16 MiB at least", "the audit cannot be kept as short as that")
	}
	return k, d.Streams(func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, Stream)
		if err != nil {
			return fmt.Errorf("reading the audit: %w", err)
		}
		config := stream.CachedInfo().Config
		before := kept(config)
		config.MaxAge, config.MaxBytes = k.MaxAge, -1
		if k.MaxSize > 0 {
			config.MaxBytes = k.MaxSize
		}
		if _, err := js.UpdateStream(ctx, config); err != nil {
			return fmt.Errorf("setting what is kept of the audit: %w", err)
		}
		if r, ok := ctx.Value(recordingKey{}).(*recording); ok {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.list.Put(keepChange(before, k))
		}
		return nil
	})
}

// minAge and minSize are the least that is kept.
const (
	minAge  = time.Hour
	minSize = 16 << 20
)

// kept is what a stream is bound by.
func kept(config jetstream.StreamConfig) admin.AuditKeep {
	return admin.AuditKeep{MaxAge: config.MaxAge, MaxSize: max(config.MaxBytes, 0)}
}

// BothWays are the subjects of a request: that of nodes, which nobody else may use, and
// that where who asks is the engine's word.
func BothWays(subject string) []string {
	return []string{subject, admin.ByPrefix + "*." + strings.TrimPrefix(subject, admin.Prefix)}
}
