package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// fleetFlags say how to reach a fleet. What is not given comes from variables,
// then from the data directory of the node on this machine.
type fleetFlags struct {
	servers   []string
	creds, ca string
	cert, key string
	dataDir   string
	timeout   time.Duration
}

// onFleet gives cmd, and the verbs under it, the flags that say how to reach a
// fleet.
func (a *app) onFleet(cmd *cobra.Command) *cobra.Command {
	flags, f := cmd.PersistentFlags(), &a.fleet
	flags.StringSliceVar(&f.servers, "server", nil, "host:port of a node, or several (FLEETBUS_SERVER; default: the node on this machine)")
	flags.StringVar(&f.creds, "creds", "", "NATS credentials `file` (FLEETBUS_CREDS)")
	flags.StringVar(&f.ca, "ca", "", "PEM `file` of the authority that servers are verified with (FLEETBUS_CA)")
	flags.StringVar(&f.cert, "client-cert", "", "PEM `file` of a client certificate")
	flags.StringVar(&f.key, "client-key", "", "PEM `file` of its private key")
	flags.StringVar(&f.dataDir, "data-dir", "", "data `directory` of the node on this machine (FLEETBUS_DATA_DIR)")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for the fleet")
	return cmd
}

// endpoint is where to connect and what to show there.
type endpoint struct {
	servers   []string // tls://host:port
	creds, ca string
	cert, key string
	// local says that the server is the one on this machine.
	local bool
}

// target settles how to reach the fleet: flags, then variables, then the node on
// this machine. The administrator's credentials that are kept there are used
// only if administrator is set.
func (a *app) target(administrator bool) (t endpoint, err error) {
	f := &a.fleet
	if (f.cert == "") != (f.key == "") {
		return t, fail(exitUsage, "pass both --client-cert and --client-key", "connecting: a certificate and its key belong together")
	}
	t = endpoint{creds: or(f.creds, a.getenv("FLEETBUS_CREDS")), ca: or(f.ca, a.getenv("FLEETBUS_CA")), cert: f.cert, key: f.key}
	servers := f.servers
	if len(servers) == 0 {
		servers = strings.FieldsFunc(a.getenv("FLEETBUS_SERVER"), func(r rune) bool { return r == ',' || r == ' ' })
	}
	t.local = len(servers) == 0
	dir, dirErr := a.dataDir()
	if t.local {
		if dirErr != nil {
			return t, dirErr
		}
		addr, err := localServer(dir)
		if err != nil {
			return t, err
		}
		servers = []string{addr}
	}
	for _, s := range servers {
		url, err := serverURL(s)
		if err != nil {
			return t, err
		}
		t.servers = append(t.servers, url)
	}
	if file := filepath.Join(dir, "admin", "ca.pem"); t.ca == "" && dirErr == nil && (t.local || readable(file)) {
		t.ca = file
	}
	if t.creds != "" || t.cert != "" {
		return t, nil
	}
	file := filepath.Join(dir, "admin", "admin.creds")
	switch {
	case !administrator:
		return t, fail(exitUsage, "fleetbus user add ACCOUNT/NAME --out FILE, then --creds FILE",
			"connecting to %s: there are no credentials of a user", strings.Join(t.servers, ", "))
	case dirErr != nil || !t.local && !readable(file):
		return t, fail(exitUsage, "--creds FILE", "connecting to %s: there are no credentials of an administrator", strings.Join(t.servers, ", "))
	}
	t.creds = file
	return t, nil
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// serverURL makes a URL of host:port. TLS goes without saying; a plain-text
// listener has to be asked for as nats://, on this machine only.
func serverURL(s string) (string, error) {
	scheme, addr, ok := strings.Cut(s, "://")
	if !ok {
		scheme, addr = "tls", s
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return "", fail(exitUsage, "write it like eu-1.example.net:4222", "connecting: %q is not host:port", s)
	}
	ip, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && ip.IsLoopback()
	switch {
	case scheme == "tls", scheme == "nats" && loopback:
		return scheme + "://" + addr, nil
	case scheme == "nats":
		return "", fail(exitUsage, "--server "+addr, "connecting: nats:// has no TLS and %q is another machine", host)
	}
	return "", fail(exitUsage, "--server "+addr, "connecting: %q is neither tls nor nats", scheme)
}

// connect opens a connection to the fleet, with more options than those that t
// needs. It can be made again only until ctx is done. The caller closes it.
func (a *app) connect(ctx context.Context, t endpoint, more ...nats.Option) (*nats.Conn, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	config, err := t.tls()
	if err != nil {
		return nil, err
	}
	d := &dialer{ctx: ctx}
	opts := []nats.Option{
		nats.Name("fleetbus"),
		nats.Timeout(min(a.fleet.timeout, 5*time.Second)),
		nats.SetCustomDialer(d),
		nats.PermissionErrOnSubscribe(true),
		// The caller learns of errors from what it does; the default prints them.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
	if config != nil {
		opts = append(opts, nats.Secure(config))
		for _, pair := range config.Certificates {
			if name := pair.Leaf.Subject.CommonName; identity.CheckName(name) == nil {
				opts = append(opts, nats.CustomInboxPrefix(identity.Inbox(name)))
			}
		}
	}
	if t.creds != "" {
		opts = append(opts, admin.UserCredentials(t.creds))
	}
	nc, err := nats.Connect(strings.Join(t.servers, ","), append(opts, more...)...)
	switch {
	case err == nil:
		return nc, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, nats.ErrNoServers) && d.last != nil:
		err = d.last
	}
	return nil, fmt.Errorf("connecting to %s: %w", strings.Join(t.servers, ", "), err)
}

// check looks at the files before the library does, whose errors name no file.
func (t endpoint) check() error {
	for what, path := range map[string]string{"credentials": t.creds, "the authority": t.ca} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			if t.local && errors.Is(err, fs.ErrPermission) {
				return localProblem("reading "+what, path, err)
			}
			return fail(exitFailed, "name the file with --"+map[bool]string{true: "creds", false: "ca"}[path == t.creds],
				"reading %s: %v", what, err)
		}
	}
	return nil
}

