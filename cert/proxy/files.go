package proxy

import (
	"maps"
	"slices"
	"strings"
)

func (d *directory) filesSnippet(all []certificate) string {
	var b strings.Builder
	b.WriteString("# The files that the program has to read:\n")
	if len(all) == 0 { // what they will be called
		all = []certificate{{id: "ID"}}
	}
	dir := d.tree.path(current)
	for _, name := range slices.Sorted(maps.Keys(d.files(all)(dir))) {
		b.WriteString(dir + "/" + name + "\n")
	}
	return b.String()
}
