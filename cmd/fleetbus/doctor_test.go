package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/explain"
)

// TestExplained has every command that a code is mended with be one that there is.
func TestExplained(t *testing.T) {
	root := newRootCommand(&command.App{})
	line := regexp.MustCompile(`fleetbus((?: [a-z]+)+)`)
	n := 0
	for _, c := range explain.All() {
		for _, found := range line.FindAllStringSubmatch(c.Fix+" "+c.Measured+" "+c.Means, -1) {
			words := strings.Fields(found[1])
			cmd, rest, err := root.Find(words)
			noun := cmd.HasSubCommands() && !strings.Contains(cmd.Use, " ")
			if cmd == root || noun || err != nil {
				t.Errorf("%s: there is no command %q (%v)", c.Code, strings.TrimPrefix(found[0], " "), rest)
			}
			n++
		}
	}
	if n < 30 {
		t.Errorf("only %d commands are named", n)
	}
}
