package command

import (
	"cmp"
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

// FleetFlags say how to reach a fleet. What is not given comes from variables,
// then from the data directory of the node on this machine.
type FleetFlags struct {
	servers   []string
	Creds, ca string
	Cert, key string
	dataDir   string
	Timeout   time.Duration
}

// OnFleet gives cmd, and the verbs under it, the flags that say how to reach a
// fleet.
func (a *App) OnFleet(cmd *cobra.Command) *cobra.Command {
	flags, f := cmd.PersistentFlags(), &a.Fleet
	flags.StringSliceVar(&f.servers, "server", nil, "host:port of a node, or several (FLEETBUS_SERVER; default: the node on this machine)")
	flags.StringVar(&f.Creds, "creds", "", "NATS credentials `file` (FLEETBUS_CREDS)")
	flags.StringVar(&f.ca, "ca", "", "PEM `file` of the authority that servers are verified with (FLEETBUS_CA)")
	flags.StringVar(&f.Cert, "client-cert", "", "PEM `file` of a client certificate")
	flags.StringVar(&f.key, "client-key", "", "PEM `file` of its private key")
	flags.StringVar(&f.dataDir, "data-dir", "", "data `directory` of the node on this machine (FLEETBUS_DATA_DIR)")
	flags.DurationVar(&f.Timeout, "timeout", 30*time.Second, "how long to wait for the fleet")
	return cmd
}

// Endpoint is where to connect and what to show there.
type Endpoint struct {
	Servers   []string // tls://host:port
	Creds, CA string
	cert, key string
	// local says that the server is the one on this machine.
	local bool
}

// Target settles how to reach the fleet: flags, then variables, then the node on
// this machine. The administrator's credentials that are kept there are used
// only if administrator is set.
func (a *App) Target(administrator bool) (t Endpoint, err error) {
	f := &a.Fleet
	if (f.Cert == "") != (f.key == "") {
		return t, Fail(ExitUsage, "pass both --client-cert and --client-key", "connecting: a certificate and its key belong together")
	}
	t = Endpoint{Creds: cmp.Or(f.Creds, a.Getenv("FLEETBUS_CREDS")), CA: cmp.Or(f.ca, a.Getenv("FLEETBUS_CA")), cert: f.Cert, key: f.key}
	servers := f.servers
	if len(servers) == 0 {
		servers = strings.FieldsFunc(a.Getenv("FLEETBUS_SERVER"), func(r rune) bool { return r == ',' || r == ' ' })
	}
	t.local = len(servers) == 0
	dir, dirErr := a.DataDir()
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
		url, err := ServerURL(s)
		if err != nil {
			return t, err
		}
		t.Servers = append(t.Servers, url)
	}
	if file := filepath.Join(dir, "admin", "ca.pem"); t.CA == "" && dirErr == nil && (t.local || readable(file)) {
		t.CA = file
	}
	if t.Creds != "" || t.cert != "" {
		return t, nil
	}
	file := filepath.Join(dir, "admin", "admin.creds")
	switch {
	case !administrator:
		return t, Fail(ExitUsage, "fleetbus user add ACCOUNT/NAME --out FILE, then --creds FILE",
			"connecting to %s: there are no credentials of a user", strings.Join(t.Servers, ", "))
	case dirErr != nil || !t.local && !readable(file):
		return t, Fail(ExitUsage, "--creds FILE", "connecting to %s: there are no credentials of an administrator", strings.Join(t.Servers, ", "))
	}
	t.Creds = file
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

// ServerURL makes a URL of host:port. TLS goes without saying; a plain-text
// listener has to be asked for as nats://, on this machine only.
func ServerURL(s string) (string, error) {
	scheme, addr, ok := strings.Cut(s, "://")
	if !ok {
		scheme, addr = "tls", s
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return "", Fail(ExitUsage, "write it like eu-1.example.net:4222", "connecting: %q is not host:port", s)
	}
	ip, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && ip.IsLoopback()
	switch {
	case scheme == "tls", scheme == "nats" && loopback:
		return scheme + "://" + addr, nil
	case scheme == "nats":
		return "", Fail(ExitUsage, "--server "+addr, "connecting: nats:// has no TLS and %q is another machine", host)
	}
	return "", Fail(ExitUsage, "--server "+addr, "connecting: %q is neither tls nor nats", scheme)
}

// Connect opens a connection to the fleet, with more options than those that t
// needs. It can be made again only until ctx is done. The caller closes it.
func (a *App) Connect(ctx context.Context, t Endpoint, more ...nats.Option) (*nats.Conn, error) {
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
		nats.Timeout(min(a.Fleet.Timeout, 5*time.Second)),
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
	if t.Creds != "" {
		opts = append(opts, admin.UserCredentials(t.Creds))
	}
	nc, err := nats.Connect(strings.Join(t.Servers, ","), append(opts, more...)...)
	switch {
	case err == nil:
		return nc, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, nats.ErrNoServers) && d.last != nil:
		err = d.last
	}
	return nil, fmt.Errorf("connecting to %s: %w", strings.Join(t.Servers, ", "), err)
}

// check looks at the files before the library does, whose errors name no file.
func (t Endpoint) check() error {
	for what, path := range map[string]string{"credentials": t.Creds, "the authority": t.CA} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			if t.local && errors.Is(err, fs.ErrPermission) {
				return LocalProblem("reading "+what, path, err)
			}
			return Fail(ExitFailed, "name the file with --"+map[bool]string{true: "creds", false: "ca"}[path == t.Creds],
				"reading %s: %v", what, err)
		}
	}
	return nil
}

// tls is the TLS configuration of a connection, nil for plain text.
func (t Endpoint) tls() (*tls.Config, error) {
	if slices.ContainsFunc(t.Servers, func(s string) bool { return strings.HasPrefix(s, "nats://") }) {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("reading the authority: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, Fail(ExitFailed, "name a PEM file of certificates with --ca", "reading the authority %q: it holds no certificate", t.CA)
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

// Administer does something with a fleet as its administrator. what says it in
// the words of errors and of progress.
func Administer[T any](cmd *cobra.Command, a *App, what string, do func(context.Context, *admin.Client) (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	defer a.Progress(what)()
	t, err := a.Target(true)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	nc, err := a.Connect(ctx, t)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	if out, err = do(ctx, admin.New(nc)); errors.Is(err, nats.ErrNoResponders) {
		return out, Fail(ExitUnavailable, "use the credentials of an administrator with --creds", "%s: nobody answers requests of administrators there", what)
	} else if err != nil {
		return out, fmt.Errorf("%s: %w", what, Violation(nc, err))
	}
	return out, nil
}

// Violation returns the permission that was missing, if a request went without
// an answer because of one, else err.
func Violation(nc *nats.Conn, err error) error {
	if last := nc.LastError(); last != nil && errors.Is(last, nats.ErrPermissionViolation) {
		return last
	}
	return err
}

// AsUser opens a connection with the credentials of a user, whose account it
// will work in. It is good until ctx is done.
func (a *App) AsUser(ctx context.Context, what string, more ...nats.Option) (*nats.Conn, error) {
	defer a.Progress(what)()
	t, err := a.Target(false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	nc, err := a.Connect(ctx, t, more...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return nc, nil
}

// Staying are options of a connection that is made again whenever it is lost.
// The user is told, with a note on what that means.
func (a *App) Staying(note string) []nats.Option {
	return []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectHandler(func(nc *nats.Conn) {
		a.Hint("connected again, to %s: %s", nc.ConnectedUrlRedacted(), note)
	})}
}
