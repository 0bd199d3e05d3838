package main

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// build says what this program was made of.
type build struct {
	Version string `json:"version"`
	// Revision and Time of the commit, Modified if there was more than that; a
	// build may be without them.
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Engine is the version of nats-server.
	Engine string `json:"engine,omitempty"`
}

// version is what a package calls this program; the linker sets it.
var version string

// enginePath is the module of the engine.
const enginePath = "github.com/nats-io/nats-server/v2"

func readBuild() build {
	b := build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = cmp.Or(version, info.Main.Version, b.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	for _, m := range info.Deps {
		if m.Path == enginePath {
			b.Engine = m.Version
		}
	}
	return b
}

func newVersionCommand(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "version", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show the version and what it was built of",
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			return a.Show(command.Report{Value: b, Text: func(p *command.Page) {
				p.Line("fleetbus %s", b.Version)
				command.Fields(p, []command.Field{{"revision", b.Revision}, {"built with", b.Go}, {"platform", b.Platform}, {"engine", b.Engine}})
			}})
		},
	})
}
