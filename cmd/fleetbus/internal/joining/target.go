package joining

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/internal/document"
	"github.com/fleetbus/fleetbus/internal/target"
)

// targetFlags are about the program on this machine that serves certificates.
type targetFlags struct {
	dir, deflt string
	said       proxy.Options
	addrs      []string
}

func (f *targetFlags) add(cmd *cobra.Command) {
	flags, o := cmd.Flags(), &f.said
	flags.StringVar(&f.dir, "target-dir", "", "`directory` of a target: its key, its credentials and what it needs to start without the bus (default /var/lib/fleetbus-target)")
	flags.StringVar(&o.Kind, "proxy", "", "what serves on this machine: "+strings.Join(proxy.Kinds(), ", ")+", or none (default: what is found)")
	flags.StringVar(&o.Dir, "proxy-dir", "", "`directory` where the proxy finds certificates (default: proxy in the target's directory)")
	flags.StringVar(&o.Group, "proxy-group", "", "group that may read them (default: what is found)")
	flags.StringVar(&o.Config, "proxy-config", "", "the proxy's configuration `file`, if it is not where it is by default or several proxies run")
	flags.StringVar(&o.Reload.Unit, "reload-unit", "", "systemd unit that is reloaded, such as nginx.service (default: what is found)")
	flags.StringVar(&o.Reload.PIDFile, "reload-pid-file", "", "`file` with the process that is sent a signal to reload")
	flags.StringSliceVar(&o.Reload.Command, "reload-command", nil, "command that reloads, its words with commas between")
	flags.StringVar(&o.Socket, "haproxy-socket", "", "HAProxy's socket of level admin (default: what is found)")
	flags.StringVar(&o.Listen, "caddy-listen", "", "loopback address where Caddy asks for certificates")
	flags.StringSliceVar(&f.addrs, "probe", nil, "host:port where the proxy is seen serving (default: what is found, else 127.0.0.1:443)")
	flags.StringVar(&f.deflt, "default-name", "", "name whose certificate is for clients that ask for none of those there are")
	flags.StringVar(&o.Layout.Chain, "file-chain", "", "for proxy files: name of the file with the chain, such as {id}.crt")
	flags.StringVar(&o.Layout.Key, "file-key", "", "for proxy files: name of the file with the key, such as {id}.key")
	flags.StringVar(&o.Layout.PEM, "file-pem", "", "for proxy files: name of the file with both (default {id}.pem)")
}

// chosen is the program that serves, by the flags and by what is found; it has no kind
// if there is none.
func (f *targetFlags) chosen(ctx context.Context, dir string) (p proxy.Found, err error) {
	p = proxy.Found{Options: f.said}
	if f.said.Kind == "none" {
		return proxy.Found{}, nil
	}
	if f.said.Kind != "files" {
		own, strangers := target.Choose(f.said, proxy.Detect(ctx))
		switch {
		case len(own) > 1:
			return p, command.Fail(command.ExitUsage, "--proxy KIND and --proxy-config FILE choose one; each is a target of its own", "choosing what serves: several run here: %s", described(own))
		case len(own) == 0 && len(strangers) > 0:
			return p, command.Fail(command.ExitUsage, "--proxy KIND --proxy-config FILE if they may have the keys, else --proxy none", "choosing what serves: what runs here is another user's: %s", described(strangers))
		case len(own) == 1:
			p = own[0]
			f.override(&p.Options)
		}
	}
	if len(f.addrs) > 0 {
		p.Addrs = f.addrs
	}
	p.Dir = cmp.Or(f.said.Dir, filepath.Join(dir, "proxy"))
	if o := f.said; p.Kind == "" && (o.Config != "" || o.Dir != "" || o.Group != "" || o.Socket != "" || o.Listen != "") {
		return p, command.Fail(command.ExitUsage, "--proxy KIND", "choosing what serves: none runs here that this is about, and its kind is not said")
	}
	if p.Kind == "" {
		return p, nil // nothing runs here: the target serves by itself
	}
	if _, err := proxy.Advise(p.Options); err != nil { // before the token is spent
		return p, command.Fail(command.ExitUsage, "fleetbus join --help", "choosing what serves: %v", err)
	}
	return p, nil
}

