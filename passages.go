package fleetbus

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/region"
)

// A passage is the engine's event of a client that is in its account now, or that is
// gone.
type passage struct {
	Server struct {
		ID string `json:"id"`
	} `json:"server"`
	Client struct {
		ID      uint64    `json:"id"`
		Account string    `json:"acc"`
		User    string    `json:"user"`
		Host    string    `json:"host"`
		JWT     string    `json:"jwt"`
		Tags    []string  `json:"tags"`
		Kind    string    `json:"kind"`
		Start   time.Time `json:"start"`
		Stop    time.Time `json:"stop"`
	} `json:"client"`
	// Sent and Received are the client's words.
	Sent, Received struct {
		Msgs  int64 `json:"msgs"`
		Bytes int64 `json:"bytes"`
	}
	Reason string `json:"reason"`
}

// The engine tells of passages in the system account, of those at all nodes.
const (
	// passagesWaiting is how many bytes of them may wait to be looked at, which is as
	// much as the engine holds for a client.
	passagesWaiting = 64 << 20
	passagesSubject = "$SYS.ACCOUNT.*.*"
	arrivalSuffix   = ".CONNECT"
	departureSuffix = ".DISCONNECT"
)

// watchPassages tells of who comes and goes. It closes those who came in by signed
// credentials although they are denied: the engine looks at the revocations before
// it puts a client into its account, and a denial that acts between the two finds
// nobody to close.
func (s *Server) watchPassages(ctx context.Context) (*nats.Conn, error) {
	self := s.nodePrincipal(identity.SystemName)
	nc, err := s.broker.Connect(append(s.systemAuth(), nats.Name("passages"), nats.NoReconnect(), nats.ErrorHandler(s.passagesMissed(self)))...)
	if err != nil {
		return nil, err
	}
	// One subscription keeps the two in order.
	sub, err := nc.Subscribe(passagesSubject, func(msg *nats.Msg) { s.passed(ctx, msg) })
	if err == nil {
		err = sub.SetPendingLimits(-1, passagesWaiting)
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// passagesMissed counts what came while too much waited.
func (s *Server) passagesMissed(self identity.Principal) nats.ErrHandler {
	log, missed := s.sessionError(self), 0
	return func(nc *nats.Conn, sub *nats.Subscription, err error) {
		log(nc, sub, err)
		if sub != nil {
			// Its error is that the subscription has ended.
			n, _ := sub.Dropped()
			s.events.Miss(n - missed)
			s.fleet.crowd.Doubt()
			missed = n
		}
	}
}

// passed is told of every passage, and looks at this node's, and at who comes to
// another while too many may be here.
func (s *Server) passed(ctx context.Context, msg *nats.Msg) {
	arrived := strings.HasSuffix(msg.Subject, arrivalSuffix)
	if !arrived && !strings.HasSuffix(msg.Subject, departureSuffix) {
		return
	}
	// When a node dies all of its clients come to others.
	elsewhere := arrived && s.fleet.crowd.Limited()
	if !elsewhere && !bytes.Contains(msg.Data, []byte(s.broker.ID())) {
		return
	}
	var p passage
	if err := json.Unmarshal(msg.Data, &p); err != nil {
		s.log.Warn("a passage could not be read", "error", err)
		return
	}
	ours := p.Server.ID == s.broker.ID()
	switch {
	case arrived:
		s.came(ctx, p, ours)
	case ours:
		s.fleet.crowd.Leave(p.Client.ID)
		s.departed(p)
	}
}

// session reports that the client is inside the process: whoever opened it tells of
// it, and has looked whether it is denied.
func (p passage) session() bool {
	return slices.ContainsFunc(p.Client.Tags, func(tag string) bool { return strings.HasPrefix(tag, identity.KindTag) })
}

// site reports that the client is the server of a site. Links to sites are watched,
// and told of, as other links are.
func (p passage) site() bool { return p.Client.Kind == leafKind }

// signed is the name in the JWT of a client that the engine let in by it.
func (p passage) signed() string {
	for _, tag := range p.Client.Tags {
		if name, ok := strings.CutPrefix(tag, identity.NameTag); ok {
			return name
		}
	}
	return ""
}

// name is the name of the client's user in its account. The engine forgets the JWT
// of whom the callout let in, and knows its name.
func (p passage) name() string {
	if name := p.signed(); name != "" || p.Client.JWT != "" || identity.CheckName(p.Client.User) != nil {
		return name
	}
	return p.Client.User
}

// event begins the event of a passage of one who is in an account.
func (p passage) event(kind admin.EventKind, account, name string) admin.Event {
	ev := admin.Event{Kind: kind, Account: account, Listener: natsListenerName, Address: p.Client.Host, Reason: p.Reason}
	if p.site() {
		ev.Listener = leafListenerName
	}
	if name != "" {
		ev.Principal = account + "/" + name
	}
	return ev
}

// came looks at who came in, at this node if it is ours.
func (s *Server) came(ctx context.Context, p passage, ours bool) {
	account, ok := s.fleet.accountName(p.Client.Account)
	if ours && ok && p.name() != region.RelayName {
		s.regions.relays.Came(account)
	}
	if p.session() || !ok || account == identity.CalloutName {
		return
	}
	if ours && !p.site() {
		s.events.Tell(p.event(admin.EventConnect, account, p.name()))
	}
	if ours && s.shutOut(p, account) && s.broker.Close(p.Client.ID) {
		ev := p.event(admin.EventRefused, account, p.name())
		ev.Reason = "it was denied as it came in"
		s.log.Warn("client refused", "listener", natsListenerName, "principal", ev.Principal, "error", ev.Reason)
		s.events.Tell(ev)
		return
	}
	if ours && p.site() {
		s.siteArrived(p, account)
		return
	}
	if !s.fleet.crowd.Limited() || s.fleet.quota(account, p.name()) == 0 {
		return // the most do, and to find a reserved account takes a while
	}
	if ours {
		s.fleet.crowd.Enter(account, p.name(), p.Client.ID)
	}
	if a, ok := s.fleet.account(account); ok {
		s.arrived(ctx, a, p.name())
	}
}

// shutOut reports whether p is of a user whom the engine alone let in, and who is
// denied or gone.
func (s *Server) shutOut(p passage, account string) bool {
	name := p.signed()
	if name == "" {
		return false // the callout has looked again
	}
	if a, ok := s.fleet.account(account); ok && a.Guest() {
		return a.Revokes(p.Client.User)
	}
	u, ok := s.fleet.directory.User(account, name)
	return !ok || u.Denied
}

// The engine's reasons for the end of a connection that are more than that.
const (
	reasonRefused  = "Authentication Failure"
	reasonAccount  = "Maximum Account Connections Exceeded"
	reasonNode     = "Maximum Connections Exceeded"
	reasonLimits   = "Maximum "
	reasonSlow     = "Slow Consumer "
	reasonShutdown = "Server Shutdown"
)

// departed tells of an end, and of what came to one.
func (s *Server) departed(p passage) {
	// An account may be gone, and its clients with it.
	account, ok := s.fleet.accountName(p.Client.Account)
	if !ok || account == identity.CalloutName {
		// Whom the callout refused it has told of itself.
		if account != identity.CalloutName || p.Reason != reasonRefused {
			s.turnedAway(p)
		}
		return
	}
	name := p.name()
	switch {
	case p.Reason == reasonAccount:
		if s.events.May(admin.EventLimit, account) {
			s.events.Put(p.event(admin.EventLimit, account, s.claimed(p, account)))
		}
		return // it never came in, or, when a limit was lowered, this says it
	case strings.HasPrefix(p.Reason, reasonLimits):
		s.events.Tell(p.event(admin.EventLimit, account, name))
	case strings.HasPrefix(p.Reason, reasonSlow):
		s.events.Tell(p.event(admin.EventSlow, account, name))
	}
	if p.session() || p.site() {
		return
	}
	ev := p.event(admin.EventDisconnect, account, name)
	ev.Duration = p.Client.Stop.Sub(p.Client.Start)
	ev.InMsgs, ev.InBytes = p.Sent.Msgs, p.Sent.Bytes
	ev.OutMsgs, ev.OutBytes = p.Received.Msgs, p.Received.Bytes
	s.events.Tell(ev)
}

// claimed is the name in an account that a client had who was not let into it.
func (s *Server) claimed(p passage, account string) string {
	if name := p.name(); name != "" {
		return name
	}
	if _, name, err := identity.ClaimedByJWT(p.Client.JWT); err == nil {
		return name
	}
	if of, name, err := identity.SplitName(p.Client.User); err == nil && of == account {
		return name
	}
	return ""
}

// turnedAway tells of a client that was in no account when it ended: it left by
// itself, which is nothing to tell, or had to.
func (s *Server) turnedAway(p passage) {
	switch p.Reason {
	case "Client Closed", "Read Error", "Write Error", "Stale Connection", reasonShutdown:
		return
	}
	kind := admin.EventRefused
	if p.Reason == reasonNode {
		kind = admin.EventLimit
	}
	if !s.events.May(kind, "") {
		return
	}
	ev := p.event(kind, "", "")
	if public, name, err := identity.ClaimedByJWT(p.Client.JWT); err == nil {
		if account, ok := s.fleet.accountName(public); ok && account != identity.CalloutName {
			ev.Account, ev.Principal = account, account+"/"+name
			ev.Reason = s.whyRefused(account, name, ev.Reason)
		}
	}
	s.events.Put(ev)
}

// whyRefused says more than the engine, which tells an operator as little as the
// client, of somebody who showed signed credentials.
func (s *Server) whyRefused(account, name, reason string) string {
	u, ok := s.fleet.directory.User(account, name)
	switch {
	case reason != reasonRefused:
		return reason
	case !ok:
		return "there is no such user: its credentials were issued to one that is gone"
	case u.Denied:
		return "the user is denied since " + u.DeniedAt.UTC().Format(time.RFC3339)
	}
	return "its credentials are not valid now: they expired, were revoked, or are not for this network or listener"
}
