//go:build !lean

package main

import (
	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/console"
)

// demoConsole is the console of the demonstration.
func demoConsole() fleetbus.Protocol { return &console.Protocol{} }
