package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/identity"
)

// The files in a target's directory.
const (
	targetFile  = "target.json" // targetSettings
	targetCreds = "target.creds"
	targetCA    = "ca.pem"
	targetKey   = "target.key"
)

// targetSettings are what a target knows of itself, besides its secrets.
type targetSettings struct {
	Name    string   `json:"name"` // account/name
	Servers []string `json:"servers"`
	Signer  string   `json:"signer"`
	// Proxy is the program that serves; nil: --serve does.
	Proxy *proxy.Options `json:"proxy,omitempty"`
	// Addrs are where the program is seen serving.
	Addrs []string `json:"addrs,omitempty"`
	// Default is the name whose certificate is for clients that ask for none of those
	// there are.
	Default string `json:"default,omitempty"`
}

// targetFlags are about the program on this machine that serves certificates.
type targetFlags struct {
	dir, kind, deflt                   string
	proxyDir, proxyGroup, config, unit string
	pidFile, socket, listen            string
	reload, addrs                      []string
	layout                             proxy.Layout
}

func (f *targetFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "target-dir", "", "`directory` of a target: its key, its credentials and what it needs to start without the bus")
	flags.StringVar(&f.kind, "proxy", "", "what serves on this machine: "+strings.Join(proxy.Kinds(), ", ")+", or none (default: what is found)")
	flags.StringVar(&f.proxyDir, "proxy-dir", "", "`directory` where the proxy finds certificates (default: proxy in the target's directory)")
	flags.StringVar(&f.proxyGroup, "proxy-group", "", "group that may read them")
	flags.StringVar(&f.config, "proxy-config", "", "the proxy's configuration `file`, if it is not where it is by default")
	flags.StringVar(&f.unit, "reload-unit", "", "systemd unit that is reloaded, such as nginx.service")
	flags.StringVar(&f.pidFile, "reload-pid-file", "", "`file` with the process that is sent a signal to reload")
	flags.StringSliceVar(&f.reload, "reload-command", nil, "command that reloads, its words with commas between")
	flags.StringVar(&f.socket, "haproxy-socket", "", "HAProxy's socket of level admin")
	flags.StringVar(&f.listen, "caddy-listen", "", "loopback address where Caddy asks for certificates")
	flags.StringSliceVar(&f.addrs, "probe", nil, "host:port where the proxy is seen serving (default: what is found, else 127.0.0.1:443)")
	flags.StringVar(&f.deflt, "default-name", "", "name whose certificate is for clients that ask for none of those there are")
	flags.StringVar(&f.layout.Chain, "file-chain", "", "for proxy files: name of the file with the chain, such as {id}.crt")
	flags.StringVar(&f.layout.Key, "file-key", "", "for proxy files: name of the file with the key, such as {id}.key")
	flags.StringVar(&f.layout.PEM, "file-pem", "", "for proxy files: name of the file with both (default {id}.pem)")
}

// settle chooses the program that serves, by the flags and by what is found.
func (f *targetFlags) settle(ctx context.Context, s *targetSettings) error {
	s.Default, s.Addrs = f.deflt, f.addrs
	if f.kind == "none" {
		return nil
	}
	var found []proxy.Found
	if f.kind != "files" {
		found = proxy.Detect(ctx)
	}
	o := proxy.Options{Kind: f.kind}
	switch i := slices.IndexFunc(found, func(p proxy.Found) bool { return p.Kind == f.kind || f.kind == "" && p.PID != 0 }); {
	case i >= 0:
		o = found[i].Options
		if len(s.Addrs) == 0 {
			s.Addrs = found[i].Addrs
		}
	case f.kind == "":
		return nil // nothing runs here: the target serves by itself, or is told later
	}
	set := func(into *string, value string) {
		if value != "" {
			*into = value
		}
	}
	set(&o.Dir, or(f.proxyDir, filepath.Join(f.dir, "proxy")))
	set(&o.Group, f.proxyGroup)
	set(&o.Config, f.config)
	set(&o.Socket, f.socket)
	set(&o.Listen, f.listen)
	if f.unit != "" || f.pidFile != "" || len(f.reload) > 0 {
		o.Reload = proxy.Reload{Unit: f.unit, PIDFile: f.pidFile, Command: f.reload}
	}
	o.Layout = f.layout
	s.Proxy = &o
	return nil
}

