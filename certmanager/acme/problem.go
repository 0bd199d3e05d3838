package acme

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/certmanager"
)

// maxDetail bounds what is repeated of an authority's words.
const maxDetail = 1000

// problemType is the type of the ACME problem in err; empty if there is none.
func problemType(err error) string {
	var p acme.Problem
	if errors.As(err, &p) {
		return p.Type
	}
	return ""
}

// hopeless are the types of problems after which the same order cannot succeed at
// the same authority.
func hopeless(kind string) bool {
	return slices.Contains([]string{
		acme.ProblemTypeBadCSR, acme.ProblemTypeBadPublicKey, acme.ProblemTypeCAA, acme.ProblemTypeExternalAccountRequired,
		acme.ProblemTypeInvalidContact, acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedContact,
		acme.ProblemTypeUnsupportedIdentifier, acme.ProblemTypeUserActionRequired, acme.ProblemTypeNamespace + "invalidProfile",
	}, kind)
}

// permanent is a problem that is found before the authority is asked.
func permanent(step, format string, args ...any) error {
	return &certmanager.Problem{Step: step, Permanent: true, Err: fmt.Errorf(format, args...)}
}

// problem is err of a step, with what the authority said about it.
func (t *trace) problem(step string, err error) error {
	if err == nil {
		return nil
	}
	var known *certmanager.Problem
	if errors.As(err, &known) {
		return err // with what was found out where it was known
	}
	p := &certmanager.Problem{Step: step, Type: problemType(err), Err: err}
	p.Permanent = hopeless(p.Type)
	if status, after := t.last(); status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || p.Type == acme.ProblemTypeRateLimited {
		p.After = after
	}
	var said acme.Problem
	if errors.As(err, &said) {
		p.Err = &refusal{said, err}
	}
	return p
}

// A refusal is an ACME problem in words for people, one line for each name.
type refusal struct {
	said acme.Problem
	err  error
}

func (r *refusal) Unwrap() error { return r.err }

func (r *refusal) Error() string {
	text := sentence(r.said)
	for _, s := range r.said.Subproblems {
		text += "\n" + s.Identifier.Value + ": " + sentence(s.Problem)
	}
	return bounded(text)
}

// sentence is what a problem says, without the names below it.
func sentence(p acme.Problem) string {
	kind := strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)
	switch {
	case p.Detail == "" && kind == "":
		return "the authority gives no reason"
	case p.Detail == "":
		return kind
	case kind == "":
		return p.Detail
	}
	return p.Detail + " (" + kind + ")"
}

// bounded cuts a text, and takes what could drive a terminal out of it.
func bounded(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}

// A failedName is a name that could not be proved.
type failedName struct {
	name string
	err  error
}

// failed is the problem of several names, sorted, one line each.
func (t *trace) failed(step string, all []failedName) error {
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b failedName) int { return strings.Compare(a.name, b.name) })
	p := &certmanager.Problem{Step: step}
	var lines []error
	for _, f := range all {
		one := t.problem(step, f.err)
		var q *certmanager.Problem
		if errors.As(one, &q) {
			if p.Type == "" {
				p.Type = q.Type
			}
			if q.After.After(p.After) {
				p.After = q.After
			}
			p.Permanent = p.Permanent || q.Permanent // one name is enough
			lines = append(lines, fmt.Errorf("%s: %w", f.name, q.Err))
		}
	}
	p.Err = errors.Join(lines...)
	return p
}
