package admin

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// AuditKind says what an AuditEntry is about.
type AuditKind string

// The kinds of entries. There are no others.
const (
	// AuditRequest: somebody asked for a change. The entry is stored before anything is
	// done.
	AuditRequest AuditKind = "request"
	// AuditWrite: what became of it, with every record before and after. It is stored
	// before whoever asked is answered. Without a request before it, the node changed
	// something by itself.
	AuditWrite AuditKind = "write"
	// AuditLogin: somebody came in. AuditRefused: somebody was not let in.
	AuditLogin   AuditKind = "login"
	AuditRefused AuditKind = "refused"
	// AuditGap: Count logins and refusals were too many to be told one by one.
	AuditGap AuditKind = "gap"
	// AuditStart and AuditStop: the node's journal begins and ends. A start without a
	// stop before it follows a crash, which lost what waited to be written.
	AuditStart AuditKind = "start"
	AuditStop  AuditKind = "stop"
)

// AuditKinds are all kinds.
func AuditKinds() []AuditKind {
	return []AuditKind{AuditRequest, AuditWrite, AuditLogin, AuditRefused, AuditGap, AuditStart, AuditStop}
}

// An AuditEntry is one line of a node's journal. It holds no secret: what might be one
// is "(hidden)" in it.
type AuditEntry struct {
	Kind AuditKind `json:"kind"`
	// Node whose journal it is in, and its Number there, from 1. Both are the journal's,
	// and so is Sequence, the message of the stream that holds it.
	Node     string `json:"node"`
	Number   uint64 `json:"number"`
	Sequence uint64 `json:"sequence"`
	// Time is when it happened, by the node's clock.
	Time time.Time `json:"time"`
	// Who did it: account/name, "token/<id>" for the holder of an enrollment token,
	// "node/<name>" for a node by itself. Of a refusal it is who somebody said to be.
	Who string `json:"who,omitempty"`
	// What was asked for, such as "user.add".
	What string `json:"what,omitempty"`
	// Account that it is about; empty if about none, or about all.
	Account string `json:"account,omitempty"`
	// From are the addresses where Who was connected.
	From []string `json:"from,omitempty"`
	// Listener that they came in by.
	Listener string `json:"listener,omitempty"`
	// Request is what was asked, Changes what became of records by it.
	Request json.RawMessage `json:"request,omitempty"`
	Changes []AuditChange   `json:"changes,omitempty"`
	// Of is the Number of the request that a write is the result of.
	Of uint64 `json:"of,omitempty"`
	// Result is "ok", or why it was not done.
	Result string `json:"result,omitempty"`
	// Count of a gap, and of refusals that are alike.
	Count int `json:"count,omitempty"`
}

// An AuditChange is what became of one record. Before is empty if there was none, After
// if it was removed.
type AuditChange struct {
	Subject string          `json:"subject"`
	Before  json.RawMessage `json:"before,omitempty"`
	After   json.RawMessage `json:"after,omitempty"`
}

// AuditQuery asks for a page of entries. Every field that is set narrows it.
type AuditQuery struct {
	// Who and What match the whole word, or its beginning if they end in "*".
	Who  string `json:"who,omitempty"`
	What string `json:"what,omitempty"`
	// Text is somewhere in the entry, in any case of letters.
	Text    string      `json:"text,omitempty"`
	Kinds   []AuditKind `json:"kinds,omitempty"`
	Account string      `json:"account,omitempty"`
	Node    string      `json:"node,omitempty"`
	Since   time.Time   `json:"since,omitzero"`
	Until   time.Time   `json:"until,omitzero"`
	// Limit of entries on a page. Default 100, 1000 at most.
	Limit int `json:"limit,omitempty"`
	// Before is the Next of the page before; zero begins with the newest.
	Before uint64 `json:"before,omitempty"`
}

// AuditPage is a page of entries, the newest first.
type AuditPage struct {
	Entries []AuditEntry `json:"entries"`
	// Next is the Before of the next page; zero if there is none. A page can be empty
	// and have a next one: a node looks at a bounded number of entries for each.
	Next uint64 `json:"next,omitempty"`
}

// Audit returns a page of the fleet's audit.
func (c *Client) Audit(ctx context.Context, q AuditQuery) (AuditPage, error) {
	return call[AuditPage](ctx, c, "audit.ls", q)
}

// AuditBlock is a message of the audit's stream as it is stored: what is verified.
type AuditBlock struct {
	Sequence uint64 `json:"sequence"`
	// Journal is the public key that it is signed by.
	Journal string    `json:"journal"`
	Stored  time.Time `json:"stored"`
	Data    []byte    `json:"data"`
}

// AuditBlocks are those from a message of the stream on. Next is where the following
// ones begin, zero if there are none.
type AuditBlocks struct {
	Blocks []AuditBlock `json:"blocks"`
	Next   uint64       `json:"next,omitempty"`
}

// AuditRange asks for blocks.
type AuditRange struct {
	From uint64 `json:"from"`
}

// AuditBlocks returns the stored blocks from a message on.
func (c *Client) AuditBlocks(ctx context.Context, from uint64) (AuditBlocks, error) {
	return call[AuditBlocks](ctx, c, "audit.blocks", AuditRange{from})
}

// AuditHead is the last block of a journal that somebody knows of.
type AuditHead struct {
	Node  string `json:"node,omitempty"`
	Block uint64 `json:"block"`
	Hash  string `json:"hash"`
	// Next is the number of the entry after its last one, Time when it was made.
	Next uint64    `json:"next,omitempty"`
	Time time.Time `json:"time,omitzero"`
}

// AuditState is what blocks are verified against.
type AuditState struct {
	Fleet string    `json:"fleet"`
	Time  time.Time `json:"time"`
	// Keys are the nodes' names by the public keys that they registered in the ledger.
	Keys map[string]string `json:"keys"`
	// Heads are what each node remembers, on its own disk, of each journal.
	Heads map[string]map[string]AuditHead `json:"heads"`
	// Missing are nodes that did not say.
	Missing []string `json:"missing"`
	// First and Last are the messages of the stream, Bytes its size.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Bytes uint64 `json:"bytes"`
	AuditKeep
}

// AuditKeep bounds what is kept of the audit. Zero is no bound.
type AuditKeep struct {
	MaxAge  time.Duration `json:"max_age_ns,omitempty"`
	MaxSize int64         `json:"max_size,omitempty"`
}

// AuditState returns what the audit is verified against.
func (c *Client) AuditState(ctx context.Context) (AuditState, error) {
	return call[AuditState](ctx, c, "audit.state", struct{}{})
}

// KeepAudit sets how much of the audit is kept. What is older, or too much, is gone.
func (c *Client) KeepAudit(ctx context.Context, k AuditKeep) (AuditKeep, error) {
	return call[AuditKeep](ctx, c, "audit.keep", k)
}

// ByPrefix is before the name of who asks, and the request's, in a subject where the
// engine lets only that one publish.
const ByPrefix = Prefix + "by."

// RequestSubject is where a request of that name is made over nc. An administrator may
// make it under the own name alone, and the role hears replies under that name only: the
// connection's inbox says it.
func RequestSubject(nc *nats.Conn, name string) string {
	who, ok := strings.CutPrefix(nc.Opts.InboxPrefix, identity.Inbox(""))
	who = strings.TrimPrefix(who, "+") // a service's
	if !ok || identity.CheckName(who) != nil {
		return Prefix + name
	}
	return ByPrefix + who + "." + name
}
