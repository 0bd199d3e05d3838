package fleetbus

import (
	"context"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/loginlink"
)

// Ticket is a text with which the principal may log in again at the same node, as
// identity.Credentials.Link, for a quarter of an hour and not after ends: its Protocol
// remembers nobody when the node is started anew. Whoever may not come in any more is
// refused, whatever is shown. It is empty if there is none.
func (s *Session) Ticket(ends time.Time) string {
	if s.server == nil || s.Principal.Kind != identity.KindUser {
		return ""
	}
	key, err := s.server.fleet.authority.TicketKey(s.server.fleet.node)
	if err != nil {
		return ""
	}
	return loginlink.Ticket(key, s.Principal.String(), ends, time.Now())
}

// redeem says whose a login link or a ticket is; "" if it is good for nobody.
func (s *Server) redeem(text string) string {
	if who := s.loginLinks.Redeem(text, time.Now()); who != "" {
		return who
	}
	key, err := s.fleet.authority.TicketKey(s.fleet.node)
	if err != nil {
		return ""
	}
	return loginlink.Open(key, text, time.Now())
}

// loginPage is a Protocol that people log in to by a link.
type loginPage interface {
	// LoginURL is the link with that secret, to the page at addr.
	LoginURL(addr, secret string) string
}

// page finds the listener of such a Protocol; nil if there is none.
func (s *Server) page() (loginPage, Listener) {
	for _, l := range s.opts.Listeners {
		if p, ok := l.Protocol.(loginPage); ok {
			return p, l
		}
	}
	return nil, Listener{}
}

func (s *Server) addLoginLink(_ context.Context, r admin.Name) (any, error) {
	return s.LoginLink(r.Name)
}

// LoginLink makes a link that lets user, account/name, into the console of this node,
// once and within ten minutes. Only this node knows it. The error is an *admin.Error.
func (s *Server) LoginLink(user string) (admin.LoginLink, error) {
	var none admin.LoginLink
	account, name, err := identity.SplitName(user)
	if err != nil || s.fleet == nil {
		return none, admin.Errorf(admin.Invalid, "name it as account/name", "there is no user %q", user)
	}
	if u, ok := s.fleet.directory.User(account, name); !ok || u.Denied {
		return none, admin.Errorf(admin.NotFound, "fleetbus user ls", "there is no user %q who may log in", user)
	}
	p, l := s.page()
	addr := s.Addr(l.Name)
	if p == nil || addr == nil {
		return none, admin.Errorf(admin.Unavailable, "set listeners.console.addr", "node %s has no console", s.fleet.node)
	}
	secret, ends := s.loginLinks.Add(user, time.Now())
	return admin.LoginLink{Node: s.fleet.node, URL: p.LoginURL(reachable(l.Advertise, addr.String(), s.opts.Advertise), secret), Expires: ends}, nil
}
