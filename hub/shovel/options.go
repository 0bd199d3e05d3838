package shovel

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/identity"
)

// An End says how a broker is reached. URL is required, and a user with a password or a
// certificate.
type End struct {
	// URL is amqps://host:port/vhost, or without TLS amqp://host:port/vhost. Without a
	// virtual host it is "/". Default ports: 5671 and 5672.
	URL string
	// CA is a PEM file of the authorities that may have signed the broker's certificate.
	// Default: the system's.
	CA string
	// Cert and Key are PEM files of a certificate and its key. Without User it is what
	// logs in, by EXTERNAL.
	Cert, Key string
	// ServerName is the name that the broker's certificate must have. Default: the host
	// in URL.
	ServerName string
	// User and PasswordFile log in by PLAIN. The file's last line break is not part of
	// the password.
	User, PasswordFile string
}

// Options say what is linked. Account, Remote, Local and a link are required.
type Options struct {
	// Account is that of the local end, and Node who may hold the link.
	Account, Node string
	// Remote is the broker elsewhere, and Local a listener for AMQP of the fleet.
	Remote, Local End
	// In are links from the remote broker to the local one, and Out the other way, each
	// as ParseRoute reads it.
	In, Out []string
	// Prefetch is how many messages of a link are on their way. Default 200.
	Prefetch int
	// MaxHops is how many links a message may pass. Default 4.
	MaxHops int
	// Park is the queue, on the side that a message is from, of messages that the other
	// side does not take at all. Default "fleetbus.parked".
	Park string
}

const (
	defaultPrefetch, maxPrefetch = 200, 10_000
	defaultHops, maxHops         = 4, 16
	defaultPark                  = "fleetbus.parked"
	// maxFile bounds a file of certificates or with a password, in bytes.
	maxFile = 1 << 20
)

// Validate returns every problem of o, joined, each a *hub.FieldError. It opens nothing.
func (o *Options) Validate() error {
	var all []error
	add := func(field, hint, format string, args ...any) {
		all = append(all, &hub.FieldError{Field: field, Problem: fmt.Sprintf(format, args...), Hint: hint})
	}
	for _, e := range []struct {
		prefix, url string
		*End
	}{{"", "servers", &o.Remote}, {"local_", "local", &o.Local}} {
		if _, err := parseURL(e.URL); err != nil {
			add(e.url, "write it like amqps://rabbit.example.net:5671/vhost", "%v", err)
		}
		if (e.Cert == "") != (e.Key == "") {
			add(e.prefix+"cert", "set both, the certificate and its key", "cert and key belong together and one is missing")
		}
		if (e.User == "") != (e.PasswordFile == "") {
			add(e.prefix+"user", "set both, the user and the file with its password", "user and password file belong together and one is missing")
		}
		if e.User == "" && e.Cert == "" {
			add(e.prefix+"user", "set a user and a password file, or a certificate and its key", "there is nothing to log in with")
		}
	}
	if len(o.In)+len(o.Out) == 0 {
		add("in", "set hub.in or hub.out, such as orders", "there is no link")
	}
	for name, list := range map[string][]string{"in": o.In, "out": o.Out} {
		seen := map[string]bool{}
		for i, text := range list {
			if _, err := ParseRoute(text); err != nil {
				add(fmt.Sprintf("%s[%d]", name, i), "write it like orders, or exchange:events/order.# -> orders", "%v", err)
			}
			if seen[text] {
				add(fmt.Sprintf("%s[%d]", name, i), "keep one of them", "%q is there twice", text)
			}
			seen[text] = true
		}
	}
	if o.Prefetch < 0 || o.Prefetch > maxPrefetch {
		add("prefetch", "write a number up to 10000", "is not between 1 and %d", maxPrefetch)
	}
	if o.MaxHops < 0 || o.MaxHops > maxHops {
		add("max_hops", "write a number up to 16", "is not between 1 and %d", maxHops)
	}
	if len(o.Park) > 200 || strings.HasPrefix(o.Park, "amq.") {
		add("park", "write it like fleetbus.parked", "is no name of a queue")
	}
	return errors.Join(all...)
}

func (o Options) withDefaults() Options {
	o.Prefetch, o.MaxHops, o.Park = cmp.Or(o.Prefetch, defaultPrefetch), cmp.Or(o.MaxHops, defaultHops), cmp.Or(o.Park, defaultPark)
	return o
}

// name is what the link is called in messages that came through it: the same on every
// node that may hold it.
func (o *Options) name() string { return o.Account + "@" + redacted(o.Remote.URL) }

// A Route is where messages are from and where they go.
type Route struct {
	// FromExchange and FromKey are what a queue of the link's own is bound with, or else
	// FromQueue is what it consumes.
	FromQueue, FromExchange, FromKey string
	// ToQueue is what takes them, or else ToExchange, with ToKey or, if HasKey is false,
	// the key that they have.
	ToQueue, ToExchange, ToKey string
	HasKey                     bool
}

