package accounts

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newUserRenew(a *command.App) *cobra.Command {
	var f userFlags
	cmd := &cobra.Command{
		Use: "renew [ACCOUNT/NAME]", Args: command.Takes("[ACCOUNT/NAME]"), Annotations: command.Writes(),
		Short: "Renew a credentials file or a client certificate, with the key it has",
		Long: `Renew a credentials file or a client certificate, with the key it has. Without a
name it is the credentials file of --creds that is renewed, by its own right: that
takes no administrator, as long as the file is good.`,
		Example: `  fleetbus user renew --creds alice.creds
  fleetbus user renew acme/alice --out alice.creds
  fleetbus user renew acme/press --cert press --expires 30d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return f.renewOwn(cmd, a)
			}
			name := args[0]
			what := fmt.Sprintf("renewing the credentials of %q", name)
			if f.out == "" && f.certOut == "" {
				return command.Fail(command.ExitUsage, "--out FILE, or --cert PREFIX", "%s: which file is not said", what)
			}
			request := admin.UserRequest{Name: name, Expires: time.Duration(f.expires)}
			var keys userKeys
			if f.out != "" {
				if err := keys.loadCreds(f.out, &request); err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
			}
			if f.certOut != "" {
				if err := keys.loadKey(f.certOut+".key", &request); err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
			}
			// To renew is not to make: the user has to be there.
			if _, err := userNamed(a, cmd, what, name); err != nil {
				return err
			}
			if f.g.DryRun {
				return a.ShowPlan("renew the credentials of %s%s", name, f.writing())
			}
			reply, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.UserReply, error) {
				return c.AddUser(ctx, request)
			})
			if err != nil {
				return err
			}
			f.g.Yes = true // it is the same file, with the same key
			if err := f.write(a, keys, reply); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			for _, path := range f.files() {
				a.Hint("wrote %s", path)
			}
			return command.Missing(reply.Spread)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.out, "out", "", "NATS credentials `file` to renew")
	flags.StringVar(&f.certOut, "cert", "", "`PREFIX` of the client certificate to renew: PREFIX.crt, with the key PREFIX.key")
	flags.Var(&f.expires, "expires", "life of the credentials, such as 24h or 30d, or never (default: the role's)")
	f.g.Drying(cmd)
	return a.Output(cmd)
}

// renewOwn renews the credentials file that it connects with.
func (f *userFlags) renewOwn(cmd *cobra.Command, a *command.App) error {
	const what = "renewing the credentials"
	t, err := a.Target(false)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case t.Creds == "":
		return command.Fail(command.ExitUsage, "--creds FILE", "%s: which file is not said", what)
	case f.out != "" || f.certOut != "" || f.expires != 0:
		return command.Fail(command.ExitUsage, "name the user: fleetbus user renew ACCOUNT/NAME", "%s: --out, --cert and --expires are an administrator's", what)
	}
	f.out = t.Creds
	var keys userKeys
	if err := keys.loadCreds(f.out, new(admin.UserRequest)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if f.g.DryRun {
		return a.ShowPlan("renew the credentials in %s", f.out)
	}
	nc, err := a.AsUser(cmd.Context(), what)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	reply, err := admin.Renew(ctx, nc)
	if err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	f.g.Yes = true // it is the same file, with the same key
	if err := f.write(a, keys, reply); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	a.Hint("wrote %s", f.out)
	return nil
}
