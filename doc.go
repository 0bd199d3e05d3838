// Package fleetbus is the secure message bus for a fleet of servers, to embed in
// a Go program.
package fleetbus
