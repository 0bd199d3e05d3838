package definitions

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/fleetbus/fleetbus/amqp/right"
)

const (
	// maxExpression is the length of an expression, in bytes, that is read, and
	// maxBranches how many alternatives it may amount to.
	maxExpression, maxBranches = 4 << 10, 512
	// maxClass and maxRepeat bound what a class and a repetition amount to.
	maxClass, maxRepeat = 32, 16
)

// A Translation is a regular expression of names as subjects of rights.
type Translation struct {
	// Allow are the subjects. They allow nothing that the expression does not.
	Allow []string
	// Lost says what the expression allows and the subjects do not, and why. It is empty
	// if they say the same.
	Lost []string
	// Spare says what needs no right here, and is left out for that.
	Spare []string
}

// Exact reports whether the subjects say what the expression did.
func (t *Translation) Exact() bool { return len(t.Lost) == 0 }

// Translate translates a regular expression of RabbitMQ's, which an exchange or a queue of
// a name has to match somewhere for a right to it, into subjects that the right is to. It
// never allows more: what cannot be said is in Lost.
func Translate(r right.Right, expression string) Translation {
	var t Translation
	if expression == "" { // of RabbitMQ's it allows nothing
		return t
	}
	all, err := branchesOf(expression)
	if err != nil {
		t.Lost = append(t.Lost, err.Error())
		return t
	}
	if slices.ContainsFunc(all, branch.everything) {
		t.Allow = []string{right.Every(r)}
		return t
	}
	for _, b := range all {
		t.take(r, b)
	}
	slices.Sort(t.Allow)
	t.Allow = slices.Compact(t.Allow)
	t.Lost, t.Spare = distinct(t.Lost), distinct(t.Spare)
	return t
}

// take adds one alternative.
func (t *Translation) take(r right.Right, b branch) {
	lose := func(format string, args ...any) { t.Lost = append(t.Lost, fmt.Sprintf(format, args...)) }
	text := b.text
	subject, ends := right.Beginning(r, text)
	switch {
	case strings.Contains(text, "{{"), strings.Contains(text, "}}"):
		lose("names with {{ or }} in them")
	case b.start && b.end && text == "": // no name is empty
	case b.gap:
		t.Allow = append(t.Allow, right.Named(r, text))
		lose("names that have something between the parts of %q", text)
	case strings.HasPrefix(text, "amq.gen") && b.start:
		t.Spare = append(t.Spare, "queues that a server names need no right")
	case b.start && b.end:
		t.Allow = append(t.Allow, right.Named(r, text))
	case text == right.DefaultExchange:
		t.Allow = append(t.Allow, right.Named(r, text))
		t.Spare = append(t.Spare, "amq.default is the default exchange alone")
	case b.start && ends:
		t.Allow = append(t.Allow, subject)
	case b.start:
		dots, _ := right.Beginning(r, text+".")
		lines, _ := right.Beginning(r, text+"_")
		t.Allow = append(t.Allow, right.Named(r, text), dots, lines)
		lose("names that begin with %q and go on otherwise than with a dot or an underscore: a right is to words", text)
	case b.end:
		t.Allow = append(t.Allow, right.Named(r, text))
		lose("names that end in %q and begin otherwise", text)
	default:
		t.Allow = append(t.Allow, right.Named(r, text))
		lose("names that have %q anywhere: the expression has no ^ before it", text)
	}
}

