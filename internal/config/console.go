//go:build !lean

package config

import (
	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/console"
)

// newConsole makes the web console.
func newConsole(s consoleSettings) fleetbus.Protocol {
	return &console.Protocol{Options: console.Options{Life: s.life, Idle: s.idle}}
}
