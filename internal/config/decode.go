package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A decoder walks the tree along the table of keys: it stores each value where
// it belongs and reports what does not.
type decoder struct {
	keys     map[string][]Key        // by the section that holds them
	field    func(path []string) any // a pointer to where the value belongs
	problems []Problem
	spoiled  map[string]bool // paths whose value is wrong, or was meant and misspelled
	around   map[string]bool // the sections of the spoiled
}

func newDecoder(field func(path []string) any) *decoder {
	d := &decoder{keys: map[string][]Key{}, field: field, spoiled: map[string]bool{}, around: map[string]bool{}}
	for _, k := range Keys() {
		d.keys[k.section()] = append(d.keys[k.section()], k)
	}
	return d
}

// refuse reports the value at path.
func (d *decoder) refuse(place Place, path []string, f fault) {
	d.report(place, path, f)
	d.spoil(strings.Join(path, "."))
}

// spoil keeps what follows from a wrong value at path from being reported.
func (d *decoder) spoil(path string) {
	d.spoiled[path] = true
	d.around[Key{Path: path}.section()] = true
}

func (d *decoder) report(place Place, path []string, f fault) {
	d.problems = append(d.problems, Problem{Place: place, Key: strings.Join(path, "."), Text: f.text, Fix: f.fix})
}

// covers reports whether a problem of field only follows from one that is
// already reported: of field itself, of something around it, or of a key in it.
func (d *decoder) covers(field string) bool {
	for i, c := range field {
		if (c == '.' || c == '[') && d.spoiled[field[:i]] {
			return true
		}
	}
	return d.spoiled[field] || d.around[field]
}

// section decodes n, which holds the keys of the section k; the zero Key is the
// whole file.
func (d *decoder) section(n *node, k Key, path []string) {
	switch n.kind {
	case null:
		return
	case mapping:
	default:
		d.refuse(n.place, path, fault{"is " + string(n.kind) + ", not keys and values", "write its keys on lines below it, indented"})
		return
	}
	for _, c := range n.children {
		childPath := append(slices.Clone(path), c.name)
		i := slices.IndexFunc(d.keys[k.Path], func(k Key) bool { return k.name() == c.name || k.name() == "*" })
		switch {
		case i < 0:
			d.unknown(c, k, childPath)
		case d.keys[k.Path][i].Type == Section:
			d.section(c, d.keys[k.Path][i], childPath)
		default:
			d.leaf(c, d.keys[k.Path][i], childPath)
		}
	}
}

// unknown reports the key c, which the section k does not have.
func (d *decoder) unknown(c *node, k Key, path []string) {
	var siblings, elsewhere []string
	for _, s := range d.keys[k.Path] {
		siblings = append(siblings, s.name())
	}
	for _, section := range d.keys {
		for _, s := range section {
			if s.name() == c.name {
				elsewhere = append(elsewhere, s.Path)
			}
		}
	}
	f := fault{"unknown key", `remove it; "fleetbus config defaults" lists every key`}
	if near := nearest(c.name, siblings); near != "" {
		f = fault{fmt.Sprintf("unknown key; did you mean %q?", near), ""}
		d.spoil(strings.Join(append(slices.Clone(path[:len(path)-1]), near), "."))
	} else if len(elsewhere) == 1 {
		f = fault{fmt.Sprintf("unknown key; did you mean %q?", elsewhere[0]), ""}
		d.spoil(elsewhere[0])
	}
	d.report(c.place, path, f)
}

// leaf decodes n, the value of k.
func (d *decoder) leaf(n *node, k Key, path []string) {
	if n.kind == null {
		return
	}
	if k.Type == List {
		d.list(n, path)
		return
	}
	if n.kind != scalar {
		d.refuse(n.place, path, fault{"is " + string(n.kind) + ", not a single value", "write it like " + k.yaml(k.Example)})
		return
	}
	if f := k.store(d.field(path), n.text); f != nil {
		d.refuse(n.place, path, *f)
	}
}

