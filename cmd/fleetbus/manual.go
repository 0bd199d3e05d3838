//go:build manual

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/manual"
)

// With the tag manual this program only writes what packages have besides the
// program: `go run -tags manual ./cmd/fleetbus DIR`.
func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run -tags manual ./cmd/fleetbus DIR")
		os.Exit(int(command.ExitUsage))
	}
	root := newRootCommand(&command.App{Stdin: os.Stdin, Stdout: io.Discard, Stderr: os.Stderr, Terminal: command.IsTerminal})
	if err := manual.Write(os.Args[1], root); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(int(command.ExitFailed))
	}
}