// joinTarget exchanges the token for what makes this machine a target.
func (f *joinFlags) joinTarget(cmd *cobra.Command, host, token string) error {
	const what = "joining as target"
	if f.target.dir == "" {
		return fail(exitUsage, "--target-dir /var/lib/fleetbus-target", "%s: no directory is named", what)
	}
	dir, err := filepath.Abs(f.target.dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	f.target.dir = dir
	if readable(filepath.Join(dir, targetFile)) {
		return fail(exitConflict, "fleetbus target run "+dir, "%s: there is a target in %q", what, dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	creds := filepath.Join(dir, targetCreds)
	reply, err := f.exchangeUser(cmd.Context(), host, token, creds)
	if err != nil {
		return err
	}
	s := targetSettings{Name: reply.Name, Servers: reply.Servers, Signer: reply.Signer}
	if err := f.target.settle(cmd.Context(), &s); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, file := range []secretFile{{filepath.Join(dir, targetCA), []byte(reply.CA), 0o644}, {filepath.Join(dir, targetFile), append(text, '\n'), 0o600}} {
		if err := file.write(true); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	t, err := f.a.openTarget(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	result := joined{Changed: true, Name: reply.Name, DataDir: dir, Creds: creds}
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	if err := t.enroll(ctx); err != nil {
		// It is a target all the same, and asks again when it runs.
		result.Warning = err.Error()
	}
	return f.a.show(report{value: result, text: func(p *page) {
		p.line("this machine is target %s, in %s", reply.Name, dir)
		if result.Warning != "" {
			p.line("it serves nothing yet: %s", result.Warning)
		}
		t.describe(p)
		p.line("run it:")
		p.line("  fleetbus target run %s", dir)
	}})
}

// A deployment is a target on this machine.
type deployment struct {
	a        *app
	dir      string
	settings targetSettings
	account  string
	name     string
	proxy    proxy.Proxy // nil: none
}

func (a *app) openTarget(dir string) (*deployment, error) {
	t := &deployment{a: a, dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, targetFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitConfig, "fleetbus join HOST --token … --as target --target-dir "+dir, "opening a target: there is none in %q", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("opening a target: %w", err)
	}
	if err := json.Unmarshal(text, &t.settings); err != nil {
		return nil, fmt.Errorf("opening a target: reading %q: %w", filepath.Join(dir, targetFile), err)
	}
	if t.account, t.name, err = identity.SplitName(t.settings.Name); err != nil {
		return nil, fmt.Errorf("opening a target: reading %q: %w", filepath.Join(dir, targetFile), err)
	}
	if t.settings.Proxy != nil {
		if t.proxy, err = proxy.New(*t.settings.Proxy); err != nil {
			return nil, fmt.Errorf("opening a target: %w", err)
		}
	}
	return t, nil
}

// describe says what the target does to the program that serves.
func (t *deployment) describe(p *page) {
	if t.proxy == nil {
		p.line("no proxy is served by it: fleetbus target run %s --serve :443 answers by itself", t.dir)
		return
	}
	p.line("it puts certificates into %s, in %s", t.proxy.Name(), t.settings.Proxy.Dir)
	if snippet, err := t.proxy.Snippet(nil); err == nil && snippet != "" {
		p.line("put this into the configuration of %s, once:", t.proxy.Name())
		for line := range strings.SplitSeq(strings.TrimRight(snippet, "\n"), "\n") {
			p.line("  %s", line)
		}
	}
}

func (t *deployment) path(name string) string { return filepath.Join(t.dir, name) }

// dial connects as the target; with stay it goes on trying for ever.
func (t *deployment) dial(ctx context.Context, opts ...nats.Option) (*nats.Conn, error) {
	to := target{creds: t.path(targetCreds), ca: t.path(targetCA)}
	for _, s := range t.settings.Servers {
		url, err := serverURL(s)
		if err != nil {
			return nil, err
		}
		to.servers = append(to.servers, url)
	}
	return t.a.connect(ctx, to, opts...)
}

// enroll sends the managers the target's sealing key, and keeps what it may open. It
// may be done again: groups may have come.
func (t *deployment) enroll(ctx context.Context) error {
	nc, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer nc.Close()
	key, err := cert.ReadTargetKey(t.path(targetKey))
	if errors.Is(err, fs.ErrNotExist) {
		key = &cert.TargetKey{Account: t.account, Name: t.name, Signers: []cert.Signer{cert.Signer(t.settings.Signer)}}
		key.Seal, err = t.pendingKey()
	}
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string][]byte{"public": key.Seal.Public()})
	if err != nil {
		return err
	}
	type granted struct {
		Groups []string `json:"groups"`
	}
	reply, err := askTarget[granted](ctx, nc, cert.EnrollSubject(t.name), body)
	if err != nil {
		return violation(nc, err)
	}
	slices.Sort(reply.Groups)
	if slices.Equal(key.Groups, reply.Groups) {
		return nil
	}
	key.Groups = reply.Groups
	if err := cert.WriteTargetKey(t.path(targetKey), key); err != nil {
		return err
	}
	return forget(t.path(targetKey + ".new"))
}

// pendingKey is the sealing key of a target that is in no group yet: a target has one,
// however often it asks.
func (t *deployment) pendingKey() (*cert.SealKey, error) {
	path := t.path(targetKey + ".new")
	secret, err := os.ReadFile(path)
	if err == nil {
		return cert.ParseSealKey(secret)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	key, err := cert.NewSealKey()
	if err != nil {
		return nil, err
	}
	if secret, err = key.Bytes(); err != nil {
		return nil, err
	}
	return key, secretFile{path, secret, 0o600}.write(true)
}

// askTarget makes a request of a target's own.
func askTarget[Out any](ctx context.Context, nc *nats.Conn, subject string, body []byte) (out Out, err error) {
	msg, err := nc.RequestWithContext(ctx, subject, body)
	if errors.Is(err, nats.ErrNoResponders) {
		return out, admin.Errorf(admin.Unavailable, "fleetbus cert ls, as an administrator, starts them", "no manager of certificates answers in this account")
	}
	if err != nil {
		return out, err
	}
	var reply admin.Reply
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return out, fmt.Errorf("reading an answer: %w", err)
	}
	if reply.Error != nil {
		return out, reply.Error
	}
	return out, json.Unmarshal(reply.Data, &out)
}

func newTargetCommand(a *app) *cobra.Command {
	return noun("target", "This machine as a target, which serves certificates of its groups", newTargetRun(a), newTargetShow(a))
}

func newTargetShow(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "show DIR", Args: takes("DIR"), Annotations: reads(),
		Short: "Say what a target does to the proxy of this machine",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.openTarget(args[0])
			if err != nil {
				return err
			}
			return a.show(report{value: t.settings, text: func(p *page) {
				p.line("target %s", t.settings.Name)
				t.describe(p)
			}})
		},
	})
}

