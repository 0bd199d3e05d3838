package joining

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/provision"
)

// requestFlags are those of provision request.
type requestFlags struct {
	a                       *command.App
	name, pin, out          string
	token, tokenFile, claim string
	servers                 []string
	facts                   map[string]string
	wait                    time.Duration
}

func newProvisionRequest(a *command.App) *cobra.Command {
	f := &requestFlags{a: a}
	cmd := &cobra.Command{
		Use: "request HOST", Args: command.Takes("HOST"), Annotations: command.Writes(),
		Short: "On a machine: ask a fleet for an identity, and wait for it",
		Long: `On a machine that nobody knows: ask a fleet for an identity, wait for it, and come in
by it. HOST is a listener for provisioning, in clear, or tls://HOST. The private keys are
made here, and stay here; what is said can be read and altered by anybody on the way,
who gains nothing by it. The fleet is known by --fleet, or by the token. A request that
was cut off goes on when it is made again; a machine that has its identity has nothing
to do.`,
		Example: `  fleetbus provision request site.example.net --name till-7 --token-file token --out /etc/till
  fleetbus provision request site.example.net --name till-7 --fleet 3f5c… --out /etc/till`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	host, _ := os.Hostname() // without one, a name has to be given
	host, _, _ = strings.Cut(host, ".")
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "`name` of this machine in its account (default: the name of the host)")
	flags.StringVar(&f.pin, "fleet", "", "the fleet's `pin`, as fleetbus provision pin shows it there")
	flags.StringVar(&f.token, "token", "", "`token` to prove with; other users can see it in the process list")
	flags.StringVar(&f.tokenFile, "token-file", "", "`file` with the token, - for standard input")
	flags.StringVar(&f.claim, "claim-file", "", "`file` with a JWT to prove with")
	flags.StringVar(&f.out, "out", "", "`directory` of the identity, which is made")
	flags.StringSliceVar(&f.servers, "server", nil, "host:port to come in at (default: the nodes that the fleet names)")
	flags.StringToStringVar(&f.facts, "fact", nil, "what to say of this machine to who decides, such as rack=7")
	flags.DurationVar(&f.wait, "wait", 10*time.Minute, "how long to ask for")
	f.name = host
	return a.Output(cmd)
}

// requested is what request prints for programs.
type requested struct {
	Changed bool   `json:"changed"`
	Dir     string `json:"dir"`
	provision.Identity
}

func (f *requestFlags) run(cmd *cobra.Command, host string) error {
	const what = "asking for an identity"
	if f.out == "" {
		return command.Fail(command.ExitUsage, "--out DIRECTORY", "%s: there is no directory for it", what)
	}
	if provision.Dir(f.out).Settled() {
		return f.a.Show(command.Report{Value: requested{Dir: f.out}, Text: func(p *command.Page) {
			p.Line("already has an identity, nothing to do: %s", f.path(provision.CredsFile))
		}})
	}
	m := provision.Machine{Server: host, Name: f.name, Pin: f.pin, Token: f.token, Facts: map[string]string{
		"os": runtime.GOOS, "arch": runtime.GOARCH, "version": fleetbus.Version(),
	}}
	for name, value := range f.facts {
		m.Facts[name] = value
	}
	var err error
	if f.tokenFile != "" {
		m.Token, err = (&joinFlags{Flags: boot.Flags{App: f.a}, tokenFile: f.tokenFile}).readToken()
	}
	if err == nil && f.claim != "" {
		var text []byte
		text, err = os.ReadFile(f.claim)
		m.Claim = strings.TrimSpace(string(text))
	}
	if err == nil {
		m.Keys, err = provision.Dir(f.out).Keys()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	m.Progress = func(p provision.Progress) {
		switch {
		case p.Pending:
			f.a.Hint("%s has the code %s: %s", f.name, p.Code, p.Reason)
		default:
			f.a.Hint("not yet: %s", p.Reason)
		}
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), f.wait, fmt.Errorf("nothing came of it within %v", f.wait))
	defer cancel()
	id, err := provision.Ask(ctx, m)
	if err != nil {
		return f.explain(err)
	}
	return f.settle(ctx, id)
}

// explain says what can be done about a request in vain.
func (f *requestFlags) explain(err error) error {
	var unknown *provision.UnknownFleetError
	switch {
	case errors.As(err, &unknown):
		return command.Fail(command.ExitDenied, "compare it with what fleetbus provision pin shows on a node of your fleet, and then add --fleet "+unknown.Pin, "%v", err)
	case errors.Is(err, provision.ErrDenied):
		return command.Fail(command.ExitDenied, "ask who runs the fleet; to ask by another name or with another proof, remove "+f.path(provision.PendingFile), "%v", err)
	case errors.Is(err, provision.ErrFleet):
		return command.Fail(command.ExitDenied, "look at the address, the pin and the clock of this machine", "%v", err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "nothing came of it"):
		return command.Fail(command.ExitUnavailable, "make the request again: it goes on where it was", "%v", err)
	}
	return err
}

// settle comes in by the identity, and writes it.
func (f *requestFlags) settle(ctx context.Context, id *provision.Identity) error {
	at := ""
	err := provision.Dir(f.out).Settle(id, func() error {
		nc, err := id.Connect(ctx, f.servers)
		if err != nil {
			return err
		}
		at = nc.ConnectedAddr()
		nc.Close()
		return nil
	})
	if err != nil {
		return fmt.Errorf("taking the identity: %w", err)
	}
	return f.a.Show(command.Report{Value: requested{true, f.out, *id}, Text: func(p *command.Page) {
		p.Line("this machine is %s/%s of fleet %s, of role %s: it came in at %s by %s", id.Account, id.Name, id.Fleet, id.Role, at, f.path(provision.CredsFile))
	}})
}

func (f *requestFlags) path(name string) string { return provision.Dir(f.out).Path(name) }
