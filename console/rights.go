package console

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/identity"
)

// rightsOf is the same text for those who may do the same and see the same: what a
// principal may do, but for the place where it hears its own replies.
func rightsOf(p identity.Principal) string {
	text, err := json.Marshal(p.Permissions)
	if err != nil {
		return p.String()
	}
	plain := strings.ReplaceAll(string(text), p.Inbox()+".", "_INBOX.me.")
	plain = strings.ReplaceAll(plain, admin.ByPrefix+p.Name+".", admin.ByPrefix+"me.")
	sum := sha256.Sum256([]byte(p.Account + "\x00" + plain))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// may reports whether the principal may ask on subject. It only says what the page
// offers; the engine says what happens.
func (v *visitor) may(subject string) bool { return v.Principal.Permissions.Publish.Allows(subject) }

// administers reports whether the principal is of the fleet's own account, whose
// questions are about the fleet.
func (v *visitor) administers() bool {
	return v.mayOf(admin.Prefix + "status")
}

// mayHere reports whether the principal may ask this node alone.
func (v *visitor) mayHere() bool { return v.mayOf(admin.Prefix + admin.AtPrefix + "node.status") }

// client asks the fleet as the visitor, by this node if it may be.
func (v *visitor) client() *admin.Client { return clientOf(v.Conn, v.mayHere()) }

// allSources are all feeds, by name.
func allSources() map[string]source {
	return map[string]source{
		"fleet":       {needs: admin.Prefix + "status", every: 250 * time.Millisecond, poll: fleetPoller},
		"connections": {needs: admin.Prefix + "connection.ls", every: 2 * time.Second, poll: connectionsPoller},
		"drops":       {needs: admin.Prefix + "connection.ls", every: time.Second, poll: dropsPoller},
		"top":         {needs: admin.Prefix + "top", every: time.Second, poll: topPoller},
		"accounts":    {needs: admin.Prefix + "account.ls", every: 3 * time.Second, poll: accountsPoller},
		"certs":       {needs: admin.CertSubject, every: 10 * time.Second, poll: certsPoller},
		"streams":     {needs: admin.Prefix + "stream.ls", every: 2 * time.Second, poll: streamsPoller, ownNeeds: "$JS.API.STREAM.LIST", own: ownStreamsPoller},
		"notices":     {every: 500 * time.Millisecond, ownNeeds: "$JS.API.STREAM.INFO.CHANGES", own: func(string) func() poller { return noticesPoller }},
	}
}

// pollerFor is how a feed is asked for; nil if there is none of that name for v.
func (h *Handler) pollerFor(name string, v *visitor) (poller, time.Duration) {
	s, ok := h.sources[name]
	switch {
	case !ok:
	case s.poll != nil && v.mayOf(s.needs) && v.Principal.Account == identity.FleetName:
		return s.poll(), s.every
	case s.own != nil && v.may(s.ownNeeds) && v.Principal.Account != identity.FleetName:
		return s.own(v.Principal.Account)(), s.every
	}
	return nil, 0
}

// mayOf is may, for subjects that mean something in the fleet's account alone, too.
func (v *visitor) mayOf(subject string) bool {
	name, administrative := strings.CutPrefix(subject, admin.Prefix)
	if !administrative {
		return v.may(subject)
	}
	return v.Principal.Account == identity.FleetName && (v.may(subject) || v.may(admin.ByPrefix+v.Principal.Name+"."+name))
}

// description is who is logged in.
type description struct {
	Principal string   `json:"principal"`
	Role      string   `json:"role"`
	Account   string   `json:"account"`
	Ends      int64    `json:"ends"`
	Screens   []string `json:"screens"`
	// Can are the changes that there are for them.
	Can []string `json:"can"`
}

// describe says who v is and which screens there are for it.
func (h *Handler) describe(v *visitor) description {
	d := description{Principal: v.Principal.String(), Role: v.Principal.Role, Account: v.Principal.Account, Ends: v.ends.UnixMilli(), Screens: []string{}, Can: []string{}}
	for _, s := range h.screens() {
		if s.here(v) {
			d.Screens = append(d.Screens, s.name)
		}
	}
	for _, c := range allChanges() {
		if v.mayOf(c.needs) {
			d.Can = append(d.Can, c.name)
		}
	}
	return d
}

// A screen is a part of the page.
type screen struct {
	name string
	here func(*visitor) bool
}

func (h *Handler) screens() []screen {
	admins := (*visitor).administers
	return []screen{
		{"topology", admins},
		{"nodes", admins},
		{"connections", admins},
		{"accounts", admins},
		{"streams", func(v *visitor) bool { return admins(v) || h.has("streams", v) }},
		{"certificates", admins},
		{"changes", func(v *visitor) bool { return admins(v) || h.has("notices", v) }},
		{"hub", admins},
		{"audit", func(v *visitor) bool { return v.mayOf(admin.Prefix + "audit.ls") }},
		{"doctor", admins},
	}
}

// A change is something that is done to the fleet.
type changing struct {
	name, needs string
	do          func(ctx context.Context, nc *nats.Conn, in json.RawMessage) (any, error)
}

// has reports whether there is a feed of that name for v.
func (h *Handler) has(name string, v *visitor) bool {
	poll, _ := h.pollerFor(name, v)
	return poll != nil
}

// doing makes a change of a request and what it does.
func doing[In, Out any](name, needs string, do func(context.Context, *nats.Conn, In) (Out, error)) changing {
	return changing{name, needs, func(ctx context.Context, nc *nats.Conn, in json.RawMessage) (any, error) {
		var r In
		if err := json.Unmarshal(in, &r); err != nil {
			return nil, admin.Errorf(admin.Invalid, "use the page", "the request cannot be read")
		}
		return do(ctx, nc, r)
	}}
}

// renewal names a certificate.
type renewal struct {
	Account string `json:"account"`
	ID      string `json:"id"`
}

// named makes a change of a method of the administrative API.
func named[Out any](name string, do func(*admin.Client, context.Context, string) (Out, error)) changing {
	return doing(name, admin.Prefix+name, func(ctx context.Context, nc *nats.Conn, in admin.Name) (Out, error) {
		return do(admin.New(nc), ctx, in.Name)
	})
}

// allChanges are those that the page offers. The engine has the last word on each.
func allChanges() []changing {
	return []changing{
		named("node.renew", (*admin.Client).RenewNodes),
		named("user.deny", (*admin.Client).DenyUser),
		named("user.allow", (*admin.Client).AllowUser),
		doing("connection.close", admin.Prefix+"connection.close", func(ctx context.Context, nc *nats.Conn, in admin.CloseRequest) (admin.Applied, error) {
			return admin.New(nc).CloseConnection(ctx, in)
		}),
		doing("cert.renew", admin.CertSubject, func(ctx context.Context, nc *nats.Conn, in renewal) (any, error) {
			_, err := certmanager.NewAdminClient(nc, in.Account).Renew(ctx, certmanager.RenewRequest{ID: in.ID})
			return struct{}{}, err
		}),
	}
}

// askTimeout bounds a question, doTimeout a change.
const askTimeout, doTimeout = 10 * time.Second, 30 * time.Second

// me says who is logged in. The page asks again and again, so that its ticket is new.
func (h *Handler) me(w http.ResponseWriter, r *http.Request, v *visitor) {
	if c, err := r.Cookie(h.cookieName(r)); err == nil {
		h.setCookie(w, r, v, tokenOf(c.Value))
	}
	answer(w, h.describe(v))
}

// usersTold is how many users of an account the page is told of.
const usersTold = 500

// userRow is a user, without what it logs in with.
type userRow struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	Kind   string `json:"kind"`
	Denied bool   `json:"denied"`
}

