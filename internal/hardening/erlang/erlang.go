// Package erlang reads files of Erlang terms, as file:consult of Erlang does: RabbitMQ's
// rabbitmq.config and advanced.config are such files.
package erlang

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The most that a file may have.
const (
	// MaxSize is in bytes.
	MaxSize = 4 << 20
	// MaxDepth is of lists, tuples and maps within one another.
	MaxDepth = 64
	// MaxTerms is of all terms in a file.
	MaxTerms = 200_000
)

// A Kind says what a Term is.
type Kind int

// The kinds of terms.
const (
	Atom Kind = iota
	String
	Binary
	Integer
	Float
	Tuple
	List
	Map
)

// A Term is one value, and where it stands.
type Term struct {
	Kind Kind
	// Text is that of an atom, a string or a binary, and a number as it was written.
	Text string
	// Int is an integer, cut to what fits, and Num any number.
	Int int64
	Num float64
	// Items are those of a tuple or a list. A map has its keys and values in turn.
	Items []Term
	// Line is where it begins, from 1.
	Line int
}

// Pair are the key and the value of a tuple of two whose first item is an atom.
func (t Term) Pair() (key string, value Term, ok bool) {
	if t.Kind == Tuple && len(t.Items) == 2 && t.Items[0].Kind == Atom {
		return t.Items[0].Text, t.Items[1], true
	}
	return "", Term{}, false
}

// Is reports whether t is that atom.
func (t Term) Is(atom string) bool { return t.Kind == Atom && t.Text == atom }

// Plain is the value of t as a line of settings would have it: text as it is, and the
// items of lists and tuples with commas.
func (t Term) Plain() string {
	switch t.Kind {
	case Tuple, List, Map:
		parts := make([]string, len(t.Items))
		for i, item := range t.Items {
			parts[i] = item.Plain()
		}
		open, end := "[", "]"
		if t.Kind != List {
			open, end = "{", "}"
		}
		return open + strings.Join(parts, ", ") + end
	}
	return t.Text
}

// An Error is what is wrong with a file. It never has the text that stands there, which
// may be a secret.
type Error struct {
	Line int
	Why  string
}

// Error is the line and why.
func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Why) }

type reader struct {
	in    string
	at    int
	line  int
	terms int
}

// Parse reads all terms of a file, each of which ends with a dot. The error is an *Error.
func Parse(data []byte) ([]Term, error) {
	if len(data) > MaxSize {
		return nil, &Error{1, fmt.Sprintf("it has more than %d bytes", MaxSize)}
	}
	r := &reader{in: strings.TrimPrefix(string(data), "\ufeff"), line: 1}
	var all []Term
	for {
		r.space()
		if r.at >= len(r.in) {
			return all, nil
		}
		t, err := r.term(0)
		if err != nil {
			return all, err
		}
		r.space()
		if !r.dot() {
			return all, r.fail("a dot is missing after the term")
		}
		all = append(all, t)
	}
}

func (r *reader) fail(format string, args ...any) error {
	return &Error{r.line, fmt.Sprintf(format, args...)}
}

func (r *reader) peek() byte {
	if r.at < len(r.in) {
		return r.in[r.at]
	}
	return 0
}

// space goes over white space and comments.
func (r *reader) space() {
	for r.at < len(r.in) {
		switch c := r.in[r.at]; {
		case c == '\n':
			r.line++
			r.at++
		case c <= ' ':
			r.at++
		case strings.HasPrefix(r.in[r.at:], "\u00a0"):
			r.at += 2
		case c == '%':
			end := strings.IndexByte(r.in[r.at:], '\n')
			if end < 0 {
				r.at = len(r.in)
				return
			}
			r.at += end
		default:
			return
		}
	}
}

// dot takes the end of a term: a dot before white space, a comment or the end.
func (r *reader) dot() bool {
	if r.peek() != '.' {
		return false
	}
	if r.at+1 < len(r.in) && r.in[r.at+1] > ' ' && r.in[r.at+1] != '%' {
		return false
	}
	r.at++
	return true
}

func (r *reader) take(token string) bool {
	if !strings.HasPrefix(r.in[r.at:], token) {
		return false
	}
	r.at += len(token)
	return true
}

