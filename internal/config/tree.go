package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Place is where a setting comes from. Places are plain values.
type Place struct {
	// Source is a file, "--flag", the name of a variable, or "default".
	Source string
	// Line and Column count from 1 in a file; otherwise they are 0.
	Line, Column int
}

// String is like fleetbus.yaml:7:3, --grace or FLEETBUS_GRACE.
func (p Place) String() string {
	switch {
	case p.Line == 0:
		return p.Source
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.Source, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.Source, p.Line, p.Column)
}

// byDefault is the place of a value that nobody set.
const byDefault = "default"

type kind string

const (
	null    kind = "nothing"
	scalar  kind = "a single value"
	list    kind = "a list"
	mapping kind = "keys and values"
)

// A node is a value of the configuration, whatever it was read from. Files,
// variables and flags are written into one tree of them.
type node struct {
	place    Place  // of the key, or of the item in a list
	name     string // the key; empty in a list
	kind     kind
	text     string  // of a scalar
	children []*node // of a list or mapping, in the order of the source
}

// field returns the value of a key, nil if there is none.
func (n *node) field(name string) *node {
	for _, c := range n.children {
		if n.kind == mapping && c.name == name {
			return c
		}
	}
	return nil
}

// put makes value the field at path, and the sections on the way that are
// missing. It leaves a section alone that is no section: decoding reports it.
func (n *node) put(path []string, value *node) {
	if n.kind == null {
		n.kind = mapping
	}
	if n.kind != mapping {
		return
	}
	next := n.field(path[0])
	if next == nil {
		next = &node{place: value.place, name: path[0], kind: null}
		n.children = append(n.children, next)
	}
	if len(path) > 1 {
		next.put(path[1:], value)
		return
	}
	value.name = path[0]
	*next = *value
}

// at returns the place of the field, such as "cluster.routes[1]", or of the
// nearest thing around it that somebody wrote.
func (n *node) at(field string) Place {
	place := n.place
	for _, name := range strings.Split(field, ".") {
		name, index, _ := strings.Cut(name, "[")
		if n = n.field(name); n == nil || n.place.Source == byDefault {
			return place
		}
		place = n.place
		i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
		if err == nil && i >= 0 && i < len(n.children) {
			n = n.children[i]
			place = n.place
		}
	}
	return place
}

// texts are the scalars of a list, or the one scalar.
func (n *node) texts() []string {
	if n.kind == scalar {
		return []string{n.text}
	}
	var out []string
	for _, c := range n.children {
		if c.kind == scalar {
			out = append(out, c.text)
		}
	}
	return out
}

// value makes the node of a text from a variable or flag. An empty text is the
// default.
func value(k Key, text string, place Place) *node {
	n := &node{place: place, kind: scalar, text: text}
	switch {
	case strings.TrimSpace(text) == "":
		n.kind, n.text = null, ""
	case k.Type == List:
		n.kind, n.text = list, ""
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				n.children = append(n.children, &node{place: place, kind: scalar, text: item})
			}
		}
	}
	return n
}

// parse reads a YAML document. The tree is never nil; it holds what could be
// read in spite of the problems. broken says that nothing could.
func parse(source string, data []byte) (root *node, problems []Problem, broken bool) {
	root = &node{place: Place{Source: source}, kind: mapping}
	fail := func(text, fix string, line, column int) (*node, []Problem, bool) {
		return root, []Problem{{Place: Place{source, line, column}, Text: text, Fix: fix}}, true
	}
	if len(data) > maxFile {
		return fail("is larger than 1MiB", "name the right file; a configuration is a few kilobytes", 0, 0)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return root, nil, false
	}
	if err == nil {
		if err = decoder.Decode(&next); err == nil {
			return fail("a second document starts here", "keep one document in the file, without a line of ---", next.Line, next.Column)
		}
	}
	if !errors.Is(err, io.EOF) {
		text, fix, line := explain(err, data)
		return fail(text, fix, line, 0)
	}
	r := reader{source: source}
	content := doc.Content[0]
	tree := r.convert(content, "")
	if r.count > maxCount {
		return fail("holds more than "+strconv.Itoa(maxCount)+" values", "name the right file; a configuration has some dozens", 0, 0)
	}
	switch tree.kind {
	case mapping:
		root.children = tree.children
	case null:
	default:
		return fail("the file is "+string(tree.kind)+", not keys and values", `write lines like "name: eu-1"`, content.Line, content.Column)
	}
	return root, r.problems, false
}

