package mysql

import (
	"slices"
	"strings"
)

// touched is what a statement in the log may have changed, but for rows that the
// log has besides.
type touched struct {
	tables [][2]string // schema, table
	all    bool        // anything
	schema bool        // tables may be others than before
}

// token is a word, a quoted name or a sign of a statement.
type token struct {
	text   string
	quoted bool
}

// is reports whether t is one of those words, which are in upper case.
func (t token) is(words ...string) bool {
	return !t.quoted && slices.Contains(words, strings.ToUpper(t.text))
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// tokens are those of a statement, without comments; what only some servers
// execute is taken as executed. Strings are left out, but stand for a token.
func tokens(s string) (all []token) {
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '#' || strings.HasPrefix(s[i:], "-- ") || strings.HasPrefix(s[i:], "--\n"):
			end := strings.IndexByte(s[i:], '\n')
			if end < 0 {
				return all
			}
			i += end + 1
		case strings.HasPrefix(s[i:], "/*!") || strings.HasPrefix(s[i:], "/*M!"):
			for i += strings.IndexByte(s[i:], '!') + 1; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
			}
		case strings.HasPrefix(s[i:], "/*"):
			end := strings.Index(s[i+2:], "*/")
			if end < 0 {
				return all
			}
			i += end + 4
		case strings.HasPrefix(s[i:], "*/"):
			i += 2
		case c == '`' || c == '"' || c == '\'':
			text, next := quotedText(s, i)
			all = append(all, token{text, true})
			i = next
		case wordByte(c):
			end := i
			for end < len(s) && wordByte(s[end]) {
				end++
			}
			all = append(all, token{text: s[i:end]})
			i = end
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		default:
			all = append(all, token{text: string(c)})
			i++
		}
	}
	return all
}

// quotedText is what is between the quotes at i, and where it goes on after them.
func quotedText(s string, i int) (text string, next int) {
	quote := s[i]
	var b strings.Builder
	for i++; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quote != '`' && i+1 < len(s):
			i++
		case s[i] == quote && i+1 < len(s) && s[i+1] == quote:
			i++
		case s[i] == quote:
			return b.String(), i + 1
		}
		b.WriteByte(s[i])
	}
	return b.String(), i
}

// parser takes names from tokens.
type parser struct {
	tokens []token
	schema string
	out    touched
}

// harmless begin statements that change no row and no table.
var harmless = []string{"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "GRANT", "REVOKE", "FLUSH", "ANALYZE", "OPTIMIZE", "INSTALL", "UNINSTALL", "USE", "SET"}

// objects are what is made, altered and dropped; only the first four have rows.
var objects = []string{"TABLE", "TABLES", "DATABASE", "SCHEMA", "INDEX", "VIEW", "TRIGGER", "PROCEDURE", "FUNCTION", "EVENT", "USER", "ROLE", "SERVER", "SEQUENCE",
	"PACKAGE", "TABLESPACE", "LOGFILE", "INSTANCE", "RESOURCE", "SPATIAL REFERENCE", "LIBRARY"}

// read says what a statement touches that ran with a default schema.
func read(statement, schema string) touched {
	p := &parser{tokens: tokens(statement), schema: schema}
	if p.skip("SET") && p.skip("STATEMENT") {
		i := slices.IndexFunc(p.tokens, func(t token) bool { return t.is("FOR") })
		p.tokens = p.tokens[i+1:]
	} else {
		p.tokens = tokens(statement)
	}
	if len(p.tokens) == 0 {
		return touched{}
	}
	verb := p.tokens[0]
	p.tokens = p.tokens[1:]
	ok := true
	switch {
	case verb.is(harmless...):
	case verb.is("XA"):
		// Its rows were in the log before they were committed.
		ok = len(p.tokens) > 0 && !p.tokens[0].is("COMMIT")
	case verb.is("TRUNCATE"):
		p.skip("TABLE")
		ok = p.list()
	case verb.is("CREATE", "ALTER", "DROP", "RENAME"):
		ok = p.definition(verb)
	default:
		ok = false
	}
	p.out.all = p.out.all || !ok
	return p.out
}

// definition reads a statement that changes tables.
func (p *parser) definition(verb token) bool {
	i := slices.IndexFunc(p.tokens, func(t token) bool { return t.is(objects...) })
	if i < 0 {
		return false
	}
	object := p.tokens[i]
	if slices.ContainsFunc(p.tokens[:i], func(t token) bool { return t.is("TEMPORARY") }) {
		return true
	}
	p.tokens = p.tokens[i+1:]
	p.out.schema = true
	switch {
	case object.is("DATABASE", "SCHEMA"):
		return !verb.is("DROP")
	case object.is("INDEX"):
		on := slices.IndexFunc(p.tokens, func(t token) bool { return t.is("ON") })
		p.tokens = p.tokens[on+1:]
		return on >= 0 && p.name()
	case !object.is("TABLE", "TABLES"):
		return true
	}
	if p.skip("IF") {
		p.skip("NOT")
		p.skip("EXISTS")
	}
	switch {
	case verb.is("DROP"):
		return p.list()
	case verb.is("RENAME"):
		return p.renames()
	case verb.is("ALTER"):
		return p.alter()
	}
	return p.name()
}

func (p *parser) skip(words ...string) bool {
	if len(p.tokens) == 0 || !p.tokens[0].is(words...) {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

// name takes a name, with its schema or without.
func (p *parser) name() bool {
	part := func() (string, bool) {
		if len(p.tokens) == 0 || !p.tokens[0].quoted && !wordByte(p.tokens[0].text[0]) {
			return "", false
		}
		text := p.tokens[0].text
		p.tokens = p.tokens[1:]
		return text, true
	}
	schema := p.schema
	table, ok := part()
	if ok && p.skip(".") {
		schema = table
		table, ok = part()
	}
	if ok {
		p.out.tables = append(p.out.tables, [2]string{schema, table})
	}
	return ok
}

// list takes names with commas between them.
func (p *parser) list() bool {
	for {
		if !p.name() {
			return false
		}
		if !p.skip(",") {
			return true
		}
	}
}

// renames takes pairs of names.
func (p *parser) renames() bool {
	for {
		if !p.name() {
			return false
		}
		for !p.skip("TO") {
			if len(p.tokens) == 0 {
				return false
			}
			p.tokens = p.tokens[1:] // WAIT 10, NOWAIT
		}
		if !p.name() {
			return false
		}
		if !p.skip(",") {
			return true
		}
	}
}

// alter takes the name of a table, its new one, and that of a table with which it
// changes places.
func (p *parser) alter() bool {
	if !p.name() {
		return false
	}
	for len(p.tokens) > 0 {
		switch {
		case p.skip("RENAME"):
			if p.skip("COLUMN", "INDEX", "KEY", "CONSTRAINT") {
				continue
			}
			if !p.skip("TO", "AS") {
				p.skip("=")
			}
			if !p.name() {
				return false
			}
		case p.skip("WITH", "FROM"):
			if p.skip("TABLE") && !p.name() {
				return false
			}
		default:
			p.tokens = p.tokens[1:]
		}
	}
	return true
}
