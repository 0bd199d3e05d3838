package identity

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Signing says what becomes of messages in an account that are not signed, or signed by
// nobody who may.
type Signing string

const (
	// SigningOff verifies nothing.
	SigningOff Signing = ""
	// SigningOptional verifies what is published under SignedPrefix. Everything else is
	// as it is.
	SigningOptional Signing = "optional"
	// SigningRequired lets users publish under SignedPrefix alone, and what Unsigned has.
	SigningRequired Signing = "required"
)

// SignedPrefix is before the subject of a message that a node verifies and then publishes,
// and SigningKeys the subject on which a node tells whose a key is.
const (
	SignedPrefix = "$SIGNED."
	SigningKeys  = "$SIGNING.key"
)

// ErrNoSigner says that a key is of nobody who may sign.
var ErrNoSigner = errors.New("the key is of no user who may sign")

// ParseSigning reads off, optional or required.
func ParseSigning(text string) (Signing, error) {
	switch s := Signing(text); s {
	case "off":
		return SigningOff, nil
	case SigningOptional, SigningRequired:
		return s, nil
	}
	return "", fmt.Errorf("signing %s is not off, optional or required", quote(text))
}

// String is off, optional or required.
func (s Signing) String() string {
	if s == SigningOff {
		return "off"
	}
	return string(s)
}

// unsigned are the subjects on which users publish as they are, whatever is required:
// answers, and what the engine is told and asked about streams that others have made. To
// make a stream is none of it: it can have the engine publish what is not signed.
func unsigned() []string {
	const api = "$JS.API."
	return []string{
		"_INBOX.>", "_R_.>", "$JS.ACK.>", "$JS.FC.>", "$SYS.>",
		api + "INFO", api + "STREAM.NAMES", api + "STREAM.LIST", api + "STREAM.INFO.*", api + "STREAM.MSG.GET.*", api + "DIRECT.GET.>", api + "CONSUMER.>",
	}
}

// Unsigned reports whether users may publish to a subject as it is where signatures are
// required.
func Unsigned(subject string) bool {
	return strings.HasPrefix(subject, Private) || slices.ContainsFunc(unsigned(), func(p string) bool { return covers(p, subject) })
}

// permissions are p as the engine enforces them. Whether the one who signed may publish
// to a subject is for the node that verifies it to say, by p itself.
func (s Signing) permissions(p Permissions) Permissions {
	if s == SigningOff {
		return p
	}
	p = p.clone()
	var signed, plain []string
	for _, allowed := range p.Publish.Allow {
		if strings.HasPrefix(allowed, Private) {
			plain = append(plain, allowed)
			continue
		}
		signed = append(signed, SignedPrefix+allowed)
		for _, free := range unsigned() {
			switch {
			case covers(allowed, free):
				plain = append(plain, free)
			case covers(free, allowed):
				plain = append(plain, allowed)
			}
		}
	}
	if s == SigningRequired {
		p.Publish.Allow = plain
		if p.Replies != nil {
			// Who is let publish to any subject that it is asked from can ask itself.
			p.Publish.Allow = append(p.Publish.Allow, "_INBOX.>", "_R_.>")
			p.Replies = nil
		}
	}
	p.Publish.Allow = append(p.Publish.Allow, signed...)
	if len(p.Subscribe.Allow) > 0 {
		p.Publish.Allow = append(p.Publish.Allow, SigningKeys)
	}
	for _, kept := range []string{SignedPrefix + ">", SigningKeys} { // what is not verified yet is for nodes alone
		if slices.ContainsFunc(p.Subscribe.Allow, func(allowed string) bool { return Overlap(allowed, kept) }) {
			p.Subscribe.Deny = append(p.Subscribe.Deny, kept)
		}
	}
	slices.Sort(p.Publish.Allow)
	p.Publish.Allow = slices.Compact(p.Publish.Allow)
	return p
}

// HasSites reports whether sites are linked to an account, or may be.
func (d *Directory) HasSites(account string) bool {
	return slices.ContainsFunc(d.SiteUsers(), func(u User) bool { return u.Account == account })
}

// KeySigner returns who signs with a key in an account, with what it may do there, and
// when the key expires; zero if never. key is a public nkey or the KeyHash of a
// certificate. The error wraps ErrNoSigner.
func (d *Directory) KeySigner(account, key string, now time.Time) (Principal, time.Time, error) {
	d.mu.RLock()
	user, ok := d.state.users[d.state.keys[account+"/"+key]]
	holders := len(d.state.holders[key])
	d.mu.RUnlock()
	if !ok || holders > 1 {
		return Principal{}, time.Time{}, ErrNoSigner
	}
	var expires time.Time
	for _, k := range user.Keys {
		if k.Public == key {
			expires = k.Expires
		}
	}
	for _, c := range user.Certificates {
		// One that was renewed with its key is there as often.
		if c.SHA256 == key && c.NotAfter.After(expires) {
			expires = c.NotAfter
		}
	}
	if expired(expires, now) {
		return Principal{}, expires, fmt.Errorf("%w: it expired at %s", ErrNoSigner, expires.UTC().Format(time.RFC3339))
	}
	role, isRole := d.Role(user.Role)
	if user.Denied || !isRole || !role.AllowedIn(account) || user.Site != nil {
		return Principal{}, expires, fmt.Errorf("%w: %q is denied, or has no role here", ErrNoSigner, user)
	}
	if _, open, err := role.Hours.Open(now); err != nil || !open {
		return Principal{}, expires, fmt.Errorf("%w: %q has hours, and it is outside of them", ErrNoSigner, user)
	}
	return Principal{Account: account, Name: user.Name, Kind: KindUser, Role: role.Name, Permissions: role.In(account).Expand(account, user.Name)}, expires, nil
}
