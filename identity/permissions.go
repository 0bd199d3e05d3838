package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The templates that a subject of a Role may hold. The engine expands them for
// a creds file, Permissions.Expand for every other credential.
const (
	nameTemplate    = "{{name()}}"
	accountTemplate = "{{account-name()}}"
)

// Permissions say what a principal may do within its account. The zero value
// allows nothing.
type Permissions struct {
	// Publish and Subscribe are the subjects that may be written and read.
	Publish   Rule `json:"publish,omitzero"`
	Subscribe Rule `json:"subscribe,omitzero"`
	// Replies lets the principal answer requests that it received, on subjects
	// that Publish does not allow. Nil: it may not.
	Replies *Replies `json:"replies,omitempty"`
}

// A Rule allows the subjects that Allow matches and Deny does not. Both are
// lists of NATS subjects in which "*" stands for one token and a last ">" for
// one or more. The zero value allows nothing, unlike the engine's own.
type Rule struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
}

// Replies bound the answers to one request.
type Replies struct {
	// Max is the number of messages. 0: one.
	Max int `json:"max,omitempty"`
	// For is how long after the request they may be sent. 0: two minutes.
	For time.Duration `json:"for,omitempty"`
}

// ErrTooManyConnections says that an account has as many clients as its limit
// allows.
var ErrTooManyConnections = errors.New("the account has as many clients as it may have")

// Limits bound what an account or a connection may use. Zero is unlimited in
// every field.
type Limits struct {
	// Connections of clients at once, on all nodes: of an account, or of one user of
	// a role.
	Connections int64 `json:"connections,omitempty"`
	// Leafs is the links of sites at once, of an account.
	Leafs int64 `json:"leafs,omitempty"`
	// Subscriptions at once, of an account or a connection.
	Subscriptions int64 `json:"subscriptions,omitempty"`
	// Payload of one message in bytes, of an account or a connection.
	Payload int64 `json:"payload,omitempty"`
	// Data is the bytes that an account or a connection may have under way.
	Data int64 `json:"data,omitempty"`
	// Storage and Memory are the bytes that an account's streams may hold on disk
	// and in memory, all replicas counted.
	Storage int64 `json:"storage,omitempty"`
	Memory  int64 `json:"memory,omitempty"`
	// Streams and Consumers of an account.
	Streams   int64 `json:"streams,omitempty"`
	Consumers int64 `json:"consumers,omitempty"`
}

// Validate returns every problem of p, joined; nil if there is none.
func (p Permissions) Validate() error {
	var errs []error
	for _, rule := range []struct {
		field    string
		subjects []string
	}{
		{"publish.allow", p.Publish.Allow}, {"publish.deny", p.Publish.Deny},
		{"subscribe.allow", p.Subscribe.Allow}, {"subscribe.deny", p.Subscribe.Deny},
	} {
		for _, s := range rule.subjects {
			if err := CheckSubject(s); err != nil {
				errs = append(errs, fmt.Errorf("checking %s: %w", rule.field, err))
			}
		}
	}
	if r := p.Replies; r != nil && (r.Max < 0 || r.For < 0) {
		errs = append(errs, errors.New("checking replies: a bound is negative"))
	}
	return errors.Join(errs...)
}

// Empty reports whether p allows nothing.
func (p Permissions) Empty() bool {
	return len(p.Publish.Allow)+len(p.Subscribe.Allow) == 0 && p.Replies == nil
}

// Expand returns a copy of p in which the templates {{name()}} and
// {{account-name()}} are replaced. Both arguments must be valid names: see
// CheckName.
func (p Permissions) Expand(account, name string) Permissions {
	p = p.clone()
	r := strings.NewReplacer(nameTemplate, name, accountTemplate, account)
	for _, list := range [][]string{p.Publish.Allow, p.Publish.Deny, p.Subscribe.Allow, p.Subscribe.Deny} {
		for i := range list {
			list[i] = r.Replace(list[i])
		}
	}
	return p
}

func (p Permissions) clone() Permissions {
	p.Publish = p.Publish.clone()
	p.Subscribe = p.Subscribe.clone()
	if p.Replies != nil {
		r := *p.Replies
		p.Replies = &r
	}
	return p
}

func (r Rule) clone() Rule {
	return Rule{Allow: slices.Clone(r.Allow), Deny: slices.Clone(r.Deny)}
}

// Validate says which limit is negative; nil if none is.
func (l Limits) Validate() error {
	for _, f := range []struct {
		field string
		value int64
	}{
		{"connections", l.Connections}, {"leafs", l.Leafs}, {"subscriptions", l.Subscriptions}, {"payload", l.Payload}, {"data", l.Data},
		{"storage", l.Storage}, {"memory", l.Memory}, {"streams", l.Streams}, {"consumers", l.Consumers},
	} {
		if f.value < 0 {
			return fmt.Errorf("checking limits: %s is negative", f.field)
		}
	}
	return nil
}

// CheckSubject says what is wrong with a subject of a Rule; nil if nothing is.
// Its tokens are parted by ".", are not empty and hold no space or control
// character; "*" and a last ">" are wildcards and stand alone in their token.
// The templates {{name()}} and {{account-name()}} may stand anywhere in a token.
func CheckSubject(subject string) error {
	plain := strings.NewReplacer(nameTemplate, "n", accountTemplate, "n").Replace(subject)
	if strings.Contains(plain, "{{") || strings.Contains(plain, "}}") {
		return fmt.Errorf("subject %s has a template that is neither %s nor %s", quote(subject), nameTemplate, accountTemplate)
	}
	if !utf8.ValidString(plain) {
		return fmt.Errorf("subject %s is not UTF-8", quote(subject))
	}
	if strings.ContainsFunc(plain, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("subject %s has a space or control character", quote(subject))
	}
	tokens := strings.Split(plain, ".")
	for i, token := range tokens {
		switch {
		case token == "":
			return fmt.Errorf("subject %s has an empty token", quote(subject))
		case token == ">" && i < len(tokens)-1:
			return fmt.Errorf("subject %s goes on after >", quote(subject))
		case len(token) > 1 && strings.ContainsAny(token, "*>"):
			return fmt.Errorf("subject %s has a wildcard that is not a token of its own", quote(subject))
		}
	}
	return nil
}

// checkNetworks accepts what the engine and networksContain agree on.
func checkNetworks(networks []string) error {
	for _, n := range networks {
		if prefix, err := netip.ParsePrefix(n); err != nil || prefix.Addr().Is4In6() {
			return fmt.Errorf("checking networks: %s is not an address and a prefix length, such as 10.0.0.0/8", quote(n))
		}
	}
	return nil
}

// networksContain reports whether remote, an address with or without a port, is
// within one of networks. What cannot be read is outside.
func networksContain(networks []string, remote string) bool {
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		ap, err := netip.ParseAddrPort(remote)
		if err != nil {
			return false
		}
		addr = ap.Addr()
	}
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(networks, func(n string) bool {
		prefix, err := netip.ParsePrefix(n)
		return err == nil && prefix.Contains(addr)
	})
}
