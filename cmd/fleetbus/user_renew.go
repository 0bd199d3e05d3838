package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
)

func newUserRenew(a *app) *cobra.Command {
	var f userFlags
	cmd := &cobra.Command{
		Use: "renew ACCOUNT/NAME", Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Renew a credentials file or a client certificate, with the key it has",
		Example: `  fleetbus user renew acme/alice --out alice.creds
  fleetbus user renew acme/press --cert press --expires 30d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("renewing the credentials of %q", name)
			if f.out == "" && f.certOut == "" {
				return fail(exitUsage, "--out FILE, or --cert PREFIX", "%s: which file is not said", what)
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
			if _, err := a.user(cmd, what, name); err != nil {
				return err
			}
			if f.g.dryRun {
				return a.showPlan("renew the credentials of %s%s", name, f.writing())
			}
			reply, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.UserReply, error) {
				return c.AddUser(ctx, request)
			})
			if err != nil {
				return err
			}
			f.g.yes = true // it is the same file, with the same key
			if err := f.write(a, keys, reply); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			for _, path := range f.files() {
				a.hint("wrote %s", path)
			}
			return missing(reply.Spread)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.out, "out", "", "NATS credentials `file` to renew")
	flags.StringVar(&f.certOut, "cert", "", "`PREFIX` of the client certificate to renew: PREFIX.crt, with the key PREFIX.key")
	flags.Var(&f.expires, "expires", "life of the credentials, such as 24h or 30d, or never (default: the role's)")
	f.g.drying(cmd)
	return a.output(cmd)
}
