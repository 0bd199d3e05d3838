package joining

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

// joinFlags are those of join beside the configuration's.
type joinFlags struct {
	boot.Flags
	token, tokenFile, as, user, out string
	replace                         bool
	target                          targetFlags
}

func newJoinCommand(a *command.App) *cobra.Command {
	f := &joinFlags{Flags: boot.Flags{App: a}}
	cmd := &cobra.Command{
		Use: "join HOST", Args: command.Takes("HOST"), Annotations: command.Writes(),
		Short: "Join a fleet with an enrollment token",
		Long: `Join the fleet that HOST is a node of, as a node, as a user, as a site (leaf), or
as a region (gateway). Before anything changes it is checked that both sides can see each
other. Joining again does nothing.`,
		Example: `  fleetbus join eu-1.example.net --token fb1.…
  fleetbus join eu-1.example.net --token-file token --as user --user acme/alice --out alice.creds
  fleetbus join eu-1.example.net --token-file token --as leaf
  fleetbus join eu-1.example.net --token-file token --as gateway
  fleetbus join eu-1.example.net --token-file token --as target`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.as == "node" {
				return f.joinNode(cmd, args[0])
			}
			token, err := f.readToken()
			if err != nil {
				return err
			}
			if f.as == "target" {
				return f.joinTarget(cmd, args[0], token)
			}
			if f.as == "leaf" {
				return f.joinLeaf(cmd, args[0], token)
			}
			if f.as == "gateway" {
				return f.joinRegion(cmd, args[0], token)
			}
			return f.joinUser(cmd, args[0], token)
		},
	}
	f.Add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.token, "token", "", "enrollment token; it is good for one use")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the enrollment token, - for standard input; other users cannot see it in the process list")
	flags.Var(&command.Choice{Value: &f.as, Words: []string{"node", "user", "leaf", "gateway", "target"}}, "as", "what to join as: node, user, leaf, gateway, target")
	f.as = "node"
	f.target.add(cmd)
	flags.StringVar(&f.user, "user", "", "account/name to join as, if the token does not bind it")
	flags.StringVar(&f.out, "out", "", "creds file to write, when joining as anything but a node")
	flags.BoolVar(&f.replace, "replace", false, "take the place of a node of the same name that is gone")
	return a.Output(cmd)
}