func (r *reader) term(depth int) (t Term, err error) {
	if depth > MaxDepth {
		return t, r.fail("more than %d lists and tuples are within one another", MaxDepth)
	}
	if r.terms++; r.terms > MaxTerms {
		return t, r.fail("it has more than %d terms", MaxTerms)
	}
	t.Line = r.line
	c := r.peek()
	switch {
	case c == 0:
		return t, r.fail("it ends within a term")
	case r.take("<<"):
		return r.binary(t)
	case r.take("#{"):
		return r.mapping(t, depth)
	case c == '{':
		r.at++
		t.Kind = Tuple
		t.Items, err = r.items("}", depth)
		return t, err
	case c == '[':
		r.at++
		t.Kind = List
		t.Items, err = r.items("]", depth)
		return t, err
	case c == '"':
		t.Kind = String
		for r.peek() == '"' { // strings that stand side by side are one
			part, err := r.quoted('"')
			if err != nil {
				return t, err
			}
			t.Text += part
			r.space()
		}
		return t, nil
	case c == '\'':
		t.Kind = Atom
		t.Text, err = r.quoted('\'')
		return t, err
	case c == '$':
		return r.char(t)
	case c >= '0' && c <= '9', c == '-', c == '+':
		return r.number(t)
	}
	first, _ := utf8.DecodeRuneInString(r.in[r.at:])
	if !unicode.IsLower(first) {
		return t, r.fail("no term begins like this")
	}
	start := r.at
	for r.at < len(r.in) {
		l, n := utf8.DecodeRuneInString(r.in[r.at:])
		if !unicode.IsLetter(l) && !unicode.IsDigit(l) && l != '_' && l != '@' {
			break
		}
		r.at += n
	}
	t.Kind, t.Text = Atom, r.in[start:r.at]
	return t, nil
}

// items are those of a list or a tuple, to its end.
func (r *reader) items(end string, depth int) (all []Term, err error) {
	r.space()
	if r.take(end) {
		return nil, nil
	}
	for {
		r.space()
		t, err := r.term(depth + 1)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
		r.space()
		switch {
		case r.take(","):
		case r.take(end):
			return all, nil
		case end == "]" && r.take("|"):
			r.space()
			tail, err := r.term(depth + 1)
			if err != nil {
				return nil, err
			}
			if tail.Kind != List {
				return nil, r.fail("a list has a tail that is no list")
			}
			r.space()
			if !r.take(end) {
				return nil, r.fail("%q is missing", end)
			}
			return append(all, tail.Items...), nil
		default:
			return nil, r.fail("a comma, or %q, is missing", end)
		}
	}
}

func (r *reader) mapping(t Term, depth int) (Term, error) {
	t.Kind = Map
	r.space()
	if r.take("}") {
		return t, nil
	}
	for {
		r.space()
		key, err := r.term(depth + 1)
		if err != nil {
			return t, err
		}
		r.space()
		if !r.take("=>") {
			return t, r.fail(`"=>" is missing in a map`)
		}
		r.space()
		value, err := r.term(depth + 1)
		if err != nil {
			return t, err
		}
		t.Items = append(t.Items, key, value)
		r.space()
		switch {
		case r.take(","):
		case r.take("}"):
			return t, nil
		default:
			return t, r.fail(`a comma, or "}", is missing in a map`)
		}
	}
}

// binary reads what is between << and >>: strings and bytes.
func (r *reader) binary(t Term) (Term, error) {
	t.Kind = Binary
	var b strings.Builder
	r.space()
	if r.take(">>") {
		return t, nil
	}
	for {
		r.space()
		switch c := r.peek(); {
		case c == '"':
			part, err := r.quoted('"')
			if err != nil {
				return t, err
			}
			b.WriteString(part)
		case c >= '0' && c <= '9', c == '$':
			n, err := r.term(MaxDepth)
			if err != nil {
				return t, err
			}
			if n.Kind != Integer || n.Int < 0 || n.Int > 255 {
				return t, r.fail("a binary has what is no byte")
			}
			b.WriteByte(byte(n.Int))
		default:
			return t, r.fail("a binary has what is neither a string nor a byte")
		}
		r.space()
		if r.take("/") && !r.take("utf8") {
			return t, r.fail("a binary has a type that is not known here")
		}
		r.space()
		switch {
		case r.take(","):
		case r.take(">>"):
			t.Text = b.String()
			return t, nil
		default:
			return t, r.fail(`a comma, or ">>", is missing`)
		}
	}
}

// quoted reads a text between two quotes.
func (r *reader) quoted(quote byte) (string, error) {
	line := r.line
	r.at++
	var b strings.Builder
	for r.at < len(r.in) {
		switch c := r.in[r.at]; c {
		case quote:
			r.at++
			return b.String(), nil
		case '\\':
			r.at++
			v, err := r.escape()
			if err != nil {
				return "", err
			}
			b.WriteRune(v)
		case '\n':
			r.line++
			fallthrough
		default:
			b.WriteByte(c)
			r.at++
		}
	}
	return "", &Error{line, "a quote has no end"}
}

