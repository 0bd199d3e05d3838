package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/backup"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/internal/human"
)

// backedUp is what the commands print for programs.
type backedUp struct {
	File string `json:"file"`
	backup.Manifest
	backup.End
	DataDir string   `json:"data_dir,omitempty"`
	Removed []string `json:"removed,omitempty"`
}

func showBackup(a *command.App, b backedUp, done string, next ...string) error {
	return a.Show(command.Report{Value: b, Text: func(p *command.Page) {
		p.Line("fleet %s of %s %s: %s, %s, %s in streams", b.Fleet, human.Time(b.Began), done,
			human.Count(len(b.Accounts), "account"), human.Count(b.Streams, "stream"), human.Size(b.Bytes))
		for _, line := range next {
			p.Line("%s", line)
		}
	}})
}

func tellStream(a *command.App, s backup.Stream) {
	a.Hint("  %s/%s: %s, %s", s.Account, s.Name, human.Count(int(s.Messages), "message"), human.Size(int64(s.Bytes)))
}

func addLock(cmd *cobra.Command, l *backup.Lock, reads bool) {
	cmd.Flags().StringVar(&l.PassphraseFile, "passphrase-file", "", "`file` whose first line is the passphrase that the backup is encrypted with")
	if reads {
		cmd.Flags().StringVar(&l.IdentityFile, "identity", "", "`file` with the private age key that the backup is encrypted to")
	} else {
		cmd.Flags().StringSliceVar(&l.Recipients, "recipient", nil, "public age `key` that the backup is encrypted to, or several")
	}
}

