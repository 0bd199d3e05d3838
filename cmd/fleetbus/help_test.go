package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// TestExitCodes checks that the help knows every code.
func TestExitCodes(t *testing.T) {
	help := newExitCodesTopic().Long
	for _, code := range []command.ExitCode{0, 1, 2, 3, 4, 5, 6, 7, 78, 130} {
		if !strings.Contains(help, fmt.Sprintf("%5d  %s ", int(code), code)) {
			t.Errorf("exit code %d, %s, is not in the help", int(code), code)
		}
	}
}