// maxFile is the largest configuration in bytes.
const maxFile = 1 << 20

// explain turns an error of the parser into a sentence, a fix and a line, which
// is 0 if it is unknown.
func explain(err error, data []byte) (text, fix string, line int) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		number, rest, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, text = n, rest
		}
	}
	if what, ok := strings.CutPrefix(text, "did not find expected "); ok {
		switch what {
		case "key", "node content", "'-' indicator", "',' or ']'", "',' or '}'":
			line++ // the parser counts from 0 where the scanner, with other texts, counts from 1
		}
	}
	// A tab is named only by what it cannot start.
	number := 0
	for l := range bytes.Lines(data) {
		number++
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if bytes.ContainsRune(indent, '\t') && number >= line-1 && number <= line+1 {
			return "a tab indents this line", "indent with spaces", number
		}
	}
	return "is not YAML: " + text, "mend the line, or compare it with \"fleetbus config defaults\"", line
}

// A reader converts the nodes of the parser and collects what it refuses.
type reader struct {
	source   string
	problems []Problem
	depth    int // of the value under conversion
	count    int // of values
}

// What a configuration has at most: twice the depth that any key needs, and as
// many values as still take no noticeable time.
const (
	maxDepth = 8
	maxCount = 10_000
)

func (r *reader) refuse(at *yaml.Node, key, text, fix string) {
	r.problems = append(r.problems, Problem{Place: r.place(at), Key: key, Text: text, Fix: fix})
}

func (r *reader) place(n *yaml.Node) Place { return Place{r.source, n.Line, n.Column} }

// convert makes a node of y, the value at path.
func (r *reader) convert(y *yaml.Node, path string) *node {
	n := &node{place: r.place(y), kind: null}
	r.depth++
	defer func() { r.depth-- }()
	if r.count++; r.count > maxCount {
		return n
	}
	if r.depth > maxDepth {
		r.refuse(y, "", "nothing is nested this deep", "compare the file with \"fleetbus config defaults\"")
		return n
	}
	if y.Anchor != "" {
		r.refuse(y, path, "anchors are not supported", "remove &"+y.Anchor+" and write the value where it is used")
	}
	switch y.Kind {
	case yaml.ScalarNode:
		if y.ShortTag() != "!!null" {
			n.kind, n.text = scalar, y.Value
		}
	case yaml.AliasNode:
		r.refuse(y, path, "aliases are not supported", "write the value in place of *"+y.Value)
	case yaml.SequenceNode:
		n.kind = list
		for i, item := range y.Content {
			n.children = append(n.children, r.convert(item, path+"["+strconv.Itoa(i)+"]"))
		}
	case yaml.MappingNode:
		n.kind = mapping
		lines := map[string]int{}
		for i := 0; i+1 < len(y.Content); i += 2 {
			key := y.Content[i]
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			child := r.convert(y.Content[i+1], at)
			child.place, child.name = r.place(key), key.Value
			if key.Kind != yaml.ScalarNode {
				r.refuse(key, path, "a key is not a word", "write a key as in \"fleetbus config defaults\"")
				continue
			}
			if first, ok := lines[key.Value]; ok {
				r.refuse(key, at, "is set twice, first on line "+strconv.Itoa(first), "remove one of the two")
				continue
			}
			lines[key.Value] = key.Line
			n.children = append(n.children, child)
		}
	}
	return n
}