func newTargetRun(a *app) *cobra.Command {
	var serve, challenges string
	cmd := &cobra.Command{
		Use: "run DIR", Args: takes("DIR"), Annotations: writes(),
		Short: "Serve the certificates that are delivered to the target in a directory",
		Long: `Serve the certificates that are delivered to the target in a directory, until it is
interrupted: put them into the proxy of this machine, see it serving them, and say so
on the bus. It starts from the directory alone when the bus is away.`,
		Example: `  fleetbus target run /var/lib/fleetbus-target
  fleetbus target run /var/lib/fleetbus-target --serve :8443`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.openTarget(args[0])
			if err != nil {
				return err
			}
			return t.run(cmd.Context(), serve, challenges)
		},
	}
	cmd.Flags().StringVar(&serve, "serve", "", "answer HTTPS on this `address` with a page that says which certificate it is")
	cmd.Flags().StringVar(&challenges, "challenges", "", "answer http-01 challenges on this `address`, such as :80")
	return cmd
}

const (
	// targetEnrollWait is how long a start waits for the bus before it goes by what is
	// on disk.
	targetEnrollWait = 5 * time.Second
	// targetRenewEvery is how often a target looks whether its credentials are half
	// over.
	targetRenewEvery = time.Hour
)

// run serves until ctx ends.
func (t *deployment) run(ctx context.Context, serve, challenges string) error {
	log := slog.New(slog.NewTextHandler(t.a.stderr, nil))
	if err := t.join(ctx, log); err != nil {
		return err
	}
	key, err := cert.ReadTargetKey(t.path(targetKey))
	if err != nil {
		return err
	}
	o := cert.Options{Key: key, Dir: t.path("snapshots"), Default: t.settings.Default, Logger: log}
	if t.proxy != nil {
		defer t.proxy.Close()
		o.Program = &program{t.proxy, t.settings.Addrs}
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
		t.a.hint("listening on %s", ln.Addr())
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
	nc, err := t.dial(ctx, append(t.a.staying("certificates are followed again"), nats.RetryOnFailedConnect(true))...)
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
	go t.renew(ctx, nc, log)
	t.a.hint("target %s of %s is serving", t.settings.Name, strings.Join(key.Groups, ", "))
	if err := store.Run(ctx, nc); err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// join enrolls, if the bus is there. A target that never did waits for it.
func (t *deployment) join(ctx context.Context, log *slog.Logger) error {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		try, cancel := context.WithTimeout(ctx, targetEnrollWait)
		err := t.enroll(try)
		cancel()
		if err == nil || readable(t.path(targetKey)) && ctx.Err() == nil {
			if err != nil {
				log.Warn("starting without the bus", "error", err)
			}
			return nil
		}
		log.Warn("waiting for a group", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// renew renews the target's credentials when half of their life is over.
func (t *deployment) renew(ctx context.Context, nc *nats.Conn, log *slog.Logger) {
	tick := time.NewTicker(targetRenewEvery)
	defer tick.Stop()
	for {
		if err := t.renewOnce(ctx, nc); err != nil && ctx.Err() == nil {
			log.Warn("credentials not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (t *deployment) renewOnce(ctx context.Context, nc *nats.Conn) error {
	text, err := os.ReadFile(t.path(targetCreds))
	if err != nil {
		return err
	}
	issued, expires, err := identity.CredsLife(text)
	if err != nil || expires.IsZero() || time.Until(expires) > expires.Sub(issued)/2 || !nc.IsConnected() {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	reply, err := admin.Renew(ctx, nc)
	if err != nil {
		return err
	}
	key, err := nkeys.ParseDecoratedUserNKey(text)
	if err != nil {
		return err
	}
	seed, err := key.Seed()
	if err != nil {
		return err
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		return err
	}
	return secretFile{t.path(targetCreds), creds, 0o600}.write(true)
}

// showCertificate is a page that says by which certificate it came.
func showCertificate(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s is served by fleetbus\n", escape(r.TLS.ServerName))
}

// A program puts the certificates of a store into a proxy, and looks at what it serves.
type program struct {
	proxy.Proxy
	addrs []string
}

// Install has the proxy serve pairs.
func (p *program) Install(ctx context.Context, pairs []cert.Pair) error {
	all := make([]proxy.Pair, 0, len(pairs))
	for _, c := range pairs {
		all = append(all, proxy.Pair{ID: c.ID, Chain: c.Chain, Key: c.Key})
	}
	return p.Proxy.Install(ctx, all)
}

// Probe is the serial number of what the proxy serves for a name, at each address: the
// first that differs from the others counts.
func (p *program) Probe(ctx context.Context, name string) (serial string, err error) {
	addrs := p.addrs
	if len(addrs) == 0 {
		addrs = []string{"127.0.0.1:443"}
	}
	for _, addr := range addrs {
		leaf, err := proxy.Probe(ctx, addr, name)
		if err != nil {
			return serial, fmt.Errorf("looking at what %s serves at %s: %w", p.Name(), addr, err)
		}
		if s := proxy.Serial(leaf); serial == "" {
			serial = s
		} else if s != serial {
			return s, nil
		}
	}
	return serial, nil
}
