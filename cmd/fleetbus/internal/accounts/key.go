package accounts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newKeyCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("key", "The keys that the fleet signs with", newKeyList(a), newKeyRotate(a)))
}

func newKeyList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the keys: how old each is, and until when old ones are good",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := keys(a, cmd, "listing keys")
			if err != nil {
				return err
			}
			now := time.Now()
			return a.Show(command.List(all.Keys,
				command.Col("KEY", keyName),
				command.Col("SIGNS", func(k admin.Key) string { return k.Signs }),
				command.Col("AGE", func(k admin.Key) string { return human.Duration(now.Sub(k.Made).Truncate(time.Second)) }),
				command.Col("GENERATION", func(k admin.Key) string { return cmp.Or(k.Generation, "first") }),
				command.Col("OLD UNTIL", func(k admin.Key) string { return human.Time(oldUntil(k)) }),
				command.Col("ON THE OLD", func(k admin.Key) string { return command.Some(onOld(k), 3) }),
			))
		},
	})
}

func keys(a *command.App, cmd *cobra.Command, what string) (admin.Keys, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Keys, error) { return c.Keys(ctx) })
}

// keyName is a key as it is typed.
func keyName(k admin.Key) string {
	if k.Account == "" {
		return k.Name
	}
	return k.Name + " " + k.Account + "/" + k.Role
}

// oldUntil is when the last of the old ones ends; zero if there is none.
func oldUntil(k admin.Key) (until time.Time) {
	for _, old := range k.Old {
		if old.Until.After(until) {
			until = old.Until
		}
	}
	return until
}