// Keys is Translate for the routing keys of amq.topic, which are subjects of the account.
func Keys(expression string) Translation {
	var t Translation
	if expression == "" {
		return t
	}
	all, err := branchesOf(expression)
	if err != nil {
		t.Lost = append(t.Lost, err.Error())
		return t
	}
	for _, b := range all {
		words := strings.Split(strings.TrimSuffix(b.text, "."), ".")
		plain := !slices.ContainsFunc(words, func(w string) bool {
			return w == "" || strings.ContainsFunc(w, func(c rune) bool { return !isPlain(c) })
		})
		first := words[0]
		switch {
		case b.start && b.end && b.text == "":
		case b.gap, !plain, first == "amqp", first == "amqp-name", strings.HasPrefix(first, "_"), !b.start:
			t.Lost = append(t.Lost, fmt.Sprintf("keys with %q", b.text))
		case b.end && !strings.HasSuffix(b.text, "."):
			t.Allow = append(t.Allow, b.text)
		case !b.end && strings.HasSuffix(b.text, "."):
			t.Allow = append(t.Allow, b.text+">")
		default:
			t.Lost = append(t.Lost, fmt.Sprintf("keys that begin with %q: a subject has words", b.text))
		}
	}
	slices.Sort(t.Allow)
	t.Allow, t.Lost = slices.Compact(t.Allow), distinct(t.Lost)
	return t
}

