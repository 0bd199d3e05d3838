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
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/internal/config"
	"github.com/fleetbus/fleetbus/mqtt"
)

func newServeCommand(a *app) *cobra.Command {
	b := &boot{a: a}
	cmd := &cobra.Command{
		Use: "serve", Args: takes(), Annotations: prints(),
		Short: "Run the node of this machine",
		Long: `Run the node that "fleetbus init" or "fleetbus join" made on this machine,
until it is interrupted; a second interrupt stops it at once.

SIGHUP reads the configuration again; a bad one changes nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, o, err := b.load(cmd)
			if err != nil {
				return err
			}
			return b.serve(cmd, c, standard(o))
		},
	}
	b.add(cmd)
	return cmd
}

func (b *boot) serve(cmd *cobra.Command, c *config.Config, o fleetbus.Options) error {
	if o.Mode != fleetbus.Client && o.Mode != fleetbus.Local {
		there, err := fleetbus.Initialized(o.Dir)
		if err != nil {
			return err
		}
		if !there {
			return fail(exitConfig, "fleetbus init, or fleetbus join HOST --token …", "starting the node: there is none in %q", o.Dir)
		}
	}
	var level slog.LevelVar
	o.Logger = b.logger(c.Log(), &level)
	if c.ManagesCertificates() {
		o.CertManager = openCertManager
	}
	for _, l := range o.Listeners {
		if p, ok := l.Protocol.(*mqtt.Protocol); ok {
			p.Logger = o.Logger
		}
	}
	for _, s := range o.Services {
		if l, ok := s.Service.(*hub.Link); ok {
			l.Logger = o.Logger
		}
	}
	const what = "starting the node"
	srv, err := fleetbus.New(o)
	if err != nil {
		return options(what, err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	go reclaim(ctx)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	ready := srv.Ready()
	for {
		select {
		case err := <-ended:
			return options(what, err)
		case <-ready:
			ready = nil
			b.welcome(srv, o)
		case <-hangup:
			c = b.reload(cmd, c, srv, o.Logger, &level)
		}
	}
}

// options turns what fleetbus says of its options, and of the machine, into one
// failure; what says what was being done.
func options(what string, err error) error {
	if err == nil {
		return nil
	}
	code, fix := exitFailed, ""
	var problem *fleetbus.OptionError
	switch {
	case errors.As(err, &problem):
		code, fix = exitConfig, problem.Hint
	case errors.Is(err, fleetbus.ErrInUse):
		code, fix = exitConflict, "stop that process, or choose another directory with --data-dir"
	case errors.Is(err, syscall.EADDRINUSE):
		code, fix = exitConflict, "stop what listens there, or choose another port"
	case errors.Is(err, os.ErrPermission):
		code, fix = exitDenied, "run it as the owner of the data directory, or choose another with --data-dir"
	case errors.Is(err, syscall.ENOSPC):
		fix = "free space there, or choose another directory with --data-dir"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrNotExist):
		fix = "choose another directory with --data-dir"
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fail(code, fix, "%s: %v", what, err)
}

// welcome says what is open, what is closed, and how to open it.
func (b *boot) welcome(srv *fleetbus.Server, o fleetbus.Options) {
	name, err := localNode(o.Dir)
	if err != nil {
		name = o.Name
	}
	b.a.hint("node %s is ready, in %s", name, o.Dir)
	for _, l := range o.Listeners {
		how := "TLS 1.3; clients with a creds file, a certificate or a password; nobody else"
		switch {
		case l.Protocol == fleetbus.Leaf():
			how = "TLS 1.3; sites, by their credentials; nobody else"
		case l.Protocol == fleetbus.Gateway():
			how = "TLS 1.3; other regions of the fleet, by gateway certificate"
		case l.Account != "":
			how = "machines that nobody knows, in account " + l.Account + ", which may ask for an identity there and nothing else"
			if l.Plaintext {
				how = "WITHOUT TLS; " + how
			}
		case l.Plaintext:
			how = "WITHOUT TLS, on loopback only"
		case l.ClientCertificate == fleetbus.CertificateRequired:
			how = "TLS 1.3; clients with a certificate; nobody else"
		}
		b.a.hint("  open    %-8s %s: %s", l.Name, srv.Addr(l.Name), how)
	}
	if addr := srv.Addr("cluster"); addr != nil {
		b.a.hint("  open    %-8s %s: other nodes of the fleet, by mesh certificate", "cluster", addr)
	}
	if addr := srv.Addr("monitor"); addr != nil {
		b.a.hint("  open    %-8s %s: the engine's monitoring, without authentication, on loopback", "monitor", addr)
	} else {
		b.a.hint("  closed  %-8s to open it: --monitor 127.0.0.1:8222", "monitor")
	}
	if len(o.Listeners) == 0 {
		b.a.hint("  closed  %-8s to open it: --listeners-nats-addr :4222", "nats")
	}
}

// live are the keys that a reload changes; all others need a restart.
func live() []string { return []string{"log.level"} }

// reload reads the configuration again and returns the one that is in force.
func (b *boot) reload(cmd *cobra.Command, old *config.Config, srv *fleetbus.Server, log *slog.Logger, level *slog.LevelVar) *config.Config {
	c, _, err := b.load(cmd)
	if err != nil {
		log.Error("configuration was not reloaded: the last good one stays", "error", err)
		return old
	}
	before := map[string]string{}
	for _, s := range old.Show() {
		before[s.Key] = s.Value
	}
	var applied, restart []string
	for _, s := range c.Show() {
		switch {
		case before[s.Key] == s.Value:
		case slices.Contains(live(), s.Key):
			applied = append(applied, s.Key)
		default:
			restart = append(restart, s.Key)
		}
	}
	level.Set(c.Log().Level)
	if err := srv.Renew(); err != nil {
		log.Error("certificates were not renewed", "error", err)
	}
	log.Info("configuration reloaded", "applied", strings.Join(applied, ","), "needs_restart", strings.Join(restart, ","))
	return c
}

func newInitCommand(a *app) *cobra.Command {
	b := &boot{a: a}
	cmd := &cobra.Command{
		Use: "init", Args: takes(), Annotations: writes(),
		Short: "Make a fleet of one node on this machine",
		Example: `  fleetbus init
  fleetbus init --advertise eu-1.example.net`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, o, err := b.load(cmd)
			if err != nil {
				return err
			}
			o = standard(o)
			const what = "making a fleet"
			if there, err := fleetbus.Initialized(o.Dir); err != nil {
				return options(what, err)
			} else if there {
				return fail(exitConflict, a.serveLine(o.Dir), "%s: %v: %q", what, fleetbus.ErrInitialized, o.Dir)
			}
			var founded *fleetbus.Founded
			err = b.settle(c, o.Dir, func() (err error) {
				founded, err = fleetbus.Init(o)
				return err
			})
			if err != nil {
				return options(what, err)
			}
			return a.showFounded(o, founded)
		},
	}
	b.add(cmd)
	return a.output(cmd)
}

// showFounded says what init made and what comes next.
func (a *app) showFounded(o fleetbus.Options, f *fleetbus.Founded) error {
	value := struct {
		Fleet      string `json:"fleet"`
		Node       string `json:"node"`
		DataDir    string `json:"data_dir"`
		AdminCreds string `json:"admin_creds"`
		CA         string `json:"ca"`
		Offline    string `json:"offline"`
		Join       string `json:"join"`
	}{f.Fleet, f.Node, o.Dir, f.AdminCreds, f.CA, f.Offline, fmt.Sprintf("fleetbus join %s --token %s", f.Address, f.Token)}
	return a.show(report{value: value, text: func(p *page) {
		p.line("fleet %s is made, with node %s, in %s", f.Fleet, f.Node, o.Dir)
		fields(p, []field{
			{"admin credentials", f.AdminCreds},
			{"authority's certificate", f.CA},
			{"operator's offline keys", f.Offline + " (move this directory to safe storage)"},
		})
		p.line("")
		p.line("start the node:")
		p.line("  %s", a.serveLine(o.Dir))
		if o.Mode == fleetbus.Hub {
			p.line("make the other nodes like this one, each with a name of its own: they meet at the hub")
			return
		}
		p.line("add a node, on its machine, within a day:")
		p.line("  %s", value.Join)
	}})
}
