package main

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
	"github.com/fleetbus/fleetbus/identity"
)

// onManagers gives cmd, and the verbs under it, the flags that say how to reach the
// managers of an account's certificates.
func (a *app) onManagers(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&a.account, "account", "", "account whose certificates they are; administrators say it (default: that of --creds, or the only one there is)")
	cmd.PersistentFlags().StringVar(&a.signer, "signer", "", "who signs the answers of the managers, as \"certmanager signer\" prints it; with --creds of their account, secrets are sent to nobody else (default: any answer is believed, and no secret is sent)")
	return a.onFleet(cmd)
}

// manage asks the managers of an account's certificates to do something, and shows
// the steps that they tell of. what says it in the words of errors.
func manage[Out any](cmd *cobra.Command, a *app, what string, do func(context.Context, *certmanager.Client) (Out, error)) (out Out, err error) {
	administrator := a.account != "" || a.fleet.creds == "" && a.getenv("FLEETBUS_CREDS") == "" && a.fleet.cert == ""
	switch err := cert.Signer(a.signer).Validate(); {
	case a.signer != "" && administrator:
		return out, fail(exitUsage, "leave --signer out", "%s: the node that an administrator asks knows who signs", what)
	case a.signer != "" && err != nil:
		return out, fail(exitUsage, "fleetbus certmanager signer --account ACCOUNT, as an administrator", "%s: --signer: %v", what, err)
	}
	t, err := a.target(administrator)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	nc, err := a.connect(ctx, t)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	c := certmanager.NewClient(nc)
	c.Signer = cert.Signer(a.signer)
	if administrator {
		account, err := a.certAccount(ctx, nc, what)
		if err != nil {
			return out, err
		}
		c = certmanager.NewAdminClient(nc, account)
	}
	c.Progress = func(step string) { a.hint("  %s  %s", time.Now().Format(time.TimeOnly), step) }
	out, err = do(ctx, c)
	switch {
	case errors.Is(err, nats.ErrNoResponders) && administrator:
		return out, fail(exitUnavailable, "use the credentials of an administrator, or leave --account out", "%s: nobody answers requests of administrators there", what)
	case errors.Is(err, nats.ErrNoResponders):
		return out, fail(exitUnavailable, "fleetbus cert ls --account ACCOUNT, as an administrator", "%s: no manager of certificates answers in this account", what)
	case err != nil:
		return out, fmt.Errorf("%s: %w", what, violation(nc, err))
	}
	return out, nil
}

// certAccount is the account that an administrator means.
func (a *app) certAccount(ctx context.Context, nc *nats.Conn, what string) (string, error) {
	if a.account != "" {
		return a.account, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.fleet.timeout)
	defer cancel()
	accounts, err := admin.New(nc).Accounts(ctx)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, violation(nc, err))
	}
	var names []string
	for _, i := range accounts {
		if identity.CheckAccountName(i.Name) == nil {
			names = append(names, i.Name)
		}
	}
	switch len(names) {
	case 0:
		return "", fail(exitUsage, "fleetbus account add NAME", "%s: certificates belong to an account, and there is none", what)
	case 1:
		return names[0], nil
	}
	return "", fail(exitUsage, "--account "+names[0], "%s: it is not said which account is meant: %s", what, strings.Join(names, ", "))
}
