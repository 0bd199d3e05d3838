package identity

import (
	"crypto/rand"
	"strings"
	"time"
)

// Anyone is whoever comes in by a listener that asks for no credentials: what c shows counts
// for nothing. It has the role in the account, and a name of where it is, from
// c.Remote, and of chance. After ten minutes it has to come in again, so that what has
// changed about the role or the account holds for it. The error wraps ErrUnauthorized.
func (d *Directory) Anyone(account, role string, c Credentials, now time.Time) (Principal, error) {
	where, err := Whereabouts(c.Remote)
	if err != nil {
		return Principal{}, refuse("the address of who comes in is none: %w", err)
	}
	r, ok := d.Role(role)
	if !ok {
		return Principal{}, refuse("listener %s gives role %s, which does not exist", quote(c.Listener), quote(role))
	}
	return r.principal(c, KindStranger, account, where+"-"+strings.ToLower(rand.Text()[:8]), strangerLife, now)
}
