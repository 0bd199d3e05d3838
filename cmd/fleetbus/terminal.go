package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/fleetbus/fleetbus/internal/document"
)

// isTerminal reports whether stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress says on a terminal what is being waited for, once it takes more than
// a second. The function that it returns takes the line away; nothing else may
// be printed before.
func (a *app) progress(what string) (stop func()) {
	if !a.terminal(a.stderr) {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for shown := false; ; shown = true {
			select {
			case <-tick.C:
				fmt.Fprintf(a.stderr, "\r%s, %d s ", document.Escape(what), int(time.Since(began).Seconds()))
			case <-quit:
				if shown {
					fmt.Fprint(a.stderr, "\r\x1b[K")
				}
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// guard is what stands between a writing command and its effect.
type guard struct{ yes, dryRun bool }

// drying gives cmd the flag --dry-run.
func (g *guard) drying(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&g.dryRun, "dry-run", false, "say what would change, and change nothing")
}

// destroying gives cmd the flags --dry-run and --yes.
func (g *guard) destroying(cmd *cobra.Command) {
	g.drying(cmd)
	cmd.Flags().BoolVarP(&g.yes, "yes", "y", false, "do not ask")
}

// confirm asks the user to type name before what is described is done. Without
// a terminal nobody is asked, and --yes is needed.
func (a *app) confirm(ctx context.Context, g guard, name, described string) error {
	if g.yes {
		return nil
	}
	if !a.terminal(a.stdin) || !a.terminal(a.stderr) {
		return fail(exitUsage, "add --yes", "this would %s, and there is no terminal to ask on", described)
	}
	a.hint("This will %s.", described)
	fmt.Fprintf(a.stderr, "Type %s to go on: ", document.Escape(name))
	typed := make(chan string, 1)
	// Reading a terminal cannot be interrupted; the process ends soon after.
	go func() {
		// An end of input is an answer too: not the name.
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		if line != name {
			return fail(exitFailed, "", "nothing was changed: %q was not typed", name)
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return ctx.Err()
	}
}

// A plan is what a writing command would do, for --dry-run.
type plan struct {
	DryRun bool   `json:"dry_run"`
	Would  string `json:"would"`
}

// showPlan prints what would be done.
func (a *app) showPlan(format string, args ...any) error {
	p := plan{DryRun: true, Would: fmt.Sprintf(format, args...)}
	return a.show(report{value: p, text: func(out *page) { out.line("would %s", p.Would) }})
}