// tls is the TLS configuration of a connection, nil for plain text.
func (t endpoint) tls() (*tls.Config, error) {
	if slices.ContainsFunc(t.servers, func(s string) bool { return strings.HasPrefix(s, "nats://") }) {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, fmt.Errorf("reading the authority: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fail(exitFailed, "name a PEM file of certificates with --ca", "reading the authority %q: it holds no certificate", t.ca)
		}
	}
	if t.cert != "" {
		cert, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

// dialer is a nats.CustomDialer that stops when a context does. It keeps the last
// error, which the library replaces by one that says nothing.
type dialer struct {
	ctx  context.Context
	last error
}

// Dial connects.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	var conn net.Conn
	conn, d.last = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(d.ctx, network, address)
	return conn, d.last
}

// administer does something with a fleet as its administrator. what says it in
// the words of errors and of progress.
func administer[T any](cmd *cobra.Command, a *app, what string, do func(context.Context, *admin.Client) (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.fleet.timeout)
	defer cancel()
	defer a.progress(what)()
	t, err := a.target(true)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	nc, err := a.connect(ctx, t)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	if out, err = do(ctx, admin.New(nc)); errors.Is(err, nats.ErrNoResponders) {
		return out, fail(exitUnavailable, "use the credentials of an administrator with --creds", "%s: nobody answers requests of administrators there", what)
	} else if err != nil {
		return out, fmt.Errorf("%s: %w", what, violation(nc, err))
	}
	return out, nil
}

// violation returns the permission that was missing, if a request went without
// an answer because of one, else err.
func violation(nc *nats.Conn, err error) error {
	if last := nc.LastError(); last != nil && errors.Is(last, nats.ErrPermissionViolation) {
		return last
	}
	return err
}

// asUser opens a connection with the credentials of a user, whose account it
// will work in. It is good until ctx is done.
func (a *app) asUser(ctx context.Context, what string, more ...nats.Option) (*nats.Conn, error) {
	defer a.progress(what)()
	t, err := a.target(false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	nc, err := a.connect(ctx, t, more...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return nc, nil
}

// staying are options of a connection that is made again whenever it is lost.
// The user is told, with a note on what that means.
func (a *app) staying(note string) []nats.Option {
	return []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectHandler(func(nc *nats.Conn) {
		a.hint("connected again, to %s: %s", nc.ConnectedUrlRedacted(), note)
	})}
}