// locked says which flags are missing.
func locked(what string, err error, flags string) error {
	var known *command.Failure
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, backup.ErrLock):
		return command.Fail(command.ExitUsage, flags, "%s: %v", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func newBackupCommand(a *command.App) *cobra.Command {
	var l backup.Lock
	var r admin.BackupRequest
	var yes bool
	cmd := &cobra.Command{
		Use: "backup FILE", Args: command.Takes("FILE"), Annotations: command.Writes(),
		Short: "Write the state of the whole fleet to an encrypted file",
		Long: `Write the state of the whole fleet to an encrypted file: the ledger's state, the
secrets that sign for it, and the streams of all accounts with their consumers. Every
message that was acknowledged before it began is in it. Who can open it is the fleet.`,
		Example: `  fleetbus backup fleet.backup --recipient age1…
  fleetbus backup fleet.backup --passphrase-file passphrase --no-streams
  fleetbus backup verify fleet.backup --passphrase-file passphrase`,
		RunE: func(cmd *cobra.Command, args []string) error {
			const what = "making a backup"
			var b backedUp
			err := writeFileBy(args[0], yes, func(w io.Writer) error {
				t, err := a.Target(true)
				if err != nil {
					return err
				}
				nc, err := a.Connect(cmd.Context(), t)
				if err != nil {
					return err
				}
				defer nc.Close()
				b.Manifest, b.End, err = backup.Save(cmd.Context(), admin.New(nc), r, w, l, func(s backup.Stream) { tellStream(a, s) })
				if err != nil {
					return command.Violation(nc, err)
				}
				return nil
			})
			if err != nil {
				return locked(what, err, "--passphrase-file FILE, or --recipient KEY")
			}
			b.File = args[0]
			return showBackup(a, b, "is in "+b.File)
		},
	}
	addLock(cmd, &l, false)
	cmd.Flags().StringSliceVar(&r.Accounts, "account", nil, "only the streams of an `account`, or of several (default: of all)")
	cmd.Flags().BoolVar(&r.NoStreams, "no-streams", false, "leave out the streams of all accounts")
	cmd.Flags().BoolVar(&yes, "yes", false, "write over a file that exists")
	cmd.AddCommand(newBackupVerify(a))
	return a.OnFleet(a.Output(cmd))
}

func newBackupVerify(a *command.App) *cobra.Command {
	var l backup.Lock
	cmd := &cobra.Command{
		Use: "verify FILE", Args: command.Takes("FILE"), Annotations: command.Reads(),
		Short: "Read a backup to its end, without a fleet",
		RunE: func(_ *cobra.Command, args []string) error {
			b := backedUp{File: args[0]}
			err := readFile(args[0], func(r io.Reader) (err error) {
				b.Manifest, b.End, err = backup.Verify(r, l, func(s backup.Stream) { tellStream(a, s) })
				return err
			})
			if err != nil {
				return locked("verifying "+args[0], err, "--passphrase-file FILE, or --identity FILE")
			}
			return showBackup(a, b, "can be restored")
		},
	}
	addLock(cmd, &l, true)
	return a.Output(cmd)
}

func newRestoreCommand(a *command.App) *cobra.Command {
	var l backup.Lock
	b := &boot.Flags{App: a}
	cmd := &cobra.Command{
		Use: "restore FILE", Args: command.Takes("FILE"), Annotations: command.Writes(),
		Short: "Make a node on this machine the first of the fleet that is in a backup",
		Long: `Make a node on this machine, which has none, the first of the fleet that is in a
backup. The nodes of before are none any more; others join as they join any fleet. Creds
files and certificates of users stay good, and streams get their copies back when there
are nodes enough. Take care that no node of before runs.`,
		Example: `  fleetbus restore fleet.backup --identity key.txt --advertise eu-1.example.net`,
		RunE: func(cmd *cobra.Command, args []string) error {
			const what = "restoring"
			c, o, err := b.Load(cmd)
			if err != nil {
				return err
			}
			o = boot.Standard(o)
			if o.Mode == fleetbus.Client {
				return command.Fail(command.ExitUsage, "--mode mesh", "%s: a client has no streams", what)
			}
			identities, err := l.Identities()
			if err != nil {
				return locked(what, err, "--passphrase-file FILE, or --identity FILE")
			}
			there, err := fleetbus.Initialized(o.Dir)
			if err != nil {
				return boot.Failure(what, err)
			}
			var made *backup.Restored
			if there {
				made, err = goOn(o.Dir, args[0], l)
			} else {
				err = b.Settle(c, o.Dir, func() error {
					return readFile(args[0], func(r io.Reader) (err error) {
						made, err = backup.Stage(o.Dir, r, fleetbus.NodeRecord(o), identities...)
						return err
					})
				})
			}
			switch {
			case errors.Is(err, home.ErrInitialized):
				return command.Fail(command.ExitConflict, boot.ServeLine(a, o.Dir)+", if it is the node that you want; else choose another with --data-dir", "%s: %v", what, err)
			case errors.Is(err, backup.ErrNotEmpty):
				return command.Fail(command.ExitConflict, "choose another with --data-dir, or remove it", "%s: %v", what, err)
			case err != nil:
				return boot.Failure(what, err)
			}
			// What was made here by root is for the node's own user to go on with.
			if err := errors.Join(unpack(a, cmd.Context(), o), home.Give(o.Dir)); errors.Is(err, fleetbus.ErrInUse) {
				return boot.Failure(what, err)
			} else if err != nil {
				fix := "run it again, or " + boot.ServeLine(a, o.Dir) + ", which goes on with it"
				var problem *fleetbus.OptionError
				switch {
				case errors.As(err, &problem) && problem.Hint != "":
					fix = problem.Hint + "; then " + fix
				case errors.Is(err, syscall.ENOSPC):
					fix = "free space there; then " + fix
				}
				return command.Fail(command.ExitFailed, fix, "%s: the streams are not all there yet: %v", what, err)
			}
			next := []string{"start the node:", "  " + boot.ServeLine(a, o.Dir), "and have others join: fleetbus token add node"}
			if len(made.Removed) > 0 {
				next = append([]string{"nodes that are none any more: " + strings.Join(made.Removed, ", ")}, next...)
			}
			return showBackup(a, backedUp{File: args[0], Manifest: made.Manifest, End: made.End, DataDir: o.Dir, Removed: made.Removed}, "is restored in "+o.Dir, next...)
		},
	}
	b.Add(cmd)
	addLock(cmd, &l, true)
	return a.Output(cmd)
}

// goOn is what a restore of file had made in dir, which holds a node, when it was cut off:
// streams wait there for the node to start.
func goOn(dir, file string, l backup.Lock) (*backup.Restored, error) {
	m, ok := backup.Waiting(dir)
	if !ok {
		return nil, fmt.Errorf("%w: %q", home.ErrInitialized, dir)
	}
	made := &backup.Restored{}
	err := readFile(file, func(r io.Reader) (err error) {
		made.Manifest, made.End, err = backup.Verify(r, l, func(backup.Stream) {})
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case m.Hash != made.Hash || !m.Began.Equal(made.Began) || m.Sequence != made.Sequence:
		return nil, fmt.Errorf("%w, and streams of another backup, of %s, wait in it: %q", home.ErrInitialized, human.Time(m.Began), dir)
	}
	return made, nil
}

// unpack runs the node until its streams are there. Nobody can reach it.
func unpack(a *command.App, ctx context.Context, o fleetbus.Options) error {
	if o.Mode == "" {
		o.Mode = fleetbus.Mesh // as it is with its listeners
	}
	o.Listeners, o.Services, o.Cluster.Addr = nil, nil, "127.0.0.1:0"
	srv, err := fleetbus.New(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	select {
	case <-srv.Ready():
	case err := <-ended:
		return errors.Join(err, ctx.Err())
	}
	cancel()
	return <-ended
}
