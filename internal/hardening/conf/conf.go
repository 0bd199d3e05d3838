// Package conf reads settings of message brokers and of what surrounds them, line by line:
// RabbitMQ's and Qpid's own files, those of OpenStack's services, units of systemd, files
// of variables, and Qpid's access lists. It judges nothing.
package conf

import (
	"fmt"
	"strings"
)

// The most that a file may have.
const (
	// MaxSize is in bytes.
	MaxSize = 4 << 20
	// MaxLines is in lines.
	MaxLines = 100_000
)

// An Entry is one setting, and where it stands.
type Entry struct {
	// Section is empty in files that have none.
	Section    string
	Key, Value string
	// Line is where it begins, from 1.
	Line int
}

// A Problem is a line that is none of what the file may have. Why never has the text of
// the line, which may be a secret.
type Problem struct {
	Line int
	Why  string
}

// String is the line and why.
func (p Problem) String() string { return fmt.Sprintf("line %d: %s", p.Line, p.Why) }

// lines are those of a file, without the ends that other systems write.
func lines(data []byte) ([]string, []Problem) {
	if len(data) > MaxSize {
		return nil, []Problem{{1, fmt.Sprintf("it has more than %d bytes", MaxSize)}}
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	if i := strings.IndexByte(text, 0); i >= 0 {
		return nil, []Problem{{1 + strings.Count(text[:i], "\n"), "it is no text: it has a zero byte"}}
	}
	all := strings.Split(text, "\n")
	for i := range all {
		all[i] = strings.TrimRight(all[i], "\r")
	}
	if len(all) > MaxLines {
		return all[:MaxLines], []Problem{{MaxLines, fmt.Sprintf("it has more than %d lines", MaxLines)}}
	}
	return all, nil
}

// Marked reports whether the file begins with a byte order mark, which the programs that
// read it take for a part of the first line.
func Marked(data []byte) bool { return strings.HasPrefix(string(data), "\ufeff") }

// Rabbit reads rabbitmq.conf: key = value, with words of the key parted by dots, and
// comments that begin with #, also behind a value. A value may be in single quotes, and
// then has what it likes, over several lines with three of them.
func Rabbit(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	for i := 0; i < len(rows); i++ {
		line := strings.TrimSpace(rows[i])
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		e := Entry{Key: strings.TrimSpace(key), Line: i + 1}
		value = strings.TrimSpace(value)
		switch {
		case !ok:
			problems = append(problems, Problem{i + 1, "a line is neither key = value nor a comment"})
			continue
		case e.Key == "" || strings.ContainsAny(e.Key, " \t#'\""):
			problems = append(problems, Problem{i + 1, "what stands before = is no key"})
			continue
		case strings.HasPrefix(value, "'''"):
			text, end := value[3:], i
			for !strings.Contains(text, "'''") && end+1 < len(rows) {
				end++
				text += "\n" + rows[end]
			}
			before, _, closed := strings.Cut(text, "'''")
			if !closed {
				problems = append(problems, Problem{i + 1, "a quote has no end"})
			}
			e.Value, i = before, end
		case strings.HasPrefix(value, "'"):
			before, _, closed := strings.Cut(value[1:], "'")
			if !closed {
				problems = append(problems, Problem{i + 1, "a quote has no end"})
			}
			e.Value = before
		default:
			before, _, _ := strings.Cut(value, "#")
			e.Value = strings.TrimSpace(before)
			if n := len(e.Value); n > 1 && e.Value[0] == '"' && e.Value[n-1] == '"' {
				e.Value = e.Value[1 : n-1]
			}
		}
		if e.Value == "" {
			problems = append(problems, Problem{i + 1, "a key has no value"})
			continue
		}
		e.Key = strings.ReplaceAll(e.Key, `\.`, "\ufffd")
		e.Key = strings.ReplaceAll(e.Key, "\ufffd", ".")
		all = append(all, e)
	}
	return all, problems
}

// Qpid reads qpidd.conf: key=value, or a key alone, which means yes. What begins with #
// is a comment.
func Qpid(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	for i, line := range rows {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		e := Entry{Key: strings.TrimLeft(strings.TrimSpace(key), "-"), Value: unquote(strings.TrimSpace(value)), Line: i + 1}
		if !ok {
			e.Value = "yes"
		}
		if e.Key == "" || strings.ContainsAny(e.Key, " \t") {
			problems = append(problems, Problem{i + 1, "a line is neither key=value nor a comment"})
			continue
		}
		all = append(all, e)
	}
	return all, problems
}

// SASL reads a file of Cyrus SASL: key: value, with comments.
func SASL(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	for i, line := range rows {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if key = strings.TrimSpace(key); !ok || key == "" || strings.ContainsAny(key, " \t") {
			problems = append(problems, Problem{i + 1, "a line is neither key: value nor a comment"})
			continue
		}
		all = append(all, Entry{Key: key, Value: strings.TrimSpace(value), Line: i + 1})
	}
	return all, problems
}

func unquote(s string) string {
	if n := len(s); n > 1 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// Oslo reads a file of OpenStack's services: sections, key = value or key: value, and
// lines that begin with white space and go on with the value before. A key may be there
// several times. Comments begin with # or ;, at the beginning of a line alone.
func Oslo(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	section, open := "", false
	for i, line := range rows {
		text := strings.TrimSpace(line)
		switch {
		case text == "":
			open = false
			continue
		case line[0] == '#' || line[0] == ';':
			continue
		case line[0] == ' ' || line[0] == '\t':
			if strings.HasPrefix(text, "#") {
				continue
			}
			if !open {
				problems = append(problems, Problem{i + 1, "a line goes on with a value, and none is before it"})
				continue
			}
			last := &all[len(all)-1]
			last.Value = strings.TrimLeft(last.Value+"\n"+text, "\n")
			continue
		case line[0] == '[':
			open = false
			name, _, ok := strings.Cut(text[1:], "]")
			if !ok || strings.TrimSpace(name) == "" {
				problems = append(problems, Problem{i + 1, "the name of a section has no end, or there is none"})
				continue
			}
			section = strings.TrimSpace(name)
			continue
		}
		at := strings.IndexAny(text, "=:")
		if at < 1 {
			problems = append(problems, Problem{i + 1, "a line is neither a section nor key = value nor a comment"})
			open = false
			continue
		}
		if section == "" {
			problems = append(problems, Problem{i + 1, "a key stands before the first section"})
		}
		all = append(all, Entry{Section: section, Key: strings.TrimSpace(text[:at]), Value: unquote(strings.TrimSpace(text[at+1:])), Line: i + 1})
		open = true
	}
	return all, problems
}

// Unit reads a unit of systemd, or a drop-in: sections, key=value, and lines that end with
// a backslash and go on.
func Unit(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	section := ""
	for i := 0; i < len(rows); i++ {
		text, first := strings.TrimSpace(rows[i]), i+1
		if text == "" || text[0] == '#' || text[0] == ';' {
			continue
		}
		for strings.HasSuffix(text, `\`) && i+1 < len(rows) {
			i++
			next := strings.TrimSpace(rows[i])
			if strings.HasPrefix(next, "#") || strings.HasPrefix(next, ";") {
				continue
			}
			text = strings.TrimSpace(strings.TrimSuffix(text, `\`)) + " " + next
		}
		if text[0] == '[' {
			name, _, ok := strings.Cut(text[1:], "]")
			if !ok {
				problems = append(problems, Problem{first, "the name of a section has no end"})
			}
			section = name
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			problems = append(problems, Problem{first, "a line is neither a section nor key=value nor a comment"})
			continue
		}
		all = append(all, Entry{Section: section, Key: key, Value: strings.TrimSpace(value), Line: first})
	}
	return all, problems
}

// Variables reads a file of variables for a shell: NAME=value, export NAME=value, with
// quotes, comments, and lines that end with a backslash and go on. It runs nothing: what
// else a script has is passed over.
func Variables(data []byte) (all []Entry, problems []Problem) {
	rows, problems := lines(data)
	for i := 0; i < len(rows); i++ {
		text, first := strings.TrimSpace(rows[i]), i+1
		if text == "" || text[0] == '#' {
			continue
		}
		text = strings.TrimSpace(strings.TrimPrefix(text, "export "))
		key, value, ok := strings.Cut(text, "=")
		key = strings.TrimSuffix(key, "+")
		if !ok || key == "" || strings.ContainsAny(key, " \t$()[]{}\"'`;|&<>") {
			continue
		}
		for strings.HasSuffix(value, `\`) && i+1 < len(rows) {
			i++
			value = strings.TrimSuffix(value, `\`) + " " + strings.TrimSpace(rows[i])
		}
		if value != "" && (value[0] == '"' || value[0] == '\'') {
			quote := value[:1]
			text := value[1:]
			for !strings.Contains(text, quote) && i+1 < len(rows) {
				i++
				text += " " + strings.TrimSpace(rows[i])
			}
			before, _, closed := strings.Cut(text, quote)
			if !closed {
				problems = append(problems, Problem{first, "a quote has no end"})
			}
			value = before
		} else if at := strings.Index(value, " #"); at >= 0 {
			value = value[:at]
		}
		all = append(all, Entry{Key: key, Value: strings.TrimSpace(value), Line: first})
	}
	return all, problems
}
