//go:build lean

package main

// changeSteps are the steps about changes of a database: the lean program has none at
// hand.
func (d *demo) changeSteps() []demoStep { return nil }