// ask answers one question.
func (h *Handler) ask(w http.ResponseWriter, r *http.Request, v *visitor) {
	ctx, cancel := within(r, askTimeout)
	defer cancel()
	query := r.URL.Query()
	var out any
	var err error
	switch name := r.PathValue("name"); {
	case name == "account" && v.administers():
		out, err = aboutAccount(ctx, v.client(), query.Get("name"))
	case name == "peek" && v.Principal.Account != identity.FleetName:
		if !v.may("$JS.API.STREAM.MSG.GET." + query.Get("stream")) {
			refuse(w, http.StatusForbidden, "your role does not allow you to read messages of this stream", "ask for a role that may publish to $JS.API.STREAM.MSG.GET."+query.Get("stream"))
			return
		}
		out, err = peek(ctx, v.Conn, query.Get("stream"))
	case name == "audit" && v.mayOf(admin.Prefix+"audit.ls"):
		before, _ := strconv.ParseUint(query.Get("before"), 10, 64) // none is the newest
		out, err = v.client().Audit(ctx, admin.AuditQuery{Text: query.Get("match"), Before: before, Limit: auditPage})
	default:
		refuse(w, http.StatusNotFound, errNotHere.Error(), "")
		return
	}
	reply(w, out, err)
}

// auditPage is how many entries of the audit go with one answer.
const auditPage = 200

