package config

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

const defaultsHead = `# Configuration of a fleetbus node.
#
# Every key has a flag and a variable made from its path: cluster.routes is also
# --cluster-routes and FLEETBUS_CLUSTER_ROUTES. A flag beats a variable, and a
# variable beats this file. Durations and sizes have a unit: 30s, 5m, 512MiB.
#
# A "#" with no blank after it hides a setting that shows the default or, where
# that depends on the machine, an example. Remove the "#" to set it.
`

const minimalHead = `# Configuration of a fleetbus node, in short.
# "fleetbus config defaults" prints every key.
`

// Defaults returns a commented file of every key that changes nothing, or the
// shortest file of a node in a cluster. Both can be loaded as they are.
func Defaults(minimal bool) []byte {
	if !minimal {
		return commented(func(Key) bool { return false })
	}
	values := map[string]string{}
	for _, k := range settings([]string{"nats"}) {
		if k.minimal {
			values[k.Path] = k.Example
		}
	}
	return append([]byte(minimalHead), written(values)...)
}

// commented writes every key with its documentation. The settings that are live
// are no comment.
func commented(live func(Key) bool) []byte {
	var b bytes.Buffer
	b.WriteString(defaultsHead)
	nats := false // whether a key of the listener is live
	for _, k := range listenerKeys("nats") {
		nats = nats || live(k)
	}
	for _, k := range Keys() {
		indent := strings.Repeat("  ", k.depth())
		k.Path = strings.Replace(k.Path, "*", "nats", 1)
		doc := k.Doc
		switch {
		case k.Otherwise != "":
			doc += " Default: " + k.Otherwise + "."
		case len(k.Choices) > 0:
			doc += " One of: " + strings.Join(k.Choices, ", ") + "."
		}
		b.WriteString("\n")
		for _, line := range wrap(doc, 78-len(indent)) {
			fmt.Fprintf(&b, "%s# %s\n", indent, line)
		}
		hide := "#"
		switch {
		case k.Path == "listeners.nats" && nats, k.Type == Section && k.depth() == 0, k.Type != Section && live(k):
			hide = ""
		}
		fmt.Fprintf(&b, "%s%s%s:", indent, hide, k.name())
		if k.Type != Section {
			b.WriteString(" " + k.yaml(k.sample()))
		}
		b.WriteString("\n")
	}
	return b.Bytes()
}

// written returns the YAML of the values by path, in the order of the table.
func written(values map[string]string) []byte {
	var b bytes.Buffer
	var open []string // the sections that the last line is in
	for _, k := range settings(protocolNames()) {
		text, ok := values[k.Path]
		if !ok {
			continue
		}
		path := strings.Split(k.Path, ".")
		for depth, name := range path[:len(path)-1] {
			if depth < len(open) && open[depth] == name {
				continue
			}
			open = append(open[:min(depth, len(open))], name)
			fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), name)
		}
		open = open[:len(path)-1]
		fmt.Fprintf(&b, "%s%s: %s\n", strings.Repeat("  ", len(path)-1), k.name(), k.yaml(text))
	}
	return b.Bytes()
}

// sample is the default, or an example where there is none.
func (k Key) sample() string {
	if k.Default != "" {
		return k.Default
	}
	return k.Example
}

// yaml writes text, a value as in a flag, as a value in a file.
func (k Key) yaml(text string) string {
	scalar := func(text string) *yaml.Node {
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
		if strings.ContainsAny(text, "\r\n\u0085\u2028\u2029") {
			n.Style = yaml.DoubleQuotedStyle
		}
		return n
	}
	n := scalar(text)
	switch k.Type {
	case List:
		n = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, item := range value(k, text, Place{}).texts() {
			n.Content = append(n.Content, scalar(item))
		}
	case Bool, Number, Duration, Size:
		return text
	}
	out, _ := yaml.Marshal(n) // a text, or a list of texts
	return strings.TrimSpace(string(out))
}

// wrap breaks text into lines of at most width bytes, where it has blanks.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