func (f *joinFlags) readToken() (string, error) {
	switch {
	case f.token != "":
		return strings.TrimSpace(f.token), nil
	case f.tokenFile != "":
		in := f.App.Stdin
		if f.tokenFile != "-" {
			file, err := os.Open(f.tokenFile)
			if err != nil {
				return "", fmt.Errorf("reading the token: %w", err)
			}
			defer file.Close()
			in = file
		}
		text, err := io.ReadAll(io.LimitReader(in, 4<<10))
		if err != nil {
			return "", fmt.Errorf("reading the token: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	case f.App.Getenv("FLEETBUS_TOKEN") != "":
		return f.App.Getenv("FLEETBUS_TOKEN"), nil
	}
	return "", command.Fail(command.ExitUsage, "fleetbus token add node, on a node of the fleet", "joining: a token is missing")
}

// joined is what join prints for programs.
type joined struct {
	Changed bool           `json:"changed"`
	Fleet   string         `json:"fleet"`
	Name    string         `json:"name"`
	DataDir string         `json:"data_dir,omitempty"`
	Creds   string         `json:"creds,omitempty"`
	Checks  []enroll.Check `json:"checks"`
	Warning string         `json:"warning,omitempty"`
}

func (f *joinFlags) joinNode(cmd *cobra.Command, host string) error {
	c, o, err := f.Load(cmd)
	if err != nil {
		return err
	}
	o = boot.Standard(o)
	if o.Mode == fleetbus.Hub {
		return command.Fail(command.ExitUsage, "fleetbus init, with the same settings of the hub", "joining: a node on a hub is a fleet of its own, and joins none")
	}
	there, err := fleetbus.Initialized(o.Dir)
	if err != nil {
		return boot.Failure("joining", err)
	}
	if there {
		if err := forget(filepath.Join(o.Dir, sealName)); err != nil {
			return err
		}
		return f.App.Show(command.Report{Value: joined{DataDir: o.Dir}, Text: func(p *command.Page) {
			p.Line("already a member, nothing to do: %s holds a node", o.Dir)
		}})
	}
	// A member needs none, and one that starts again may have none left.
	token, err := f.readToken()
	if err != nil {
		return err
	}
	record := fleetbus.NodeRecord(o)
	// If an exchange was cut off, the node of that name may be this one.
	_, err = os.Stat(filepath.Join(o.Dir, sealName))
	join := enroll.Join{
		Host: host, Token: token, Name: record.Name, Advertise: record.Advertise, Clients: listenAddr(o), Cluster: clusterAddr(o),
		Replace: f.replace || err == nil, Version: fleetbus.Version(),
	}
	checks, err := f.preflight(cmd.Context(), join)
	if err != nil {
		return err
	}
	reply, authority, err := f.exchange(cmd.Context(), join, o, record)
	if err != nil {
		return err
	}
	if err := f.Settle(c, o.Dir, func() error { return fleetbus.Enroll(o, reply, authority) }); err != nil {
		return boot.Failure("joining", err)
	}
	if err := forget(filepath.Join(o.Dir, sealName)); err != nil {
		return err
	}
	result := joined{Changed: true, Fleet: reply.Fleet, Name: reply.Node.Name, DataDir: o.Dir, Checks: checks, Warning: reply.Warning}
	return f.App.Show(command.Report{Value: result, Text: func(p *command.Page) {
		p.Line("node %s is a member of fleet %s, in %s", result.Name, result.Fleet, o.Dir)
		if result.Warning != "" {
			p.Line("warning: %s", result.Warning)
		}
		p.Line("start it:")
		p.Line("  %s", boot.ServeLine(f.App, o.Dir))
	}})
}

// preflight prints each check when it is done.
func (f *joinFlags) preflight(ctx context.Context, join enroll.Join) ([]enroll.Check, error) {
	join.Progress = func(c enroll.Check) { f.App.ShowCheck(c.Name, c.OK, c.Detail, c.Fix) }
	checks, err := join.Preflight(ctx)
	if err == nil {
		return checks, nil
	}
	failed := slices.DeleteFunc(slices.Clone(checks), func(c enroll.Check) bool { return c.OK })
	if len(failed) == 0 {
		return nil, fmt.Errorf("joining: %w", err)
	}
	return nil, command.Fail(preflightCode(failed[0], err), failed[0].Fix, "joining: %s failed, and nothing was changed: %v", human.Count(len(failed), "check"), err)
}

// preflightCode is the exit code of a preflight whose first failed check is c.
func preflightCode(c enroll.Check, err error) command.ExitCode {
	switch c.Name {
	case "token":
		if errors.Is(err, enroll.ErrRefused) || errors.Is(err, &admin.Error{Code: admin.Denied}) {
			return command.ExitDenied
		}
		return command.ExitUsage
	case "name":
		return command.ExitConflict
	case "clients address", "cluster address":
		if errors.Is(err, syscall.EADDRINUSE) {
			return command.ExitConflict
		}
		return command.ExitUnavailable
	case "host", "port", "authority", "nodes", "routes":
		return command.ExitUnavailable
	}
	return command.ExitFailed
}

// sealName is the file with the key that the authority is sealed to. It stays
// until the node is made, so that an exchange that was cut off can be repeated.
const sealName = "join.nk"

func (f *joinFlags) exchange(ctx context.Context, join enroll.Join, o fleetbus.Options, record identity.Node) (reply enroll.NodeReply, authority *identity.Authority, err error) {
	client, err := dialFleet(ctx, join)
	if err != nil {
		return reply, nil, err
	}
	defer client.Close()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return reply, nil, boot.Failure("joining", fmt.Errorf("making the data directory: %w", err))
	}
	key, err := keptKey(filepath.Join(o.Dir, sealName), nkeys.FromCurveSeed, nkeys.CreateCurveKeys)
	if err != nil {
		return reply, nil, boot.Failure("joining", err)
	}
	defer key.Wipe()
	public, err := key.PublicKey()
	if err != nil {
		return reply, nil, fmt.Errorf("reading the joiner's key: %w", err)
	}
	reply, err = client.Node(ctx, enroll.NodeRequest{
		Name: record.Name, Replace: f.replace, Version: fleetbus.Version(), Advertise: record.Advertise,
		Clients: record.ClientAddr, Cluster: record.ClusterAddr, Seal: public,
	})
	if err != nil {
		return reply, nil, refused(err, filepath.Join(o.Dir, sealName))
	}
	authority, err = identity.OpenAuthority(reply.Authority, reply.Sender, key)
	return reply, authority, err
}

// dialFleet connects to exchange a token.
func dialFleet(ctx context.Context, join enroll.Join) (*enroll.Client, error) {
	client, err := enroll.Dial(ctx, join)
	var known *enroll.Error
	switch {
	case err == nil:
		return client, nil
	case errors.Is(err, enroll.ErrRefused) && errors.As(err, &known):
		return nil, command.Fail(command.ExitDenied, known.Fix, "joining: %v", err)
	case errors.As(err, &known) && known.Fix != "":
		return nil, command.Fail(command.ExitUnavailable, known.Fix, "joining: %v", err)
	}
	return nil, fmt.Errorf("joining: %w", err)
}

// refused is the error of an exchange. The key in path served for nothing if the
// fleet said no; without an answer it may have been granted what was asked.
func refused(err error, path string) error {
	var no *admin.Error
	if errors.As(err, &no) && no.Code != admin.Unavailable && no.Code != admin.Failed {
		return errors.Join(fmt.Errorf("joining: %w", err), forget(path))
	}
	return fmt.Errorf("joining: %w", err)
}

// forget removes the key of an exchange, if it is there.
func forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the joiner's key: %w", err)
	}
	return nil
}