func aboutAccount(ctx context.Context, c *admin.Client, name string) (any, error) {
	info, err := c.Account(ctx, name)
	if err != nil {
		return nil, err
	}
	users, err := c.Users(ctx, name)
	if err != nil {
		return nil, err
	}
	told := []userRow{}
	for _, u := range users[:min(len(users), usersTold)] {
		told = append(told, userRow{Name: u.Name, Role: u.Role, Kind: string(u.Kind), Denied: u.Denied})
	}
	return struct {
		Info  admin.AccountInfo `json:"info"`
		Users []userRow         `json:"users"`
		More  int               `json:"more"`
	}{info, told, len(users) - len(told)}, nil
}

const (
	// peeked is how many messages are shown, the newest, and peekedBytes how much of
	// each.
	peeked, peekedBytes = 10, 1 << 10
)

// peekedMessage is a message, or the beginning of it.
type peekedMessage struct {
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	Subject  string    `json:"subject"`
	Size     int       `json:"size"`
	Text     string    `json:"text"`
	Cut      bool      `json:"cut"`
}

// peek reads the newest messages of a stream, as whoever looks.
func peek(ctx context.Context, nc *nats.Conn, name string) (any, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	state, all := stream.CachedInfo().State, []peekedMessage{}
	for seq := state.LastSeq; seq >= max(state.FirstSeq, 1) && len(all) < peeked && state.LastSeq-seq < 5*peeked; seq-- {
		msg, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, peekedMessage{
			Sequence: seq, Time: msg.Time, Subject: msg.Subject, Size: len(msg.Data), Text: strings.ToValidUTF8(string(msg.Data[:min(len(msg.Data), peekedBytes)]), "\uFFFD"), Cut: len(msg.Data) > peekedBytes,
		})
	}
	return all, nil
}

func (h *Handler) do(w http.ResponseWriter, r *http.Request, v *visitor) {
	var in json.RawMessage
	if err := decode(w, r, maxBody, &in); err != nil {
		refuse(w, http.StatusBadRequest, err.Error(), "use the page")
		return
	}
	for _, c := range allChanges() {
		if c.name != r.PathValue("name") {
			continue
		}
		if !v.mayOf(c.needs) {
			refuse(w, http.StatusForbidden, "your role does not allow it", "ask somebody with another role")
			return
		}
		ctx, cancel := within(r, doTimeout)
		defer cancel()
		out, err := c.do(ctx, v.Conn, in)
		reply(w, out, err)
		return
	}
	refuse(w, http.StatusNotFound, errNotHere.Error(), "")
}

// reply answers with out, or with err in words.
func reply(w http.ResponseWriter, out any, err error) {
	if err == nil {
		answer(w, out)
		return
	}
	code := http.StatusBadGateway
	var refused *admin.Error
	if errors.As(err, &refused) {
		switch refused.Code {
		case admin.Denied:
			code = http.StatusForbidden
		case admin.NotFound:
			code = http.StatusNotFound
		case admin.Conflict:
			code = http.StatusConflict
		case admin.Invalid:
			code = http.StatusBadRequest
		}
	}
	what, fix := tell(err)
	refuse(w, code, what, fix)
}
