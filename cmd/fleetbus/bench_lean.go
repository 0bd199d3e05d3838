//go:build lean

package main

import "github.com/spf13/cobra"

// benchVerbs are none: what measures this project needs its source tree anyway.
func benchVerbs(*app) []*cobra.Command { return nil }
