//go:build race

package certmanager

// racing says that the race detector is on, with which everything takes ten times as
// long.
const racing = true