// override has what the flags say come before what was found.
func (f *targetFlags) override(o *proxy.Options) {
	for into, value := range map[*string]string{&o.Group: f.said.Group, &o.Config: f.said.Config, &o.Socket: f.said.Socket, &o.Listen: f.said.Listen} {
		*into = cmp.Or(value, *into)
	}
	if r := f.said.Reload; r.Unit != "" || r.PIDFile != "" || len(r.Command) > 0 {
		o.Reload = r
	}
	o.Layout = f.said.Layout
}

func described(all []proxy.Found) string {
	texts := make([]string, len(all))
	for i, p := range all {
		texts[i] = target.Describe(p)
	}
	return strings.Join(texts, "; ")
}

// targetDir is the directory of a target, absolute: that which is named, or the default.
func targetDir(a *command.App, named string) (string, error) {
	if named == "" {
		data, err := a.DataDir()
		if err != nil {
			return "", err
		}
		named = data + "-target"
	}
	return filepath.Abs(named)
}

// joinTarget exchanges the token for what makes this machine a target.
func (f *joinFlags) joinTarget(cmd *cobra.Command, host, token string) error {
	const what = "joining as target"
	dir, err := targetDir(f.App, f.target.dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if target.Exists(dir) {
		return command.Fail(command.ExitConflict, "fleetbus target run "+dir, "%s: there is a target in %q", what, dir)
	}
	serves, err := f.target.chosen(cmd.Context(), dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := target.Prepare(dir); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var t *target.Target
	reply, err := f.exchangeUser(cmd.Context(), host, token, target.CredsPath(dir), func(reply enroll.UserReply) (err error) {
		s := target.Settings{Name: reply.Name, Servers: reply.Servers, Signer: reply.Signer, Default: f.target.deflt}
		if serves.Kind != "" {
			s.Proxy, s.Addrs = &serves.Options, serves.Addrs
		}
		t, err = target.Write(dir, s, reply.CA)
		return err
	})
	if err != nil {
		return err
	}
	result := joined{Changed: true, Name: reply.Name, DataDir: dir, Creds: t.Creds()}
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	if err := enrollTarget(ctx, f.App, t); err != nil {
		// It is a target all the same, and asks again when it runs.
		result.Warning = err.Error()
	}
	return f.App.Show(command.Report{Value: result, Text: func(p *command.Page) {
		p.Line("this machine is target %s, in %s", reply.Name, dir)
		if result.Warning != "" {
			p.Line("it is in no group yet: %s", result.Warning)
		}
		if serves.PID != 0 {
			p.Line("found %s", target.Describe(serves))
		}
		describeTarget(p, t)
		p.Line("run it, and let it run:")
		p.Line("  fleetbus target run%s", unlessDefault(f.App, dir))
	}})
}

func enrollTarget(ctx context.Context, a *command.App, t *target.Target) error {
	nc, err := dialTarget(ctx, a, t)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := t.Enroll(ctx, nc); err != nil {
		return command.Violation(nc, err)
	}
	return nil
}

// unlessDefault is an argument for a target's directory, where one is needed.
func unlessDefault(a *command.App, dir string) string {
	if usual, err := targetDir(a, ""); err == nil && usual == dir {
		return ""
	}
	return " " + dir
}

// dialTarget connects as the target.
func dialTarget(ctx context.Context, a *command.App, t *target.Target, opts ...nats.Option) (*nats.Conn, error) {
	to := command.Endpoint{Creds: t.Creds(), CA: t.CA()}
	for _, s := range t.Servers {
		url, err := command.ServerURL(s)
		if err != nil {
			return nil, err
		}
		to.Servers = append(to.Servers, url)
	}
	return a.Connect(ctx, to, opts...)
}

func openTarget(a *command.App, args []string) (*target.Target, error) {
	dir, err := targetDir(a, strings.Join(args, ""))
	if err != nil {
		return nil, err
	}
	t, err := target.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.Fail(command.ExitConfig, "fleetbus join HOST --token … --as target --target-dir "+dir, "opening a target: there is none in %q", dir)
	}
	return t, err
}

// describeTarget says what the target does to the program that serves.
func describeTarget(p *command.Page, t *target.Target) {
	if t.Proxy == nil {
		p.Line("it serves by no proxy: target run --serve :443 answers by itself")
		return
	}
	of := t.Proxy.Kind
	p.Line("it puts certificates into %s, by way of %s", of, t.Proxy.Dir)
	if of == "files" {
		of = "what reads them"
	}
	p.Line("once the first certificate is there, put this into the configuration of %s, and reload it:", of)
	for line := range strings.SplitSeq(strings.TrimRight(t.Advice, "\n"), "\n") {
		p.Line("  %s", line)
	}
}

func newTargetCommand(a *command.App) *cobra.Command {
	return command.Noun("target", "This machine as a target, which serves certificates of its groups", newTargetRun(a), newTargetShow(a))
}

func newTargetShow(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "show [DIR]", Args: command.Takes("[DIR]"), Annotations: command.Reads(),
		Short: "Say what a target does to the proxy of this machine",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := openTarget(a, args)
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: t.Settings, Text: func(p *command.Page) {
				p.Line("target %s, in %s", t.Name, t.Dir)
				describeTarget(p, t)
			}})
		},
	})
}

