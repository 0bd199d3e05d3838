// Package document writes what commands found out: for programs as JSON or YAML, and
// for people as text that cannot control a terminal.
package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// JSON encodes value without null lists and, so that a terminal can show
// it, without control characters.
func JSON(w *bytes.Buffer, value any, indent string) error {
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

// Lines encodes each item of a slice, or anything else, on one line.
func Lines(w *bytes.Buffer, value any) error {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Slice {
		return JSON(w, value, "")
	}
	for i := range v.Len() {
		if err := JSON(w, v.Index(i).Interface(), ""); err != nil {
			return err
		}
	}
	return nil
}

// YAML encodes what JSON does.
func YAML(w *bytes.Buffer, value any) error {
	var buf bytes.Buffer
	if err := JSON(&buf, value, ""); err != nil {
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

// Escape makes s one line that cannot control a terminal.
func Escape(s string) string {
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
