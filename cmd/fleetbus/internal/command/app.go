// Package command is what all commands share: how one reaches a fleet with
// credentials, prints what it found in every format, asks and refuses, and fails
// with a fix and an exit code.
package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/document"
)

// An App is one run of the command line. Everything that a command reads or
// writes outside of files and the network is in it.
type App struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Env are variables as os.Environ returns them.
	Env []string
	// Terminal reports whether a stream above is one.
	Terminal func(stream any) bool

	// Format is what --output says, and Fleet how to reach one.
	Format  string
	Fleet   FleetFlags
	Account string // whose certificates are meant
	Signer  string // who signs for their managers
	// began is set when the command line was understood and a command began.
	began bool
}

// Begin is called when the command line was understood, before cmd begins.
func (a *App) Begin(cmd *cobra.Command) error {
	if err := a.outputFromEnv(cmd); err != nil {
		return err
	}
	a.began = true
	return nil
}

// Run carries out the command line args with the commands of root, and says
// what went wrong.
func (a *App) Run(ctx context.Context, root *cobra.Command, args []string) ExitCode {
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	var f Failure
	if a.began {
		f = Explain(ctx, err)
	} else {
		f = misused(cmd, err)
	}
	a.complain(f)
	return f.Code
}

// Noun makes the command of a noun, which does nothing but hold its verbs.
func Noun(name, short string, verb ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: Verbs, RunE: NeedsVerb}
	cmd.AddCommand(verb...)
	return cmd
}

// NeedsVerb is what a noun does by itself.
func NeedsVerb(cmd *cobra.Command, _ []string) error {
	return Fail(ExitUsage, cmd.CommandPath()+" --help", "%s: a verb is missing", cmd.CommandPath())
}

// Verbs refuses what is no verb of a noun, and says which it might be.
func Verbs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	// SuggestionsFor only looks as far as it is told.
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("unknown command %q; did you mean %q?", args[0], near[0])
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// Takes checks the number of arguments. A name in brackets may be left out, and
// one that ends in "..." may be there more than once.
func Takes(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		for i, name := range names {
			if i >= len(args) && !strings.HasPrefix(name, "[") {
				return fmt.Errorf("%s is missing", name)
			}
		}
		if len(args) > len(names) && (len(names) == 0 || !strings.HasSuffix(names[len(names)-1], "...")) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// Getenv returns the value of a variable, empty if it is not set.
func (a *App) Getenv(name string) string {
	for _, line := range a.Env {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

// Payload is the data of a message: the argument, or all of stdin if it is "-";
// nothing if there is none.
func (a *App) Payload(args []string) ([]byte, error) {
	switch {
	case len(args) == 0:
		return nil, nil
	case args[0] != "-":
		return []byte(args[0]), nil
	}
	data, err := io.ReadAll(a.Stdin)
	if err != nil {
		return nil, fmt.Errorf("reading stdin: %w", err)
	}
	return data, nil
}

// Hint tells the user something besides the data, on one line of stderr.
func (a *App) Hint(format string, args ...any) {
	fmt.Fprintln(a.Stderr, document.Escape(fmt.Sprintf(format, args...)))
}

// Kind is the key in cobra.Command.Annotations, by which a test knows what
// every command owes its user.
const Kind = "kind"

// Reads marks commands that print data: they have --output.
func Reads() map[string]string { return map[string]string{Kind: "reads"} }

// Writes marks commands that change something: they have --output too.
func Writes() map[string]string { return map[string]string{Kind: "writes"} }

// Prints marks commands that print a document or messages in a form of their own.
func Prints() map[string]string { return map[string]string{Kind: "prints"} }
