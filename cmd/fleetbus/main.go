//go:build !manual

// Command fleetbus is the secure message bus for a fleet of servers, and the
// tool to administer it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // a machine may have none, and roles have hours

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(int(command.ExitInterrupted))
	}()
	a := &command.App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.Environ(), Terminal: command.IsTerminal}
	os.Exit(int(run(ctx, a, os.Args[1:])))
}