// onOld are all that are cut off when the old ones end.
func onOld(k admin.Key) (all []string) {
	for _, old := range k.Old {
		all = append(all, old.Cut...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// rotation is what a command line asks for.
type rotation struct {
	keep    command.Life
	now     bool
	offline string
	g       command.Guard
}

func newKeyRotate(a *command.App) *cobra.Command {
	r := rotation{keep: command.Life(24 * time.Hour)}
	cmd := &cobra.Command{
		Use: "rotate KEY [NAME]", Args: command.Takes("KEY", "[NAME]"), Annotations: command.Writes(),
		ValidArgs: []string{"account", "authority", "operator", "role", "routes"},
		Short:     "Make a new key, and let the old one be good for a while",
		Long: `Make a new key, and let the old one be good for a while:

  role ACCOUNT/ROLE  signs the credentials files of a role
  account ACCOUNT    all roles of an account
  authority          signs the certificates of listeners and users
  routes             signs the certificates by which nodes know each other
  operator           signs the terms of sites; it is told to them, and cuts nobody off

Nobody is disconnected until the old key ends. By then, whoever has something that it
signed has to have renewed it: "fleetbus key ls" and "fleetbus doctor" say who has not.
If somebody else has the key, --now ends it at once.`,
		Example: `  fleetbus key rotate account acme --keep 48h
  fleetbus key rotate role acme/machine --now
  fleetbus key rotate operator --offline /media/safe/offline`,
		RunE: func(cmd *cobra.Command, args []string) error { return rotate(a, cmd, r, args) },
	}
	cmd.Flags().Var(&r.keep, "keep", "how long the old key is good")
	cmd.Flags().BoolVar(&r.now, "now", false, "end the old key at once, and cut off who depends on it")
	cmd.Flags().StringVar(&r.offline, "offline", "", "`directory` with the operator's offline keys, for operator")
	r.g.Destroying(cmd)
	return a.Output(cmd)
}

// request is what the arguments name.
func (r rotation) request(args []string) (admin.KeyRequest, error) {
	usage := func(fix, format string, v ...any) (admin.KeyRequest, error) {
		return admin.KeyRequest{}, command.Fail(command.ExitUsage, fix, "changing a key: "+format, v...)
	}
	q := admin.KeyRequest{Name: args[0], Keep: time.Duration(r.keep)}
	named := q.Name == "role" || q.Name == "account"
	switch {
	case !named && q.Name != identity.KeyOperator && q.Name != identity.KeyAuthority && q.Name != identity.KeyRoutes:
		return usage("fleetbus key rotate --help", "%q is no key", q.Name)
	case named != (len(args) == 2):
		return usage("fleetbus key rotate --help", "%q takes %s", q.Name, map[bool]string{true: "a name", false: "no name"}[named])
	case r.keep == command.Never || r.keep <= 0:
		return usage("--keep 30d, or --now", "the old key has to end")
	case (q.Name == identity.KeyOperator) != (r.offline != ""):
		return usage("fleetbus key rotate operator --offline DIR", "the operator's key, and no other, is made by the offline keys")
	}
	switch q.Name {
	case "account":
		q.Name, q.Account = "role", args[1]
	case "role":
		var err error
		if q.Account, q.Role, err = identity.SplitName(args[1]); err != nil {
			return usage("write it as ACCOUNT/ROLE", "%v", err)
		}
	}
	if r.now {
		q.Keep = 0
	}
	return q, nil
}

func rotate(a *command.App, cmd *cobra.Command, r rotation, args []string) error {
	q, err := r.request(args)
	if err != nil {
		return err
	}
	name := strings.Join(args, " ")
	what := fmt.Sprintf("changing the key of %s", name)
	all, err := keys(a, cmd, what)
	if err != nil {
		return err
	}
	if q.Name == identity.KeyOperator {
		if err := r.newOperator(&q, all); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	var newest time.Time
	for _, k := range all.Keys {
		if k.Name == q.Name && k.Account == q.Account && (q.Role == "" || k.Role == q.Role) && k.Generation != "" && k.Made.After(newest) {
			q.Known, newest = k.Generation, k.Made
		}
	}
	described := fmt.Sprintf("make a new key of %s; the old one is good for %s more", name, human.Duration(q.Keep))
	switch {
	case q.Name == identity.KeyOperator:
		described = "make a new signing key of the operator, and tell the sites"
	case r.now:
		described = fmt.Sprintf("make a new key of %s, end the old one now, and cut off who depends on it", name)
	}
	if r.g.DryRun {
		return a.ShowPlan("%s", described)
	}
	if r.now {
		if err := a.Confirm(cmd.Context(), r.g, args[len(args)-1], described); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	reply, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.KeyReply, error) { return c.RotateKey(ctx, q) })
	if err != nil {
		return err
	}
	return showRotation(a, reply, name)
}

func showRotation(a *command.App, reply admin.KeyReply, name string) error {
	err := a.ShowSpread(reply, reply.Spread, "the key of "+name+" is new")
	var until time.Time
	var on []string
	for _, k := range reply.Keys {
		if end := oldUntil(k); end.After(until) {
			until = end
		}
		on = append(on, onOld(k)...)
	}
	slices.Sort(on)
	if on = slices.Compact(on); !until.IsZero() {
		a.Hint("the old one is good until %s", human.Time(until))
	}
	if len(on) > 0 {
		a.Hint("cut off then, if not renewed: %s", command.Some(on, 5))
	}
	if n := reply.Closed(); n > 0 {
		a.Hint("%s closed", human.Count(n, "connection"))
	}
	return err
}

// newOperator makes the operator's key where its identity is.
func (r rotation) newOperator(q *admin.KeyRequest, all admin.Keys) error {
	var offline identity.Offline
	for name, into := range map[string]*[]byte{"operator.nk": &offline.OperatorSeed, "signing.nk": &offline.SigningSeed} {
		path := filepath.Join(r.offline, name)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return command.Fail(command.ExitNotFound, "--offline DIR", "there is no %q", path)
		}
		if err != nil {
			return err
		}
		*into = data
	}
	operator, seed, err := identity.NewOperatorKey(all.Operator, offline, time.Now())
	if err != nil {
		return err
	}
	q.Operator = operator
	q.Seed, err = identity.Seal(seed, all.Boxes)
	return err
}