func (d *decoder) list(n *node, path []string) {
	if n.kind != list {
		fix := "write one item on each line, after a dash"
		if n.kind == scalar {
			fix = "write it like [" + n.text + "]"
		}
		d.refuse(n.place, path, fault{"is " + string(n.kind) + ", not a list", fix})
		return
	}
	for i, item := range n.children {
		what := string(item.kind) + ", not a text"
		if item.kind == scalar && item.text == "" {
			what = "empty"
		}
		if item.kind != scalar || item.text == "" {
			at := slices.Clone(path)
			at[len(at)-1] += "[" + strconv.Itoa(i) + "]"
			d.refuse(item.place, at, fault{"is " + what, "write a text, or remove the item"})
		}
	}
	if p, ok := d.field(path).(*[]string); ok {
		*p = n.texts()
	}
}

// A fault is what is wrong with a value, and how to mend it.
type fault struct{ text, fix string }

// store parses text as a value of k into the variable that field points to.
func (k Key) store(field any, text string) (f *fault) {
	switch p := field.(type) {
	case *string:
		if k.Type == Choice && !slices.Contains(k.Choices, text) {
			return k.badChoice(text)
		}
		*p = text
	case *bool:
		if text != "true" && text != "false" {
			return &fault{fmt.Sprintf("%q is not true or false", text), "set it to true or false"}
		}
		*p = text == "true"
	case *time.Duration:
		*p, f = parseDuration(text)
	case *int64:
		*p, f = parseSize(text)
	case *int:
		parse := parseNumber
		if k.Type == Size {
			parse = parseSize
		}
		var n int64
		if n, f = parse(text); f == nil && n > math.MaxInt {
			f = tooLarge(text)
		}
		*p = int(n)
	}
	return f
}

func (k Key) badChoice(text string) *fault {
	last := len(k.Choices) - 1
	words := k.Choices[last]
	if last > 0 {
		words = strings.Join(k.Choices[:last], ", ") + " or " + words
	}
	f := &fault{fmt.Sprintf("%q is not %s", text, words), "set it to " + words}
	if near := nearest(text, k.Choices); near != "" {
		f.text += fmt.Sprintf("; did you mean %q?", near)
		f.fix = ""
	}
	return f
}

func tooLarge(text string) *fault {
	return &fault{fmt.Sprintf("%q is too large", text), "make it smaller"}
}

// notPositive is the fault of 0, which in Options means the default and would
// not do what it says.
func notPositive(text string) *fault {
	return &fault{fmt.Sprintf("%q is not more than 0", text), "leave the key out for its default"}
}

// bare reports whether text is a number without a unit.
func bare(text string) bool { return text != "" && strings.Trim(text, "0123456789.") == "" }

func parseDuration(text string) (time.Duration, *fault) {
	if bare(text) {
		return 0, &fault{fmt.Sprintf("%q has no unit of time", text), fmt.Sprintf("write %ss, %sm or %sh", text, text, text)}
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, &fault{fmt.Sprintf("%q is not a duration like 10s or 5m", text), "write a number and ms, s, m or h"}
	case d <= 0:
		return 0, notPositive(text)
	}
	return d, nil
}

func parseNumber(text string) (int64, *fault) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, tooLarge(text)
	case err != nil:
		return 0, &fault{fmt.Sprintf("%q is not a whole number", text), "write digits only, like 1000"}
	case n <= 0:
		return 0, notPositive(text)
	}
	return n, nil
}

func parseSize(text string) (int64, *fault) {
	if bare(text) {
		return 0, &fault{fmt.Sprintf("%q has no unit of size", text), fmt.Sprintf("write %sB, %sKiB, %sMiB or %sGiB", text, text, text, text)}
	}
	digits := strings.TrimRight(text, "BKMGTi")
	unit, ok := map[string]int64{
		"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case ok && errors.Is(err, strconv.ErrRange):
		return 0, tooLarge(text)
	case !ok || err != nil:
		return 0, &fault{fmt.Sprintf("%q is not a size like 512MiB or 10GiB", text), "write a whole number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"}
	case n <= 0:
		return 0, notPositive(text)
	case n > math.MaxInt64/unit:
		return 0, tooLarge(text)
	}
	return n * unit, nil
}
