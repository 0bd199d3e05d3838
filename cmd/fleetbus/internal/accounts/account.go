package accounts

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newAccountCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("account", "Accounts, which isolate subjects from each other",
		newAccountAdd(a), newAccountList(a), newAccountInfo(a), newAccountRemove(a), newAccountExport(a), newAccountImport(a)))
}

// limitFlags are the flags that set limits.
type limitFlags struct {
	connections, leafs, subscriptions, streams, consumers int64
	payload, data, storage, memory                        command.Size
}

func (l *limitFlags) add(flags *pflag.FlagSet) {
	flags.Int64Var(&l.leafs, "leafs", 0, "links of sites at once; 0 is unlimited")
	flags.Int64Var(&l.streams, "streams", 0, "streams; 0 is unlimited")
	flags.Int64Var(&l.consumers, "consumers", 0, "consumers; 0 is unlimited")
	flags.Var(&l.storage, "storage", "what streams may hold on disk, replicas counted, such as 10GiB; 0B is unlimited")
	flags.Var(&l.memory, "memory", "what streams may hold in memory, replicas counted; 0B is unlimited")
	l.addConnection(flags)
}

// addConnection adds those that bound one connection, and how many there are.
func (l *limitFlags) addConnection(flags *pflag.FlagSet) {
	flags.Int64Var(&l.connections, "connections", 0, "connections at once, on all nodes; 0 is unlimited")
	flags.Int64Var(&l.subscriptions, "subscriptions", 0, "subscriptions at once; 0 is unlimited")
	flags.Var(&l.payload, "payload", "size of one message, such as 64KiB; 0B is unlimited")
	flags.Var(&l.data, "data", "what may be under way at once, such as 10MiB, which the engine notes and does not enforce; 0B is unlimited")
}

// apply sets the limits whose flags were given.
func (l *limitFlags) apply(flags *pflag.FlagSet, limits *identity.Limits) {
	for _, f := range []struct {
		name  string
		limit *int64
		value int64
	}{
		{"connections", &limits.Connections, l.connections}, {"leafs", &limits.Leafs, l.leafs}, {"subscriptions", &limits.Subscriptions, l.subscriptions},
		{"payload", &limits.Payload, int64(l.payload)}, {"data", &limits.Data, int64(l.data)},
		{"storage", &limits.Storage, int64(l.storage)}, {"memory", &limits.Memory, int64(l.memory)},
		{"streams", &limits.Streams, l.streams}, {"consumers", &limits.Consumers, l.consumers},
	} {
		if flags.Changed(f.name) {
			*f.limit = f.value
		}
	}
}

func newAccountAdd(a *command.App) *cobra.Command {
	var limits limitFlags
	var sign string
	var g command.Guard
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Make an account, or set the limits of one and whether its messages are signed",
		Example: `  fleetbus account add acme
  fleetbus account add acme --storage 10GiB --connections 500
  fleetbus account add acme --signing required`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("adding account %q", name)
			if err := identity.CheckAccountName(name); err != nil {
				return command.Fail(command.ExitUsage, "choose another name", "%s: %v", what, err)
			}
			if _, err := identity.ParseSigning(sign); sign != "" && err != nil {
				return command.Fail(command.ExitUsage, "use off, optional or required", "%s: %v", what, err)
			}
			exists := true
			info, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.AccountInfo, error) {
				return c.Account(ctx, name)
			})
			if isNotFound(err) {
				exists = false
			} else if err != nil {
				return err
			}
			limits.apply(cmd.Flags(), &info.Limits)
			if g.DryRun && exists && sign != "" {
				return a.ShowPlan("set the limits of account %s, and signing to %s", name, sign)
			} else if g.DryRun && exists {
				return a.ShowPlan("set the limits of account %s", name)
			} else if g.DryRun {
				return a.ShowPlan("make account %s", name)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddAccount(ctx, admin.AccountRequest{Name: name, Limits: info.Limits, Signing: sign})
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("account %s is live", name))
		},
	}
	limits.add(cmd.Flags())
	cmd.Flags().StringVar(&sign, "signing", "", "whether what is published must be signed: off, optional or required (default: as it is)")
	g.Drying(cmd)
	return a.Output(cmd)
}

// isNotFound reports whether the fleet knows nothing of what was asked for.
func isNotFound(err error) bool { return errors.Is(err, &admin.Error{Code: admin.NotFound}) }

func newAccountList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the accounts",
		RunE: func(cmd *cobra.Command, _ []string) error {
			accounts, err := command.Administer(cmd, a, "listing accounts", func(ctx context.Context, c *admin.Client) ([]admin.AccountInfo, error) {
				return c.Accounts(ctx)
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(accounts,
				command.Col("NAME", func(i admin.AccountInfo) string { return i.Name }),
				command.Col("USERS", func(i admin.AccountInfo) string { return human.Int(int64(i.Users)) }),
				command.Col("CONNECTIONS", func(i admin.AccountInfo) string { return human.Int(int64(i.Connections)) }),
				command.Col("STREAMS", func(i admin.AccountInfo) string { return human.Int(int64(i.Streams)) }),
				command.Col("STORED", func(i admin.AccountInfo) string { return human.Size(int64(i.Bytes)) }),
				command.Col("STORAGE", func(i admin.AccountInfo) string { return human.Limit(i.Limits.Storage, human.Size) }),
				command.Col("CREATED", func(i admin.AccountInfo) string { return human.Time(i.Created) }),
			))
		},
	})
}

func newAccountInfo(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "info NAME", Aliases: []string{"get", "show"}, Args: command.Takes("NAME"), Annotations: command.Reads(),
		Short: "Tell of one account",
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := command.Administer(cmd, a, fmt.Sprintf("asking for account %q", args[0]), func(ctx context.Context, c *admin.Client) (admin.AccountInfo, error) {
				return c.Account(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: i, Text: func(p *command.Page) {
				for _, e := range i.Errors {
					p.Line("incomplete: %s", e)
				}
				command.Fields(p, []command.Field{{"name", i.Name}, {"id", i.ID}, {"public key", i.Public}, {"created", human.Time(i.Created)},
					{"users", human.Int(int64(i.Users))},
					{"signing", i.Signing.String()},
					{"connections", human.Int(int64(i.Connections)) + " of " + human.Limit(i.Limits.Connections, human.Int)},
					{"links of sites", "at most " + human.Limit(i.Limits.Leafs, human.Int)},
					{"streams", human.Int(int64(i.Streams)) + " of " + human.Limit(i.Limits.Streams, human.Int)},
					{"consumers", "at most " + human.Limit(i.Limits.Consumers, human.Int)},
					{"stored", human.Size(int64(i.Bytes))},
					{"storage", human.Limit(i.Limits.Storage, human.Size)},
					{"memory", human.Limit(i.Limits.Memory, human.Size)},
					{"payload", human.Limit(i.Limits.Payload, human.Size)},
					{"data", human.Limit(i.Limits.Data, human.Size)},
					{"subscriptions", human.Limit(i.Limits.Subscriptions, human.Int)}})
				flowTables(p, i)
			}})
		},
	})
}

func newAccountRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove an account with its users and streams",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing account %q", name)
			i, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.AccountInfo, error) {
				return c.Account(ctx, name)
			})
			if err != nil {
				return err
			}
			described := fmt.Sprintf("remove account %s with %s and %s (%s), and close %s",
				name, human.Count(i.Users, "user"), human.Count(i.Streams, "stream"), human.Size(int64(i.Bytes)), human.Count(i.Connections, "connection"))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveAccount(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("account %s is removed: %s closed", name, human.Count(s.Closed(), "connection")))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
