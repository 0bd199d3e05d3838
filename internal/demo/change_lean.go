//go:build lean

package demo

// changeSteps are the steps about changes of a database: the lean program has none at
// hand.
func (d *Demo) changeSteps() []step { return nil }
