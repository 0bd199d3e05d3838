package certificates

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
)

// OnManagers gives cmd, and the verbs under it, the flags that say how to reach the
// managers of an account's certificates.
func OnManagers(a *command.App, cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&a.Account, "account", "", "account whose certificates they are; administrators say it (default: that of --creds, or the only one there is)")
	cmd.PersistentFlags().StringVar(&a.Signer, "signer", "", "who signs the answers of the managers, as \"certmanager signer\" prints it; with --creds of their account, secrets are sent to nobody else (default: any answer is believed, and no secret is sent)")
	return a.OnFleet(cmd)
}

// Manage asks the managers of an account's certificates to do something, and shows
// the steps that they tell of. what says it in the words of errors.
func Manage[Out any](cmd *cobra.Command, a *command.App, what string, do func(context.Context, *certmanager.Client) (Out, error)) (out Out, err error) {
	administrator := a.Account != "" || a.Fleet.Creds == "" && a.Getenv("FLEETBUS_CREDS") == "" && a.Fleet.Cert == ""
	switch err := cert.Signer(a.Signer).Validate(); {
	case a.Signer != "" && administrator:
		return out, command.Fail(command.ExitUsage, "leave --signer out", "%s: the node that an administrator asks knows who signs", what)
	case a.Signer != "" && err != nil:
		return out, command.Fail(command.ExitUsage, "fleetbus certmanager signer --account ACCOUNT, as an administrator", "%s: --signer: %v", what, err)
	}
	t, err := a.Target(administrator)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	nc, err := a.Connect(ctx, t)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	c := certmanager.NewClient(nc)
	c.Signer = cert.Signer(a.Signer)
	if administrator {
		account, err := certAccount(ctx, a, nc, what)
		if err != nil {
			return out, err
		}
		c = certmanager.NewAdminClient(nc, account)
	}
	c.Progress = func(step string) { a.Hint("  %s  %s", time.Now().Format(time.TimeOnly), step) }
	out, err = do(ctx, c)
	switch {
	case errors.Is(err, nats.ErrNoResponders) && administrator:
		return out, command.Fail(command.ExitUnavailable, "use the credentials of an administrator, or leave --account out", "%s: nobody answers requests of administrators there", what)
	case errors.Is(err, nats.ErrNoResponders):
		return out, command.Fail(command.ExitUnavailable, "fleetbus cert ls --account ACCOUNT, as an administrator", "%s: no manager of certificates answers in this account", what)
	case err != nil:
		return out, fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	return out, nil
}

// certAccount is the account that an administrator means.
func certAccount(ctx context.Context, a *command.App, nc *nats.Conn, what string) (string, error) {
	if a.Account != "" {
		return a.Account, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	accounts, err := admin.New(nc).Accounts(ctx)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	var names []string
	for _, i := range accounts {
		if identity.CheckAccountName(i.Name) == nil {
			names = append(names, i.Name)
		}
	}
	switch len(names) {
	case 0:
		return "", command.Fail(command.ExitUsage, "fleetbus account add NAME", "%s: certificates belong to an account, and there is none", what)
	case 1:
		return names[0], nil
	}
	return "", command.Fail(command.ExitUsage, "--account "+names[0], "%s: it is not said which account is meant: %s", what, strings.Join(names, ", "))
}
