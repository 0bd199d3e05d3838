package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// The formats of --output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatJSONL = "jsonl"
)

// A report is what a command found out or did.
type report struct {
	// value is for programs: JSON with names in snake_case. In jsonl each item of
	// a slice is a line.
	value any
	// text lays the same out for people.
	text func(p *page)
}

// output gives cmd the flag --output, for which more may be further formats.
func (a *app) output(cmd *cobra.Command, more ...string) *cobra.Command {
	formats := append([]string{formatTable, formatJSON, formatYAML, formatJSONL}, more...)
	a.format = formatTable
	cmd.Flags().VarP(&choice{&a.format, formats}, "output", "o", "how to print the data: "+strings.Join(formats, ", "))
	return cmd
}

// outputFromEnv applies FLEETBUS_OUTPUT where the flag was not given.
func (a *app) outputFromEnv(cmd *cobra.Command) error {
	f, format := cmd.Flags().Lookup("output"), a.getenv("FLEETBUS_OUTPUT")
	if f == nil || f.Changed || format == "" {
		return nil
	}
	if err := f.Value.Set(format); err != nil {
		return fmt.Errorf("reading FLEETBUS_OUTPUT: %q %w", format, err)
	}
	return nil
}

// show writes a report to stdout.
func (a *app) show(r report) error {
	var buf bytes.Buffer
	var err error
	switch a.format {
	case formatJSON:
		err = writeJSON(&buf, r.value, "  ")
	case formatJSONL:
		err = writeLines(&buf, r.value)
	case formatYAML:
		err = writeYAML(&buf, r.value)
	default:
		r.text(&page{w: &buf})
	}
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	if _, err := a.stdout.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// writeJSON encodes value without null lists and, so that a terminal can show
// it, without control characters.
func writeJSON(w *bytes.Buffer, value any, indent string) error {
	v := reflect.ValueOf(&value).Elem()
	noNilSlices(v)
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(value); err != nil {
		return err
	}
	// The encoder escapes those below U+0020 itself.
	for _, r := range buf.String() {
		if r >= 0x7f && r <= 0x9f {
			fmt.Fprintf(w, `\u%04x`, r)
		} else {
			w.WriteRune(r)
		}
	}
	return nil
}

// writeLines encodes each item of a slice, or anything else, on one line.
func writeLines(w *bytes.Buffer, value any) error {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Slice {
		return writeJSON(w, value, "")
	}
	for i := range v.Len() {
		if err := writeJSON(w, v.Index(i).Interface(), ""); err != nil {
			return err
		}
	}
	return nil
}

// writeYAML encodes what writeJSON does.
func writeYAML(w *bytes.Buffer, value any) error {
	var buf bytes.Buffer
	if err := writeJSON(&buf, value, ""); err != nil {
		return err
	}
	dec := json.NewDecoder(&buf)
	dec.UseNumber()
	node, err := yamlNode(dec)
	if err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(node), enc.Close())
}

// yamlNode reads one JSON value, in its order of keys.
func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if t == '{' {
			n.Kind = yaml.MappingNode
		}
		for dec.More() {
			// The keys of a mapping are tokens like its values.
			child, err := yamlNode(dec)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := dec.Token()
		return n, err
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: t.String()}, nil
	case string:
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: t}
		if strings.ContainsFunc(t, unicode.IsControl) {
			// Otherwise the encoder chooses a block, which not every text survives.
			n.Style = yaml.DoubleQuotedStyle
		}
		return n, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(t)}, nil
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
	}
}

// noNilSlices makes every nil slice within v empty, so that it is encoded as a
// list. v must be settable.
func noNilSlices(v reflect.Value) {
	switch v.Kind() {
	case reflect.Interface:
		if v.IsNil() {
			return
		}
		inner := reflect.New(v.Elem().Type()).Elem()
		inner.Set(v.Elem())
		noNilSlices(inner)
		v.Set(inner)
	case reflect.Pointer:
		if !v.IsNil() {
			noNilSlices(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				noNilSlices(v.Field(i))
			}
		}
	case reflect.Slice:
		// Bytes are no list: they are text, or JSON already.
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		if v.IsNil() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		for i := range v.Len() {
			noNilSlices(v.Index(i))
		}
	}
}

// A page is text for people. Whatever is written to it cannot control a
// terminal.
type page struct{ w io.Writer }

// line writes one line.
func (p *page) line(format string, args ...any) {
	fmt.Fprintln(p.w, escape(fmt.Sprintf(format, args...)))
}

// A column of a table of Ts.
type column[T any] struct {
	head string
	cell func(T) string
}

// table writes a line of heads and one for each row, with two spaces between
// columns. Nothing is cut off; an empty cell is "-".
func table[T any](p *page, rows []T, columns ...column[T]) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	line := make([]string, len(columns))
	for i, c := range columns {
		line[i] = c.head
	}
	fmt.Fprintln(tw, strings.Join(line, "\t"))
	for _, row := range rows {
		for i, c := range columns {
			line[i] = orDash(escape(c.cell(row)))
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	// The writer below is a buffer.
	_ = tw.Flush()
}

// A field is a name and its value.
type field struct{ name, value string }

// fields writes a line for each field.
func fields(p *page, list []field) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		fmt.Fprintf(tw, "%s\t%s\n", f.name, orDash(escape(f.value)))
	}
	_ = tw.Flush()
}

// list is the report of a slice that is a table.
func list[T any](rows []T, columns ...column[T]) report {
	return report{value: rows, text: func(p *page) { table(p, rows, columns...) }}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// escape makes s one line that cannot control a terminal.
func escape(s string) string {
	clean := func(r rune) bool {
		return r >= 0x20 && r < 0x7f || r >= 0xa0 && r != '\u2028' && r != '\u2029' && !bidi(r)
	}
	if !slices.ContainsFunc([]rune(s), func(r rune) bool { return !clean(r) || r == '\ufffd' }) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\ufffd' && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i]) // a byte that is not UTF-8
		case clean(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// bidi reports whether r turns the direction of text around.
func bidi(r rune) bool {
	return r == '\u061c' || r == '\u200e' || r == '\u200f' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
}

// showCheck prints a check when it is done.
func (a *app) showCheck(name string, ok bool, detail, fix string) {
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	a.hint("  %s  %-16s %s", mark, name, detail)
	if fix != "" {
		a.hint("        %-16s fix: %s", "", fix)
	}
}