// ParseRoute reads SOURCE -> TARGET, each NAME of a queue, or exchange:NAME/KEY. The KEY of
// a target may be missing: then each message has the one it had. A queue alone goes to one
// of the same name. In names, %2F is a slash, and %2C a comma.
func ParseRoute(text string) (r Route, err error) {
	from, to, both := strings.Cut(text, "->")
	from, to = strings.TrimSpace(from), strings.TrimSpace(to)
	if !both {
		to = from
	}
	var hasKey bool
	if r.FromQueue, r.FromExchange, r.FromKey, hasKey, err = parsePlace(from); err != nil {
		return r, err
	}
	if r.FromExchange != "" && !hasKey {
		return r, fmt.Errorf("%q has no key: what is to be taken of an exchange is that of a binding, such as exchange:events/#", from)
	}
	if !both && r.FromExchange != "" {
		return r, fmt.Errorf("%q does not say where it goes", text)
	}
	r.ToQueue, r.ToExchange, r.ToKey, r.HasKey, err = parsePlace(to)
	return r, err
}

func parsePlace(text string) (queue, exchange, key string, hasKey bool, err error) {
	name, isExchange := strings.CutPrefix(text, "exchange:")
	if isExchange {
		name, key, hasKey = strings.Cut(name, "/")
	}
	parts := []*string{&name, &key}
	for _, part := range parts {
		if *part, err = url.PathUnescape(*part); err != nil {
			return "", "", "", false, fmt.Errorf("%q has a %% that is not followed by two hexadecimal digits", text)
		}
		if len(*part) > 255 {
			return "", "", "", false, fmt.Errorf("%.40q is longer than 255 bytes", *part)
		}
	}
	if name == "" {
		return "", "", "", false, fmt.Errorf("%q names no queue and no exchange", text)
	}
	if isExchange {
		return "", name, key, hasKey, nil
	}
	return name, "", "", false, nil
}

// ownQueue is the queue of a link that takes messages of an exchange.
func (r Route) ownQueue(account string) string {
	sum := sha256.Sum256([]byte(account + "\x00" + r.FromExchange + "\x00" + r.FromKey + "\x00" + r.ToQueue + "\x00" + r.ToExchange + "\x00" + r.ToKey))
	return "fleetbus.link." + hex.EncodeToString(sum[:6])
}

// A target is a URL that was read.
type target struct {
	tls   bool
	host  string
	addr  string // host:port
	vhost string
}

func parseURL(text string) (t target, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return t, fmt.Errorf("%q is not a URL", redacted(text))
	}
	t.host, t.tls = u.Hostname(), u.Scheme == "amqps"
	port := u.Port()
	switch {
	case u.Scheme != "amqps" && u.Scheme != "amqp":
		return t, fmt.Errorf("%q is neither amqps:// nor amqp://", redacted(text))
	case t.host == "":
		return t, fmt.Errorf("%q has no host", redacted(text))
	case u.User != nil:
		return t, errors.New("the user and its password do not belong in the URL: a password is in a file")
	case u.RawQuery != "" || u.Fragment != "":
		return t, fmt.Errorf("%q has more than a host, a port and a virtual host", redacted(text))
	}
	if port == "" {
		port = map[bool]string{true: "5671", false: "5672"}[t.tls]
	}
	t.addr = net.JoinHostPort(t.host, port)
	if t.vhost, err = url.PathUnescape(strings.TrimPrefix(u.EscapedPath(), "/")); err != nil {
		return t, fmt.Errorf("%q has a %% that is not followed by two hexadecimal digits", redacted(text))
	}
	t.vhost = cmp.Or(t.vhost, "/")
	return t, nil
}

// redacted is a URL without what may be a secret in it.
func redacted(text string) string {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return text
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + "://" + rest
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// config reads the files of an end, anew for each connection.
func (e *End) config(t target) (c amqp091.Config, err error) {
	c = amqp091.Config{Vhost: t.vhost, Heartbeat: heartbeat, Properties: amqp091.Table{"product": "fleetbus", "connection_name": "fleetbus link"}}
	if t.tls {
		c.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(e.ServerName, t.host)}
		if e.CA != "" {
			pem, err := readFile(e.CA)
			if err != nil {
				return c, fmt.Errorf("reading the authority: %w", err)
			}
			c.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !c.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				return c, fmt.Errorf("reading the authority: %q has no certificate", e.CA)
			}
		}
		if e.Cert != "" {
			pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
			if err != nil {
				return c, fmt.Errorf("reading the certificate: %w", err)
			}
			c.TLSClientConfig.Certificates = []tls.Certificate{pair}
		}
	}
	if e.User == "" {
		c.SASL = []amqp091.Authentication{&amqp091.ExternalAuth{}}
		return c, nil
	}
	password, err := readFile(e.PasswordFile)
	if err != nil {
		return c, fmt.Errorf("reading the password: %w", err)
	}
	c.SASL = []amqp091.Authentication{&amqp091.PlainAuth{Username: e.User, Password: strings.TrimRight(string(password), "\r\n")}}
	return c, nil
}

// checkNames looks at what a configuration file does not say.
func (o *Options) checkNames() error {
	if err := identity.CheckName(o.Node); err != nil {
		return fmt.Errorf("linking: the node's %w", err)
	}
	if err := identity.CheckName(o.Account); err != nil {
		return fmt.Errorf("linking: the account's %w", err)
	}
	return nil
}
