package command

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

// IsTerminal reports whether stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Progress says on a terminal what is being waited for, once it takes more than
// a second. The function that it returns takes the line away; nothing else may
// be printed before.
func (a *App) Progress(what string) (stop func()) {
	if !a.Terminal(a.Stderr) {
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
				fmt.Fprintf(a.Stderr, "\r%s, %d s ", document.Escape(what), int(time.Since(began).Seconds()))
			case <-quit:
				if shown {
					fmt.Fprint(a.Stderr, "\r\x1b[K")
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

// Guard is what stands between a writing command and its effect.
type Guard struct{ Yes, DryRun bool }

// Drying gives cmd the flag --dry-run.
func (g *Guard) Drying(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&g.DryRun, "dry-run", false, "say what would change, and change nothing")
}

// Destroying gives cmd the flags --dry-run and --yes.
func (g *Guard) Destroying(cmd *cobra.Command) {
	g.Drying(cmd)
	cmd.Flags().BoolVarP(&g.Yes, "yes", "y", false, "do not ask")
}

// Confirm asks the user to type name before what is described is done. Without
// a terminal nobody is asked, and --yes is needed.
func (a *App) Confirm(ctx context.Context, g Guard, name, described string) error {
	if g.Yes {
		return nil
	}
	if !a.Terminal(a.Stdin) || !a.Terminal(a.Stderr) {
		return Fail(ExitUsage, "add --yes", "this would %s, and there is no terminal to ask on", described)
	}
	a.Hint("This will %s.", described)
	fmt.Fprintf(a.Stderr, "Type %s to go on: ", document.Escape(name))
	typed := make(chan string, 1)
	// Reading a terminal cannot be interrupted; the process ends soon after.
	go func() {
		// An end of input is an answer too: not the name.
		line, _ := bufio.NewReader(a.Stdin).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		if line != name {
			return Fail(ExitFailed, "", "nothing was changed: %q was not typed", name)
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(a.Stderr)
		return ctx.Err()
	}
}

// A plan is what a writing command would do, for --dry-run.
type plan struct {
	DryRun bool   `json:"dry_run"`
	Would  string `json:"would"`
}

// ShowPlan prints what would be done.
func (a *App) ShowPlan(format string, args ...any) error {
	p := plan{DryRun: true, Would: fmt.Sprintf(format, args...)}
	return a.Show(Report{Value: p, Text: func(out *Page) { out.Line("would %s", p.Would) }})
}
