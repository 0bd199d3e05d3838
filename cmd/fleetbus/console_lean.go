//go:build lean

package main

import "github.com/fleetbus/fleetbus"

// demoConsole is none: the lean program has no pages.
func demoConsole() fleetbus.Protocol { return nil }
