package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/certificates"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/health"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/nodes"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/internal/config"
	"github.com/fleetbus/fleetbus/internal/reclaim"
	"github.com/fleetbus/fleetbus/internal/systemd"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/probe"
)

func newServeCommand(a *command.App) *cobra.Command {
	b := &boot.Flags{App: a}
	cmd := &cobra.Command{
		Use: "serve", Args: command.Takes(), Annotations: command.Prints(),
		Short: "Run the node of this machine",
		Long: `Run the node that "fleetbus init" or "fleetbus join" made on this machine,
until it is interrupted; a second interrupt stops it at once.

SIGHUP reads the configuration again; a bad one changes nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, o, err := b.Load(cmd)
			if err != nil {
				return err
			}
			return serve(b, cmd, c, boot.Standard(o))
		},
	}
	b.Add(cmd)
	return cmd
}

func serve(b *boot.Flags, cmd *cobra.Command, c *config.Config, o fleetbus.Options) error {
	if o.Mode != fleetbus.Client && o.Mode != fleetbus.Local {
		there, err := fleetbus.Initialized(o.Dir)
		if err != nil {
			return err
		}
		if !there {
			return command.Fail(command.ExitConfig, "fleetbus init, or fleetbus join HOST --token …", "starting the node: there is none in %q", o.Dir)
		}
	}
	var level slog.LevelVar
	o.Logger = b.Logger(c.Log(), &level)
	if c.ManagesCertificates() {
		o.CertManager = certificates.OpenManager
	}
	for _, l := range o.Listeners {
		switch p := l.Protocol.(type) {
		case *mqtt.Protocol:
			p.Logger = o.Logger
		case *amqp.Protocol:
			p.Logger = o.Logger
		}
	}
	for _, s := range o.Services {
		switch l := s.Service.(type) {
		case *hub.Link:
			l.Logger = o.Logger
		case interface{ Tell(*slog.Logger) }:
			l.Tell(o.Logger)
		}
	}
	probe.Loaded(o, nil)
	const what = "starting the node"
	manager, err := systemd.Dial(b.App.Getenv)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer manager.Close()
	srv, err := fleetbus.New(o)
	if err != nil {
		return boot.Failure(what, err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	told, err := tellTraces(ctx, o, b.App.Getenv, o.Logger)
	defer told()
	defer cancel()
	if err != nil {
		return command.Fail(command.ExitConfig, "mend the variable", "%s: %v", what, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	go reclaim.Keep(ctx)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	ready, stopping, began := srv.Ready(), ctx.Done(), c
	for {
		var untold error
		select {
		case err := <-ended:
			return boot.Failure(what, err)
		case <-ready:
			ready = nil
			welcome(b, srv, o)
			remember(b, o, nil)
			untold = manager.Ready("serving")
		case <-hangup:
			untold = manager.Reloading()
			c = reload(b, cmd, began, c, srv, o, &level)
			if ready == nil { // or else the start is not over
				untold = errors.Join(untold, manager.Ready("serving"))
			}
		case <-manager.Beats():
			untold = manager.Alive()
		case <-stopping:
			stopping = nil
			untold = manager.Stopping()
		}
		if untold != nil {
			o.Logger.Warn("the service manager knows nothing of this node", "error", untold)
		}
	}
}

// remember has the doctor know which configuration is in force, and what waits for a
// restart.
func remember(b *boot.Flags, o fleetbus.Options, restart []string) {
	if err := health.Remember(o.Dir, b.Path(o.Dir), restart); err != nil {
		o.Logger.Warn("the doctor does not know which configuration was read", "error", err)
	}
}

// welcome says what is open, what is closed, and how to open it.
func welcome(b *boot.Flags, srv *fleetbus.Server, o fleetbus.Options) {
	name, err := nodes.Local(o.Dir)
	if err != nil {
		name = o.Name
	}
	b.App.Hint("node %s is ready, in %s", name, o.Dir)
	for _, l := range o.Listeners {
		how := "TLS 1.3; clients with a creds file, a certificate or a password; nobody else"
		switch {
		case l.Protocol == fleetbus.Leaf():
			how = "TLS 1.3; sites, by their credentials; nobody else"
		case l.Protocol == fleetbus.Gateway():
			how = "TLS 1.3; other regions of the fleet, by gateway certificate"
		case l.Account != "":
			how = "machines that nobody knows, in account " + l.Account + ", which may ask for an identity there and nothing else"
			if l.Role != "" {
				how = "EVERYBODY, without credentials, in account " + l.Account + " as " + l.Role
			}
			if l.Plaintext {
				how = "WITHOUT TLS; " + how
			}
		case l.Plaintext:
			how = "WITHOUT TLS, on loopback only"
		case isConsole(l):
			how = "TLS 1.3; browsers; to log in: fleetbus console login"
			// A log would keep the secret of a link.
			if b.App.Terminal(b.App.Stderr) {
				if link, err := srv.LoginLink(administrator); err == nil {
					how = "TLS 1.3; browsers; to log in, once, within ten minutes: " + link.URL
				}
			}
		case l.ClientCertificate == fleetbus.CertificateRequired:
			how = "TLS 1.3; clients with a certificate; nobody else"
		}
		b.App.Hint("  open    %-8s %s: %s", l.Name, srv.Addr(l.Name), how)
	}
	if addr := srv.Addr("cluster"); addr != nil {
		b.App.Hint("  open    %-8s %s: other nodes of the fleet, by mesh certificate", "cluster", addr)
	}
	if addr := srv.Addr("monitor"); addr != nil {
		b.App.Hint("  open    %-8s %s: the engine's monitoring, without authentication, on loopback", "monitor", addr)
	} else {
		b.App.Hint("  closed  %-8s to open it: --monitor 127.0.0.1:8222", "monitor")
	}
	if !slices.ContainsFunc(o.Listeners, isConsole) {
		b.App.Hint("  closed  %-8s to open it: --listeners-console-addr :8444", "console")
	}
	if len(o.Listeners) == 0 {
		b.App.Hint("  closed  %-8s to open it: --listeners-nats-addr :4222", "nats")
	}
}

// live are the keys that a reload changes; all others need a restart.
func live() []string { return []string{"log.level"} }

// reload reads the configuration again and returns the one that is in force but for what
// needs a restart: of that, what the server began with is.
func reload(b *boot.Flags, cmd *cobra.Command, began, old *config.Config, srv *fleetbus.Server, o fleetbus.Options, level *slog.LevelVar) *config.Config {
	log := o.Logger
	c, _, err := b.Load(cmd)
	probe.Loaded(o, err)
	if err != nil {
		log.Error("configuration was not reloaded: the last good one stays", "error", err)
		return old
	}
	values := func(c *config.Config) map[string]string {
		all := map[string]string{}
		for _, s := range c.Show() {
			all[s.Key] = s.Value
		}
		return all
	}
	before, atStart := values(old), values(began)
	var applied, restart []string
	for _, s := range c.Show() {
		switch live := slices.Contains(live(), s.Key); {
		case live && before[s.Key] != s.Value:
			applied = append(applied, s.Key)
		case !live && atStart[s.Key] != s.Value:
			restart = append(restart, s.Key)
		}
	}
	level.Set(c.Log().Level)
	remember(b, o, restart)
	if err := srv.Renew(); err != nil {
		log.Error("certificates were not renewed", "error", err)
	}
	log.Info("configuration reloaded", "applied", strings.Join(applied, ","), "needs_restart", strings.Join(restart, ","))
	return c
}

func newInitCommand(a *command.App) *cobra.Command {
	b := &boot.Flags{App: a}
	once := false
	cmd := &cobra.Command{
		Use: "init", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Make a fleet of one node on this machine",
		Example: `  fleetbus init
  fleetbus init --advertise eu-1.example.net`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, o, err := b.Load(cmd)
			if err != nil {
				return err
			}
			o = boot.Standard(o)
			const what = "making a fleet"
			if there, err := fleetbus.Initialized(o.Dir); err != nil {
				return boot.Failure(what, err)
			} else if there && once {
				a.Hint("there is a node in %s already, nothing to do", o.Dir)
				return nil
			} else if there {
				return command.Fail(command.ExitConflict, boot.ServeLine(a, o.Dir), "%s: %v: %q", what, fleetbus.ErrInitialized, o.Dir)
			}
			var founded *fleetbus.Founded
			err = b.Settle(c, o.Dir, func() (err error) {
				founded, err = fleetbus.Init(o)
				return err
			})
			if err != nil {
				return boot.Failure(what, err)
			}
			return showFounded(a, o, founded)
		},
	}
	b.Add(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "do nothing if there is a node already, for programs that begin like this each time")
	return a.Output(cmd)
}

// showFounded says what init made and what comes next.
func showFounded(a *command.App, o fleetbus.Options, f *fleetbus.Founded) error {
	value := struct {
		Fleet      string `json:"fleet"`
		Node       string `json:"node"`
		DataDir    string `json:"data_dir"`
		AdminCreds string `json:"admin_creds"`
		CA         string `json:"ca"`
		Offline    string `json:"offline"`
		Join       string `json:"join"`
	}{f.Fleet, f.Node, o.Dir, f.AdminCreds, f.CA, f.Offline, fmt.Sprintf("fleetbus join %s --token %s", f.Address, f.Token)}
	return a.Show(command.Report{Value: value, Text: func(p *command.Page) {
		p.Line("fleet %s is made, with node %s, in %s", f.Fleet, f.Node, o.Dir)
		command.Fields(p, []command.Field{
			{"admin credentials", f.AdminCreds},
			{"authority's certificate", f.CA},
			{"operator's offline keys", f.Offline + " (move this directory to safe storage)"},
		})
		p.Line("")
		p.Line("start the node:")
		p.Line("  %s", boot.ServeLine(a, o.Dir))
		if o.Mode == fleetbus.Hub {
			p.Line("make the other nodes like this one, each with a name of its own: they meet at the hub")
			return
		}
		p.Line("add a node, on its machine, within a day:")
		p.Line("  %s", value.Join)
	}})
}
