// Package admin is the administrative API of a fleet: requests over the bus, from
// any connection whose principal has the role "admin". The command line and the
// console are two of its callers. It does not link the engine.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

// Prefix is put before the name of every request to make its subject, in the
// fleet account.
const Prefix = "admin."

// Code says what kind of refusal an Error is.
type Code string

// The codes of Error.
const (
	Failed      Code = "failed"
	Invalid     Code = "invalid"
	NotFound    Code = "not_found"
	Unavailable Code = "unavailable"
	Denied      Code = "denied"
	Conflict    Code = "conflict"
	Partial     Code = "partial"
)

// Error is the refusal of a request: what is wrong, and one command or setting
// that mends it.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
}

// Error is the text.
func (e *Error) Error() string { return e.Text }

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code && (t.Text == "" || t.Text == e.Text)
}

// Errorf makes an Error.
func Errorf(code Code, fix, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Fix: fix}
}

// Reply is what travels back: an error or a result.
type Reply struct {
	Error *Error          `json:"error,omitempty"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// Client makes requests over one connection. It is safe for concurrent use. The
// zero value is of no use: call New.
type Client struct {
	nc *nats.Conn
	at string // begins the names of requests to one node
}

// New returns a Client over nc, which stays the caller's.
func New(nc *nats.Conn) *Client { return &Client{nc: nc} }

// AtPrefix, the name of a node and a dot begin the names of requests that this node alone
// answers, behind Prefix or ByPrefix.
const AtPrefix = "at."

// Here is a client whose requests are answered by the node that the connection is to, and
// not by whichever is next: what a node says of the others is as it sees them, and one that
// is cut off keeps nobody waiting. An older node leaves them to the next.
func (c *Client) Here() *Client {
	node, _, _ := strings.Cut(c.nc.ConnectedServerName(), ".")
	if node == "" {
		return c
	}
	return &Client{nc: c.nc, at: AtPrefix + node + "."}
}

// call makes the request named name and decodes its result into Out. Every
// method below is one call: its error is an *Error, or wraps
// context.DeadlineExceeded or nats.ErrNoResponders when nobody answered.
func call[Out any](ctx context.Context, c *Client, name string, in any) (Out, error) {
	subject := RequestSubject(c.nc, c.at+name)
	out, err := ask[Out](ctx, c.nc, subject, in)
	if subject != Prefix+name && errors.Is(err, nats.ErrNoResponders) { // nodes of an older version
		return ask[Out](ctx, c.nc, Prefix+name, in)
	}
	return out, err
}

// ParseSubject is the name of a request, and who makes it; who is empty if the engine
// does not vouch for it.
func ParseSubject(subject string) (who, name string) {
	if rest, ok := strings.CutPrefix(subject, ByPrefix); ok {
		if who, name, ok := strings.Cut(rest, "."); ok {
			return who, withoutNode(name)
		}
	}
	return "", withoutNode(strings.TrimPrefix(subject, Prefix))
}

// withoutNode is the name of a request without the node that it is for.
func withoutNode(name string) string {
	if rest, ok := strings.CutPrefix(name, AtPrefix); ok {
		_, name, _ = strings.Cut(rest, ".")
	}
	return name
}

func ask[Out any](ctx context.Context, nc *nats.Conn, subject string, in any) (Out, error) {
	var out Out
	_, name := ParseSubject(subject)
	body, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encoding request %q: %w", name, err)
	}
	msg, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return out, fmt.Errorf("asking the fleet for %q: %w", name, err)
	}
	var reply Reply
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return out, fmt.Errorf("reading the answer to %q: %w", name, err)
	}
	if reply.Error != nil {
		return out, reply.Error
	}
	if len(reply.Data) > 0 {
		if err := json.Unmarshal(reply.Data, &out); err != nil {
			return out, fmt.Errorf("reading the answer to %q: %w", name, err)
		}
	}
	return out, nil
}

// Spread says on which nodes a change has acted.
type Spread struct {
	// Nodes that have applied the change, and the names of those that are known
	// but did not answer.
	Nodes   []Applied `json:"nodes"`
	Missing []string  `json:"missing"`
	// Took is the time from the request to the last node's answer.
	Took time.Duration `json:"took_ns"`
	// Changed is false when everything was so already.
	Changed bool `json:"changed"`
}

// Applied is one node's answer.
type Applied struct {
	Node string `json:"node"`
	// Closed counts the connections that the change ended there.
	Closed int `json:"closed"`
}

// Closed counts the connections that the change ended on all nodes.
func (s Spread) Closed() int {
	n := 0
	for _, a := range s.Nodes {
		n += a.Closed
	}
	return n
}

// AccountRequest asks for an account.
type AccountRequest struct {
	Name   string          `json:"name"`
	Limits identity.Limits `json:"limits"`
	// Signing is what identity.ParseSigning reads. Empty: as it is, which is off for a
	// new account.
	Signing string `json:"signing,omitempty"`
}

// Validate returns an *Error if there can be no such account.
func (r AccountRequest) Validate() error {
	if err := identity.CheckAccountName(r.Name); err != nil {
		return Errorf(Invalid, "choose another name", "%v", err)
	}
	if err := r.Limits.Validate(); err != nil {
		return Errorf(Invalid, "", "%v", err)
	}
	if _, err := identity.ParseSigning(r.Signing); r.Signing != "" && err != nil {
		return Errorf(Invalid, "", "%v", err)
	}
	return nil
}

// Apply sets what r, which is valid, asks for.
func (r AccountRequest) Apply(a identity.Account) identity.Account {
	a.Limits = r.Limits
	if r.Signing != "" {
		a.Signing, _ = identity.ParseSigning(r.Signing)
	}
	return a
}

// AccountInfo is an account and what it has.
type AccountInfo struct {
	identity.Account
	Users       int    `json:"users"`
	Connections int    `json:"connections"`
	Streams     int    `json:"streams"`
	Bytes       uint64 `json:"bytes"`
	// Certificates says that there are managers of its certificates.
	Certificates bool `json:"certificates,omitempty"`
	// Exports and Imports are what crosses its border, or is to.
	Exports []ExportInfo `json:"exports"`
	Imports []ImportInfo `json:"imports"`
	Errors  []string     `json:"errors,omitempty"`
}

// AddAccount makes an account, live on every node of the answer. An account of
// that name with the same limits is left as it is; other limits are set.
func (c *Client) AddAccount(ctx context.Context, r AccountRequest) (Spread, error) {
	return call[Spread](ctx, c, "account.add", r)
}

// Accounts lists the accounts, without the fleet's own.
func (c *Client) Accounts(ctx context.Context) ([]AccountInfo, error) {
	return call[[]AccountInfo](ctx, c, "account.ls", struct{}{})
}

// Account tells of one account.
func (c *Client) Account(ctx context.Context, name string) (AccountInfo, error) {
	return call[AccountInfo](ctx, c, "account.info", Name{name})
}

// RemoveAccount removes an account with its users and streams.
func (c *Client) RemoveAccount(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "account.rm", Name{name})
}

// Name is a request about one thing: "acme", or "acme/alice" for a user.
type Name struct {
	Name string `json:"name"`
}

// UserRequest asks for a user, or for another credential of one that exists.
type UserRequest struct {
	// Name is account/name.
	Name string `json:"name"`
	// Role of a new user; default "client". It must be empty or the same for one
	// that exists.
	Role string `json:"role,omitempty"`
	// Expires is the life of the credentials; zero is the role's.
	Expires time.Duration `json:"expires_ns,omitempty"`
	// Key is the public nkey for which a JWT is wanted. Its seed stays where it
	// was made.
	Key string `json:"key,omitempty"`
	// CSR is a PEM certificate request, when a client certificate is wanted.
	CSR string `json:"csr,omitempty"`
	// Certificate is a PEM certificate of the caller's own authority that is to
	// stand for the user.
	Certificate string `json:"certificate,omitempty"`
	// Password is the encoded argon2id hash of a password, made by
	// identity.HashPassword.
	Password string `json:"password,omitempty"`
	// Bearer is the hash of the secret of a bearer token, made by
	// identity.NewBearer. It takes the place of the one before.
	Bearer string `json:"bearer,omitempty"`
}

// UserReply carries what was asked for.
type UserReply struct {
	Spread
	User identity.User `json:"user"`
	// JWT for Key; Chain is the PEM certificate for CSR.
	JWT   string `json:"jwt,omitempty"`
	Chain string `json:"chain,omitempty"`
	// CA are the PEM authorities that clients verify the servers with.
	CA string `json:"ca"`
	// Servers are host:port where NATS clients connect.
	Servers []string `json:"servers"`
	// Expires is when the credential ends; zero is never.
	Expires time.Time `json:"expires"`
}

// UserInfo is a user and its live connections.
type UserInfo struct {
	identity.User
	// Connections are those that began first, 200 at most, and More counts the others.
	Connections []Connection `json:"connections"`
	More        int          `json:"more_connections,omitempty"`
}

// Connection is one live connection.
type Connection struct {
	Node    string    `json:"node"`
	ID      uint64    `json:"id"`
	Kind    string    `json:"kind"`
	Remote  string    `json:"remote"`
	Started time.Time `json:"started"`
}

// AddUser makes a user or gives one another credential.
func (c *Client) AddUser(ctx context.Context, r UserRequest) (UserReply, error) {
	return call[UserReply](ctx, c, "user.add", r)
}

// Renew gives the creds file that the connection was made with a new life: the
// reply has a JWT of the same key. It needs no administrator. The connection lives
// on, until the old JWT ends.
func Renew(ctx context.Context, nc *nats.Conn) (UserReply, error) {
	return ask[UserReply](ctx, nc, identity.RenewSubject, struct{}{})
}

// Users lists the users of an account, or of all accounts if account is empty, sorted by
// account and name.
// Their password hashes are left out.
func (c *Client) Users(ctx context.Context, account string) ([]identity.User, error) {
	all := []identity.User{}
	for r := (UsersRequest{Name: account, Pages: true}); ; {
		page, err := call[[]identity.User](ctx, c, "user.ls", r)
		// An older node knows no pages, and says the same again.
		if err != nil || len(page) == 0 || len(all) > 0 && page[0].String() == all[0].String() {
			return all, err
		}
		all, r.After = append(all, page...), page[len(page)-1].String()
	}
}

// UsersRequest asks for users: those of the account Name, or of all if it is empty. With
// Pages it is for those after After, account/name, as many as fit into an answer: none are
// left if there are none in it.
type UsersRequest struct {
	Name  string `json:"name"`
	Pages bool   `json:"pages,omitempty"`
	After string `json:"after,omitempty"`
}

// User tells of one user, account/name.
func (c *Client) User(ctx context.Context, name string) (UserInfo, error) {
	return call[UserInfo](ctx, c, "user.info", Name{name})
}

// RemoveUser removes a user and closes its connections.
func (c *Client) RemoveUser(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "user.rm", Name{name})
}

// DenyUser denies a user every way in, and returns when its connections are
// closed on every node of the answer.
func (c *Client) DenyUser(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "user.deny", Name{name})
}

// AllowUser takes a denial back.
func (c *Client) AllowUser(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "user.allow", Name{name})
}

// AddRole makes a role, or sets one that exists, for the users who have it.
func (c *Client) AddRole(ctx context.Context, r identity.Role) (Spread, error) {
	return call[Spread](ctx, c, "role.add", r)
}

// Roles lists the roles, the built-in ones among them.
func (c *Client) Roles(ctx context.Context) ([]identity.Role, error) {
	return call[[]identity.Role](ctx, c, "role.ls", struct{}{})
}

// RemoveRole removes a role that no user has.
func (c *Client) RemoveRole(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "role.rm", Name{name})
}

// TokenRequest asks for an enrollment token.
type TokenRequest struct {
	// Kind of what may join: node, leaf, gateway, user or target.
	Kind identity.Kind `json:"kind"`
	// Account and Name bind the token, if they are set: a token for a user needs
	// both.
	Account string `json:"account,omitempty"`
	Name    string `json:"name,omitempty"`
	// Networks that the link of a leaf may come from. Empty: any.
	Networks []string `json:"networks,omitempty"`
	// Life of the token. Default: 24h.
	Life time.Duration `json:"life_ns,omitempty"`
}

// TokenReply carries the token's text, which is nowhere else.
type TokenReply struct {
	identity.Token
	Text string `json:"text"`
	// Join is the address that the token's holder joins.
	Join string `json:"join"`
}

// AddToken makes an enrollment token.
func (c *Client) AddToken(ctx context.Context, r TokenRequest) (TokenReply, error) {
	return call[TokenReply](ctx, c, "token.add", r)
}

// Tokens lists the enrollment tokens; secrets are not among what is known.
func (c *Client) Tokens(ctx context.Context) ([]identity.Token, error) {
	return call[[]identity.Token](ctx, c, "token.ls", struct{}{})
}

// RevokeToken makes a token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) (Spread, error) {
	return call[Spread](ctx, c, "token.rm", Name{id})
}

// NodeInfo is a node as the others see it.
type NodeInfo struct {
	identity.Node
	// State is "up", "down" (no answer) or "removed".
	State string `json:"state"`
	// Leader says that it leads the group that agrees on streams; Voter that it
	// is a member of it.
	Leader bool `json:"leader"`
	Voter  bool `json:"voter"`
	// Applied is the last ledger event that it has applied.
	Applied uint64 `json:"applied"`
	// Connections counts its clients.
	Connections int `json:"connections"`
	// Routes names the nodes it has a route to.
	Routes []string `json:"routes"`
	// Level is what its version can do on the bus.
	Level int `json:"level"`
	// Links are its own view of the others.
	Links []Link `json:"links"`
	// Bus is how it stands on the bus, judged from both ends of every link, and
	// Unreached the nodes that it does not reach.
	Bus       string   `json:"bus"`
	Unreached []string `json:"unreached"`
	// Remotes are its links to sites and to other clusters.
	Remotes []Remote `json:"remotes"`
	// Hubs are its links to a central broker.
	Hubs []Hub `json:"hubs"`
	// Sites are the links of sites that it holds, and Uplink its own to the hub if it
	// is a site.
	Sites  []Site  `json:"sites,omitempty"`
	Uplink *Uplink `json:"uplink,omitempty"`
	// Regions are the other regions, if it is the node that asks them what is new.
	Regions []RegionLink `json:"regions,omitempty"`
	// Certificates end at NotAfter, the earliest of them.
	NotAfter time.Time `json:"not_after"`
	// Clock is its clock less that of the node that answered.
	Clock time.Duration `json:"clock_ns"`
	// Uptime since its listeners opened.
	Uptime time.Duration `json:"uptime_ns"`
	// Findings are its own.
	Findings []doctor.Finding `json:"findings"`
}

// A Link is what one node knows of another.
type Link struct {
	Node string `json:"node"`
	// Heard says that the other was heard in the last seconds, Answered that it
	// answered.
	Heard    bool `json:"heard"`
	Answered bool `json:"answered"`
	// RoundTrip is how long a message took there and back, the last time.
	RoundTrip time.Duration `json:"round_trip_ns"`
	// Skew is the other's clock less the node's own, as good as half of RoundTrip.
	Skew time.Duration `json:"skew_ns,omitempty"`
	// Bytes that the connection between the two has carried, both ways.
	Bytes uint64 `json:"bytes,omitempty"`
}

// A LinkView is how a node of the cluster sees its links to the others. Whom it does not
// name it hears, and is answered by.
type LinkView struct {
	Node string `json:"node"`
	// Unheard are the nodes that it has not heard for seconds, Unanswered those that do
	// not answer it.
	Unheard    []string `json:"unheard,omitempty"`
	Unanswered []string `json:"unanswered,omitempty"`
	// Age is how old the view is, and Told says that another node told of it.
	Age  time.Duration `json:"age_ns,omitempty"`
	Told bool          `json:"told,omitempty"`
}

// LinkViews are the views of a cluster's nodes, as the node that answered knows them.
type LinkViews struct {
	Node string `json:"node"`
	// Views has the node's own first. Of whom nobody heard for seconds, there is none.
	Views []LinkView `json:"views"`
}

// LinkViews tells how the nodes see their links. The node that answers asks no other, so
// that it is known at once.
func (c *Client) LinkViews(ctx context.Context) (LinkViews, error) {
	return call[LinkViews](ctx, c, "link.ls", struct{}{})
}

// A Remote is a link of a node to a server that is no node of its cluster.
type Remote struct {
	// Kind is EventLeaf or EventGateway.
	Kind EventKind `json:"kind"`
	// Name of the site's server, or of the other cluster.
	Name string `json:"name"`
	// Account that a site is of.
	Account string `json:"account,omitempty"`
	// RoundTrip is how long the engine's last ping took; 0 if there was none yet.
	RoundTrip time.Duration `json:"round_trip_ns"`
	// Bytes that the connection has carried, both ways.
	Bytes uint64 `json:"bytes,omitempty"`
}

// How a node stands on the bus.
const (
	// BusConnected reaches all others.
	BusConnected = "connected"
	// BusCannotReachAll reaches some, and Unreached says which it does not.
	BusCannotReachAll = "cannot_reach_all"
	// BusBlocked reaches none: it is down, or its port is closed.
	BusBlocked = "blocked"
	// BusUnknown says that the node that answered hears nobody, and cannot tell.
	BusUnknown = "unknown"
	// BusTooOld runs a version that does not tell.
	BusTooOld = "too_old"
)

// Status is the fleet at a glance.
type Status struct {
	Fleet string `json:"fleet"`
	// Node answered.
	Node string `json:"node"`
	// Leader of the group that agrees on streams; empty without quorum.
	Leader string `json:"leader"`
	// Survives is how many nodes may fail without loss of service.
	Survives int `json:"survives"`
	// Answered is how many nodes did, and Quorum how many are the majority.
	Answered int `json:"answered"`
	Quorum   int `json:"quorum"`
	// Sequence of the last ledger event at the node that answered.
	Sequence uint64     `json:"sequence"`
	Nodes    []NodeInfo `json:"nodes"`
	Accounts int        `json:"accounts"`
	Users    int        `json:"users"`
	// Sites are those of all accounts.
	Sites []Site `json:"sites,omitempty"`
	// Regions are those of the fleet, if it has several.
	Regions []Region `json:"regions,omitempty"`
	// Sources are those of all accounts; none without a quorum.
	Sources  []SourceInfo     `json:"sources"`
	Findings []doctor.Finding `json:"findings"`
}

// Status tells of the fleet. It works without a quorum.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, "status", struct{}{})
}

// RemoveNode removes a node for good: one that is dead, or one that has drained.
// It is refused for the last node, and for a live one unless force.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) (Spread, error) {
	return call[Spread](ctx, c, "node.rm", RemoveNodeRequest{Name: name, Force: force})
}

// RemoveNodeRequest asks for the removal of a node.
type RemoveNodeRequest struct {
	Name  string `json:"name"`
	Force bool   `json:"force,omitempty"`
}

// Left is what is left when a node has left.
type Left struct {
	Node string `json:"node"`
	// Streams counts those that moved to other nodes, Nodes the others.
	Streams int `json:"streams"`
	Nodes   int `json:"nodes"`
}

// Leave takes a live node out of the fleet: its streams move to others, it leaves
// the group that agrees on them, and its server stops.
func (c *Client) Leave(ctx context.Context, name string) (Left, error) {
	return call[Left](ctx, c, "node.leave", Name{name})
}

// Rescued is what a rescue did.
type Rescued struct {
	// Removed names the nodes that are given up, Streams counts those that were
	// brought back with one copy.
	Removed []string `json:"removed"`
	Streams int      `json:"streams"`
}

// Rescue gives up the nodes that do not answer, after the quorum was lost for
// good, and makes those that are up the whole fleet. What only the lost ones had
// is lost. It may take a minute.
func (c *Client) Rescue(ctx context.Context) (Rescued, error) {
	return call[Rescued](ctx, c, "rescue", struct{}{})
}

// RenewNodes renews the certificates of every node, or of the one named, at once.
// No connection drops.
func (c *Client) RenewNodes(ctx context.Context, name string) ([]Renewed, error) {
	return call[[]Renewed](ctx, c, "node.renew", Name{name})
}

// Renewed is one node's answer to RenewNodes.
type Renewed struct {
	Node     string    `json:"node"`
	NotAfter time.Time `json:"not_after"`
	Error    string    `json:"error,omitempty"`
}

// A LoginLink lets its user into the console of one node, once.
type LoginLink struct {
	Node string `json:"node"`
	// URL holds the secret, behind a # so that no log of a web server has it.
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

// LoginLink makes a login link for a user, account/name, on a node that has a console:
// the one that the connection is to, if it has one.
func (c *Client) LoginLink(ctx context.Context, user string) (LoginLink, error) {
	link, err := call[LoginLink](ctx, c.Here(), "console.login", Name{user})
	var refused *Error
	if errors.As(err, &refused) && refused.Code == Unavailable { // it has none
		return call[LoginLink](ctx, c, "console.login", Name{user})
	}
	return link, err
}
