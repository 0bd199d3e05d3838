//go:build lean

package config

import (
	"context"
	"errors"
	"net"

	"github.com/fleetbus/fleetbus"
)

// noConsole stands for the web console, whose pages the lean program is without.
type noConsole consoleSettings

// Serve refuses.
func (*noConsole) Serve(context.Context, net.Listener, fleetbus.Login) error {
	return errors.New("the lean program has no web console: use the full one, or remove the listener")
}

func newConsole(s consoleSettings) fleetbus.Protocol { return (*noConsole)(&s) }