// keptKey reads the key of an exchange that was cut off, or makes and keeps one.
func keptKey(path string, parse func([]byte) (nkeys.KeyPair, error), create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, error) {
	seed, err := os.ReadFile(path)
	if err == nil {
		key, err := parse(seed)
		if err != nil {
			return nil, command.Fail(command.ExitFailed, "remove that file, and ask for a new token", "reading the joiner's key %q: %v", path, err)
		}
		return key, nil
	}
	key, err := create()
	if err != nil {
		return nil, fmt.Errorf("making the joiner's key: %w", err)
	}
	if seed, err = key.Seed(); err != nil {
		return nil, fmt.Errorf("making the joiner's key: %w", err)
	}
	if err := (command.SecretFile{Path: path, Data: seed, Mode: 0o600}).Write(true); err != nil {
		return nil, fmt.Errorf("keeping the joiner's key: %w", err)
	}
	return key, nil
}

func listenAddr(o fleetbus.Options) string {
	for _, l := range o.Listeners {
		if l.Protocol == fleetbus.NATS() {
			return l.Addr
		}
	}
	return ""
}

func clusterAddr(o fleetbus.Options) string { return cmp.Or(o.Cluster.Addr, ":6222") }

// joinUser exchanges the token for a creds file.
func (f *joinFlags) joinUser(cmd *cobra.Command, host, token string) error {
	if f.out == "" {
		return command.Fail(command.ExitUsage, "--out FILE", "joining as %s: no file for the credentials is named", f.as)
	}
	ca := strings.TrimSuffix(f.out, ".creds") + "-ca.pem"
	reply, err := f.exchangeUser(cmd.Context(), host, token, f.out, func(reply enroll.UserReply) error {
		return command.SecretFile{Path: ca, Data: []byte(reply.CA), Mode: 0o644}.Write(true)
	})
	if err != nil {
		return err
	}
	return f.App.Show(command.Report{Value: joined{Changed: true, Name: reply.Name, Creds: f.out}, Text: func(p *command.Page) {
		p.Line("%s may connect to %s until %s", reply.Name, strings.Join(reply.Servers, ", "), human.Time(reply.Expires))
		command.Fields(p, []command.Field{{"credentials", f.out}, {"authority's certificate", ca}})
	}})
}

// exchangeUser exchanges the token for credentials, and writes them to a file. before
// writes what belongs to them: once they are there, the join is done.
func (f *joinFlags) exchangeUser(ctx context.Context, host, token, out string, before func(enroll.UserReply) error) (reply enroll.UserReply, err error) {
	if _, err := os.Stat(out); err == nil {
		return reply, command.Fail(command.ExitConflict, "choose another place for it", "joining as %s: %q exists", f.as, out)
	}
	client, err := dialFleet(ctx, enroll.Join{Host: host, Token: token})
	if err != nil {
		return reply, err
	}
	defer client.Close()
	kept := out + ".nk"
	key, err := keptKey(kept, nkeys.FromSeed, nkeys.CreateUser)
	if err != nil {
		return reply, command.Fail(command.ExitFailed, "choose another place for it", "joining: %v", err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return reply, fmt.Errorf("making a key: %w", err)
	}
	if reply, err = client.User(ctx, enroll.UserRequest{Name: f.user, Key: public}); err != nil {
		return reply, refused(err, kept)
	}
	seed, err := key.Seed()
	if err != nil {
		return reply, fmt.Errorf("making a key: %w", err)
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		return reply, err
	}
	if err := before(reply); err != nil {
		return reply, fmt.Errorf("joining: %w", err)
	}
	if err := (command.SecretFile{Path: out, Data: creds, Mode: 0o600}).Write(true); err != nil {
		return reply, fmt.Errorf("joining: %w", err)
	}
	return reply, forget(kept)
}
