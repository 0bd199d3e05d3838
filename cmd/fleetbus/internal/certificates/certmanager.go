package certificates

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/issuers"
)

// OpenManager makes the manager of an account's certificates on a node.
func OpenManager(node string, key *cert.ManagerKey, log *slog.Logger) (fleetbus.Service, error) {
	return certmanager.New(certmanager.Options{
		Name: node, Issuers: issuers.All(), Logger: log,
		Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil },
	})
}

func newCertManagerCommand(a *command.App) *cobra.Command {
	var once bool
	var keyFile, name string
	cmd := &cobra.Command{
		Use: "certmanager", Args: command.Verbs, Annotations: command.Writes(),
		Short: "Manage an account's certificates from anywhere",
		Long: `Manage an account's certificates from anywhere, beside the managers of nodes or in
their place: do everything that is due, once, and end. It is for cron, and for
services that run a function. Until it is interrupted it runs without --once.`,
		Example: `  fleetbus certmanager key --account acme --out acme.key
  fleetbus certmanager --once --key acme.key --creds ops.creds`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "managing certificates"
			if keyFile == "" {
				return command.Fail(command.ExitUsage, "fleetbus certmanager key --account NAME --out FILE, then --key FILE", "%s: the key of the account's managers is missing", what)
			}
			info, err := os.Stat(keyFile)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if mode := info.Mode().Perm(); mode&0o077 != 0 {
				return command.Fail(command.ExitDenied, "chmod 600 "+keyFile, "%s: others can read %q, which has mode %04o", what, keyFile, mode)
			}
			text, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			key, err := cert.ParseManagerKey(string(text))
			if err != nil {
				return fmt.Errorf("%s: %q: %w", what, keyFile, err)
			}
			host, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			host, _, _ = strings.Cut(host, ".")
			m, err := certmanager.New(certmanager.Options{
				Name: cmp.Or(name, host), Issuers: issuers.All(), Logger: slog.New(slog.NewTextHandler(a.Stderr, nil)),
				Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil },
			})
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			nc, err := a.AsUser(cmd.Context(), what, a.Staying(what)...)
			if err != nil {
				return err
			}
			defer nc.Close()
			if !once {
				return m.Run(cmd.Context(), nc)
			}
			done, err := m.Once(cmd.Context(), nc)
			if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			type row = certmanager.Outcome
			return a.Show(command.List(done,
				command.Col("ID", func(o row) string { return o.ID }),
				command.Col("NAMES", func(o row) string { return strings.Join(o.Names, ",") }),
				command.Col("EVENT", func(o row) string { return string(o.Event) }),
				command.Col("DETAIL", func(o row) string { return o.Detail }),
			))
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "do what is due, and end")
	cmd.Flags().StringVar(&keyFile, "key", "", "`file` with the key of the account's managers")
	cmd.Flags().StringVar(&name, "name", "", "name of this manager (default: the name of the host)")
	cmd.AddCommand(newCertManagerKey(a), newCertManagerSigner(a))
	return a.OnFleet(a.Output(cmd))
}

func newCertManagerKey(a *command.App) *cobra.Command {
	var account, out string
	cmd := &cobra.Command{
		Use: "key", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Write the key of an account's managers to a file",
		Long: `Write the key of an account's managers to a file, which its owner alone can read.
Who has it, and credentials of role certmanager, can issue and replace every
certificate of the account.`,
		Example: `  fleetbus certmanager key --account acme --out acme.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "writing the key of the managers"
			if account == "" || out == "" {
				return command.Fail(command.ExitUsage, "--account NAME --out FILE", "%s: the account or the file is not named", what)
			}
			text, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (string, error) {
				return c.CertManagerKey(ctx, account)
			})
			if err != nil {
				return err
			}
			if err := (command.SecretFile{Path: out, Data: []byte(text), Mode: 0o600}).Write(false); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			value := struct {
				Account string `json:"account"`
				File    string `json:"file"`
			}{account, out}
			return a.Show(command.Report{Value: value, Text: func(p *command.Page) { p.Line("the key of the managers of account %s is in %s", account, out) }})
		},
	}
	cmd.Flags().StringVar(&account, "account", "", "account whose certificates they are")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write")
	return a.Output(cmd)
}

func newCertManagerSigner(a *command.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "signer", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Print who signs the answers of the managers, for --signer",
		Long: `Print who signs the answers of the managers, which is no secret. A user of their account
who knows it (--signer) believes nobody else, and can send secrets.`,
		Example: `  fleetbus certmanager signer --account acme`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signer, err := Manage(cmd, a, "looking who signs for the managers", func(ctx context.Context, c *certmanager.Client) (cert.Signer, error) {
				return c.WhoSigns(ctx)
			})
			if err != nil {
				return err
			}
			value := struct {
				Signer cert.Signer `json:"signer"`
			}{signer}
			return a.Show(command.Report{Value: value, Text: func(p *command.Page) { p.Line("%s", signer) }})
		},
	}
	cmd.Flags().StringVar(&a.Account, "account", "", "account whose certificates they are (default: the only one there is)")
	return a.Output(cmd)
}
