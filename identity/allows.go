package identity

import (
	"slices"
	"strings"
)

// Private begins the subjects of what protocols keep for themselves, such as the
// sessions of MQTT clients. A rule allows them only if it names them: ">" does not,
// so that who may use everything cannot read there what Deny keeps from it.
const Private = "$FLEETBUS."

// private reports whether r names private subjects.
func (r Rule) private() bool {
	return slices.ContainsFunc(r.Allow, func(pattern string) bool { return strings.HasPrefix(pattern, Private) })
}

// Allows reports whether r allows subject, which may have wildcards: then it
// allows all that subject matches, but for what only a part of Deny matches, which
// is to be asked for again with each subject. It is what the engine decides.
func (r Rule) Allows(subject string) bool {
	if strings.HasPrefix(subject, Private) && !r.private() {
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