// escape reads what follows a backslash.
func (r *reader) escape() (rune, error) {
	c, n := utf8.DecodeRuneInString(r.in[r.at:])
	if n == 0 {
		return 0, r.fail("it ends within a character")
	}
	r.at += n
	switch c {
	case 'b':
		return '\b', nil
	case 'd':
		return 127, nil
	case 'e':
		return 27, nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 's':
		return ' ', nil
	case 't':
		return '\t', nil
	case 'v':
		return '\v', nil
	case '^':
		if r.at >= len(r.in) {
			return 0, r.fail("it ends within a character")
		}
		r.at++
		return rune(r.in[r.at-1] & 31), nil
	case 'x':
		return r.hex()
	case '\n':
		r.line++
		return c, nil
	}
	if c < '0' || c > '7' {
		return c, nil
	}
	v := c - '0'
	for i := 0; i < 2 && r.peek() >= '0' && r.peek() <= '7'; i++ {
		v = v*8 + rune(r.peek()-'0')
		r.at++
	}
	return v, nil
}

func (r *reader) hex() (rune, error) {
	text := ""
	if r.take("{") {
		end := strings.IndexByte(r.in[r.at:], '}')
		if end < 0 {
			return 0, r.fail(`"}" is missing after \x{`)
		}
		text = r.in[r.at : r.at+end]
		r.at += end + 1
	} else {
		text = r.in[r.at:min(r.at+2, len(r.in))]
		r.at += len(text)
	}
	v, err := strconv.ParseUint(text, 16, 32)
	if err != nil || v > unicode.MaxRune {
		return 0, r.fail(`\x is not followed by a character's number`)
	}
	return rune(v), nil
}

func (r *reader) char(t Term) (Term, error) {
	r.at++
	t.Kind = Integer
	c, n := utf8.DecodeRuneInString(r.in[r.at:])
	if n == 0 {
		return t, r.fail("it ends within a character")
	}
	r.at += n
	if c == '\\' {
		v, err := r.escape()
		if err != nil {
			return t, err
		}
		c = v
	} else if c == '\n' {
		r.line++
	}
	t.Int, t.Num, t.Text = int64(c), float64(c), strconv.Itoa(int(c))
	return t, nil
}

func (r *reader) digits(valid string) string {
	start := r.at
	for r.at < len(r.in) && strings.IndexByte(valid, r.in[r.at]) >= 0 {
		r.at++
	}
	return strings.ReplaceAll(r.in[start:r.at], "_", "")
}

func (r *reader) number(t Term) (Term, error) {
	sign := ""
	switch {
	case r.take("-"):
		sign = "-"
	case r.take("+"):
	}
	r.space()
	whole := r.digits("0123456789_")
	if whole == "" {
		return t, r.fail("a sign is not followed by a number")
	}
	t.Kind = Integer
	base := 10
	switch {
	case r.peek() == '#':
		b, err := strconv.Atoi(whole)
		if err != nil || b < 2 || b > 36 {
			return t, r.fail("a number has a base that is not between 2 and 36")
		}
		r.at++
		base = b
		all := "0123456789abcdefghijklmnopqrstuvwxyz"
		if whole = r.digits(all[:b] + strings.ToUpper(all[:b]) + "_"); whole == "" {
			return t, r.fail("a base is not followed by digits")
		}
	case r.peek() == '.' && r.at+1 < len(r.in) && r.in[r.at+1] >= '0' && r.in[r.at+1] <= '9':
		r.at++
		t.Kind = Float
		whole += "." + r.digits("0123456789_")
		if c := r.peek(); c == 'e' || c == 'E' {
			r.at++
			exponent := ""
			if c := r.peek(); c == '-' || c == '+' {
				exponent = string(c)
				r.at++
			}
			whole += "e" + exponent + r.digits("0123456789")
		}
	}
	t.Text = sign + whole
	if t.Kind == Float {
		n, err := strconv.ParseFloat(t.Text, 64)
		if err != nil {
			return t, r.fail("a number is too large, or is none")
		}
		t.Num, t.Int = n, int64(max(math.MinInt32, min(n, math.MaxInt32)))
		return t, nil
	}
	if len(whole) > 4096 {
		return t, r.fail("a number has more than 4096 digits")
	}
	n, err := strconv.ParseInt(t.Text, base, 64)
	if errors.Is(err, strconv.ErrRange) {
		b, _ := new(big.Int).SetString(t.Text, base)
		t.Num, _ = new(big.Float).SetInt(b).Float64()
		t.Int, t.Text = n, b.String()
		return t, nil
	}
	if err != nil {
		return t, r.fail("a number is none")
	}
	t.Int, t.Num, t.Text = n, float64(n), strconv.FormatInt(n, 10)
	return t, nil
}