func isPlain(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func distinct(all []string) (out []string) {
	for _, s := range all {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// matchesAll reports whether an expression matches everything.
func matchesAll(expression string) bool {
	all, err := branchesOf(expression)
	return err == nil && slices.ContainsFunc(all, branch.everything)
}

// A branch is a text that a name has somewhere, or at its start, or at its end.
type branch struct {
	start, end bool
	text       string
	gap        bool // there may be more within the text
}

func (b branch) everything() bool { return b.text == "" && !(b.start && b.end) }

// branchesOf are the alternatives of an expression. An error says why it is none of
// texts, or what in it other readers of expressions understand otherwise.
func branchesOf(expression string) ([]branch, error) {
	if len(expression) > maxExpression {
		return nil, fmt.Errorf("the expression is longer than %d bytes", maxExpression)
	}
	if strings.ContainsFunc(expression, func(c rune) bool { return c >= utf8.RuneSelf }) {
		return nil, errors.New("the expression has characters that are not ASCII")
	}
	if strings.Contains(expression, "{,") {
		return nil, errors.New("what {, means depends on the version")
	}
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		var wrong *syntax.Error
		if errors.As(err, &wrong) {
			return nil, fmt.Errorf("the expression has %q: %s", wrong.Expr, wrong.Code)
		}
		return nil, err
	}
	all, err := expand(tree)
	if err != nil {
		return nil, err
	}
	var out []branch
	for _, s := range all {
		if b, ok := s.branch(); ok {
			out = append(out, b)
		}
	}
	return out, nil
}

// A piece of a sequence: a text, or a mark.
type piece struct {
	mark byte // 0: a text
	text string
}

const (
	anyText = '*' // any number of characters
	start   = '^'
	end     = '$'
)

type sequence []piece

// expand is an expression as alternatives.
func expand(e *syntax.Regexp) ([]sequence, error) {
	if e.Flags&syntax.FoldCase != 0 && (e.Op == syntax.OpLiteral || e.Op == syntax.OpCharClass) {
		return nil, errors.New("upper and lower case cannot be the same")
	}
	switch e.Op {
	case syntax.OpNoMatch:
		return nil, nil
	case syntax.OpEmptyMatch:
		return []sequence{{}}, nil
	case syntax.OpLiteral:
		return []sequence{{{text: string(e.Rune)}}}, asciiOnly(e.Rune)
	case syntax.OpCharClass:
		return expandClass(e.Rune)
	case syntax.OpBeginText:
		return []sequence{{{mark: start}}}, nil
	case syntax.OpEndText:
		return []sequence{{{mark: end}}}, nil
	case syntax.OpCapture:
		return expand(e.Sub[0])
	case syntax.OpStar:
		if op := e.Sub[0].Op; op == syntax.OpAnyChar || op == syntax.OpAnyCharNotNL {
			return []sequence{{{mark: anyText}}}, nil
		}
		return nil, fmt.Errorf("%q repeats something other than any character", e)
	case syntax.OpPlus:
		return nil, fmt.Errorf("%q is one or more of something: only .* can be said", e)
	case syntax.OpQuest:
		inner, err := expand(e.Sub[0])
		return bounded(append(inner, sequence{}), err)
	case syntax.OpRepeat:
		return expandRepeat(e)
	case syntax.OpConcat:
		out := []sequence{{}}
		for _, sub := range e.Sub {
			inner, err := expand(sub)
			if err == nil {
				out, err = product(out, inner)
			}
			if err != nil {
				return nil, err
			}
		}
		return out, nil
	case syntax.OpAlternate:
		var out []sequence
		for _, sub := range e.Sub {
			inner, err := expand(sub)
			if out, err = bounded(append(out, inner...), err); err != nil {
				return nil, err
			}
		}
		return out, nil
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return nil, errors.New("any one character cannot be said; a dot alone is written with a backslash before it")
	}
	return nil, fmt.Errorf("%q cannot be said", e)
}

func asciiOnly(runes []rune) error {
	if slices.ContainsFunc(runes, func(c rune) bool { return c >= utf8.RuneSelf }) {
		return errors.New("the expression has characters that are not ASCII")
	}
	return nil
}

// expandClass is a class of few characters as alternatives.
func expandClass(ranges []rune) (out []sequence, err error) {
	for i := 0; i+1 < len(ranges); i += 2 {
		for c := ranges[i]; c <= ranges[i+1]; c++ {
			if c >= utf8.RuneSelf || len(out) == maxClass {
				return nil, errors.New("a class of many characters cannot be said")
			}
			out = append(out, sequence{{text: string(c)}})
		}
	}
	return out, nil
}

func expandRepeat(e *syntax.Regexp) ([]sequence, error) {
	if e.Max < 0 || e.Max > maxRepeat {
		return nil, fmt.Errorf("%q repeats without a bound, or often", e)
	}
	inner, err := expand(e.Sub[0])
	if err != nil {
		return nil, err
	}
	var out []sequence
	times := []sequence{{}}
	for n := 0; ; n++ {
		if n >= e.Min {
			out = append(out, times...)
		}
		if n == e.Max {
			return bounded(out, nil)
		}
		if times, err = product(times, inner); err != nil {
			return nil, err
		}
	}
}

func product(a, b []sequence) ([]sequence, error) {
	if len(a)*len(b) > maxBranches {
		return nil, errors.New("the expression has too many alternatives")
	}
	out := make([]sequence, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			if len(x)+len(y) > maxExpression {
				return nil, errors.New("the expression has too many alternatives")
			}
			out = append(out, slices.Concat(x, y))
		}
	}
	return out, nil
}

func bounded(all []sequence, err error) ([]sequence, error) {
	if err == nil && len(all) > maxBranches {
		err = errors.New("the expression has too many alternatives")
	}
	return all, err
}

// branch is what a sequence says; ok is false if nothing matches it. Marks are where
// they stand: what is before the start of a name or behind its end has to be empty.
func (s sequence) branch() (b branch, ok bool) {
	isText := func(p piece) bool { return p.mark == 0 && p.text != "" }
	ends := false
	if i := lastMark(s, start); i >= 0 {
		if slices.ContainsFunc(s[:i], isText) {
			return b, false
		}
		ends = slices.ContainsFunc(s[:i], func(p piece) bool { return p.mark == end })
		b.start, s = true, s[i+1:]
	}
	if ends { // $^
		b.end = true
		return b, !slices.ContainsFunc(s, isText)
	}
	if i := slices.IndexFunc(s, func(p piece) bool { return p.mark == end }); i >= 0 {
		if slices.ContainsFunc(s[i:], isText) {
			return b, false
		}
		b.end, s = true, s[:i]
	}
	s = slices.DeleteFunc(slices.Clone(s), func(p piece) bool { return p.mark == 0 && p.text == "" })
	for len(s) > 0 && s[0].mark == anyText {
		b.start, s = false, s[1:]
	}
	for len(s) > 0 && s[len(s)-1].mark == anyText {
		b.end, s = false, s[:len(s)-1]
	}
	for _, p := range s {
		b.gap = b.gap || p.mark == anyText
		b.text += p.text
	}
	return b, true
}

func lastMark(s sequence, mark byte) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i].mark == mark {
			return i
		}
	}
	return -1
}
