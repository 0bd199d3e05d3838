package identity

import (
	"slices"
	"strings"
)

// Private begins the subjects of what protocols keep for themselves, such as the
// sessions of MQTT clients, and of an account's events: see AccountEvents. A rule
// allows them only if it names them: ">" does not, so that who may use everything
// cannot read there what Deny keeps from it.
const Private = "$FLEETBUS."

// hidden is the pattern of the subjects that r does not allow, although it allows
// everything, because it does not name them; empty if there are none. Who names no
// more than an account's events may have nothing else that is private.
func (r Rule) hidden() string {
	wide := func(pattern string) bool { return pattern == ">" || strings.HasPrefix(pattern, "*") }
	if !slices.ContainsFunc(r.Allow, wide) {
		return ""
	}
	hidden := Private + ">"
	for _, pattern := range r.Allow {
		switch rest, private := strings.CutPrefix(pattern, Private); {
		case private && (rest == ">" || strings.Contains(rest, ".")):
			return ""
		case private:
			hidden = Private + "*.>"
		}
	}
	return hidden
}

// Allows reports whether r allows subject, which may have wildcards: then it
// allows all that subject matches, but for what only a part of Deny matches, which
// is to be asked for again with each subject. It is what the engine decides.
func (r Rule) Allows(subject string) bool {
	if hidden := r.hidden(); hidden != "" && covers(hidden, subject) {
		return false
	}
	covers := func(pattern string) bool { return covers(pattern, subject) }
	return slices.ContainsFunc(r.Allow, covers) && !slices.ContainsFunc(r.Deny, covers)
}

// covers reports whether pattern matches all that subject does.
func covers(pattern, subject string) bool {
	for {
		p, restPattern, more := strings.Cut(pattern, ".")
		s, restSubject, left := strings.Cut(subject, ".")
		switch {
		case p == ">" && !more:
			return true
		case s == ">" && !left, s == "*" && p != "*", p != "*" && p != s:
			return false
		case !more || !left:
			return more == left
		}
		pattern, subject = restPattern, restSubject
	}
}
