package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/document"
)

// An app is one run of the command line. Everything that a command reads or
// writes outside of files and the network is in it.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// env are variables as os.Environ returns them.
	env []string
	// terminal reports whether a stream above is one.
	terminal func(stream any) bool

	// format is what --output says, and fleet how to reach one.
	format  string
	fleet   fleetFlags
	account string // whose certificates are meant
	signer  string // who signs for their managers
	// began is set when the command line was understood and a command began.
	began bool
}

// commands lists the commands of the root.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newAccountCommand(a), newUserCommand(a), newRoleCommand(a), newTokenCommand(a), newKeyCommand(a), newNodeCommand(a), newAdapterCommand(a), newLeafCommand(a), newProvisionCommand(a), newGatewayCommand(a),
		newStreamCommand(a), newChangeCommand(a), newHubCommand(a), newCertCommand(a), newTargetCommand(a), newCertManagerCommand(a), newConfCommand(a), newConfigCommand(a),
		newInitCommand(a), newServeCommand(a), newJoinCommand(a), newLeaveCommand(a), newRescueCommand(a),
		newStatusCommand(a), newEventsCommand(a), newTopCommand(a), newPingCommand(a), newDoctorCommand(a), newDemoCommand(a),
		newPubCommand(a), newSubCommand(a), newRequestCommand(a), newReplyCommand(a), newBenchCommand(a),
		newVersionCommand(a), newExitCodesTopic(),
	}
}

// run carries out one command line and returns its exit code. ctx is done when
// the user interrupts it.
func (a *app) run(ctx context.Context, args []string) exitCode {
	root := newRootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var f failure
	if a.began {
		f = explain(ctx, err)
	} else {
		f = misused(cmd, err)
	}
	a.complain(f)
	return f.code
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "fleetbus",
		Short: "The secure message bus for a fleet of servers",
		Example: `  fleetbus status
  fleetbus user add acme/alice --out alice.creds`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.outputFromEnv(cmd); err != nil {
				return err
			}
			a.began = true
			return nil
		},
		Args: verbs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddCommand(commands(a)...)
	root.SetHelpCommand(newHelpCommand(root))
	// The library's completion command takes any word without a complaint.
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args, completion.RunE = verbs, needsVerb
	}
	return root
}

// noun makes the command of a noun, which does nothing but hold its verbs.
func noun(name, short string, verb ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: verbs, RunE: needsVerb}
	cmd.AddCommand(verb...)
	return cmd
}

// needsVerb is what a noun does by itself.
func needsVerb(cmd *cobra.Command, _ []string) error {
	return fail(exitUsage, cmd.CommandPath()+" --help", "%s: a verb is missing", cmd.CommandPath())
}

// verbs refuses what is no verb of a noun, and says which it might be.
func verbs(cmd *cobra.Command, args []string) error {
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

// takes checks the number of arguments. A name in brackets may be left out, and
// one that ends in "..." may be there more than once.
func takes(names ...string) cobra.PositionalArgs {
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

// getenv returns the value of a variable, empty if it is not set.
func (a *app) getenv(name string) string {
	for _, line := range a.env {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

// hint tells the user something besides the data, on one line of stderr.
func (a *app) hint(format string, args ...any) {
	fmt.Fprintln(a.stderr, document.Escape(fmt.Sprintf(format, args...)))
}

// The keys and values of cobra.Command.Annotations, by which a test knows what
// every command owes its user.
const kind = "kind"

// reads marks commands that print data, writes those that change something:
// both have --output. prints marks commands that print a document or messages in
// a form of their own.
func reads() map[string]string  { return map[string]string{kind: "reads"} }
func writes() map[string]string { return map[string]string{kind: "writes"} }
func prints() map[string]string { return map[string]string{kind: "prints"} }