func newTargetRun(a *command.App) *cobra.Command {
	var serve, challenges string
	cmd := &cobra.Command{
		Use: "run [DIR]", Args: command.Takes("[DIR]"), Annotations: command.Prints(),
		Short: "Serve the certificates that are delivered to the target of this machine",
		Long: `Serve the certificates that are delivered to the target of this machine, until it is
interrupted: put them into the proxy, see it serving them, and say so on the bus. It
starts from its directory alone when the bus is away.`,
		Example: `  fleetbus target run
  fleetbus target run /srv/target --serve :8443`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := openTarget(a, args)
			if err != nil {
				return err
			}
			defer t.Close()
			return runTarget(cmd.Context(), a, t, serve, challenges)
		},
	}
	cmd.Flags().StringVar(&serve, "serve", "", "answer HTTPS on this `address` with a page that says which certificate it is")
	cmd.Flags().StringVar(&challenges, "challenges", "", "answer http-01 challenges on this `address`, such as :80, or 127.0.0.1:8402 behind a proxy")
	return cmd
}

// runTarget serves until ctx ends.
func runTarget(ctx context.Context, a *command.App, t *target.Target, serve, challenges string) error {
	log := slog.New(slog.NewTextHandler(a.Stderr, nil))
	if err := t.AwaitGroup(ctx, log, func(ctx context.Context) (*nats.Conn, error) { return dialTarget(ctx, a, t) }); err != nil {
		return err
	}
	key, err := t.Key()
	if err != nil {
		return err
	}
	o, err := t.Options(key, log)
	if err != nil {
		return err
	}
	store, err := cert.Open(o)
	if err != nil {
		return err
	}
	var closers []func() error
	defer func() {
		for _, c := range closers {
			_ = c() // the process ends
		}
	}()
	failed := make(chan error, 2)
	listen := func(addr string, handler http.Handler, config *tls.Config) error {
		if addr == "" {
			return nil
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listening on %q: %w", addr, err)
		}
		a.Hint("listening on %s", ln.Addr())
		if config != nil {
			ln = tls.NewListener(ln, config)
		}
		srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
		closers = append(closers, srv.Close)
		go func() {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		}()
		return nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: store.GetCertificate, NextProtos: []string{"h2", "http/1.1", cert.ALPNProto}}
	if err := errors.Join(listen(challenges, store.ChallengeHandler(), nil), listen(serve, http.HandlerFunc(showCertificate), config)); err != nil {
		return err
	}
	nc, err := dialTarget(ctx, a, t, append(a.Staying("certificates are followed again"), nats.RetryOnFailedConnect(true))...)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-failed:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	go t.KeepCreds(ctx, nc, log)
	a.Hint("target %s of %s is serving", t.Name, strings.Join(key.Groups, ", "))
	if err := store.Run(ctx, nc); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// showCertificate is a page that says by which certificate it came.
func showCertificate(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s is served by fleetbus\n", document.Escape(r.TLS.ServerName))
}
