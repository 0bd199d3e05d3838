package hub

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
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
	"time"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
)

// Options say where the hub is and what passes. Servers, Node and Account are
// required.
type Options struct {
	// Servers are addresses of one hub, tried in turn: mqtts://host:port, or without
	// TLS mqtt://host:port. Default ports: 8883 and 1883.
	Servers []string
	// CA is a PEM file of the authorities that may have signed the hub's
	// certificate. Default: the system's.
	CA string
	// Cert and Key are PEM files of this node's certificate and key. Default: none.
	Cert, Key string
	// ServerName is the name that the hub's certificate must have. Default: the host
	// that is dialed.
	ServerName string
	// Pin is the digest of the hub's public key, "sha256:" and 64 hexadecimal digits,
	// as Check prints it. Without a CA it stands in for one, and for the name.
	Pin string
	// User and PasswordFile are what the hub knows this node by. The file's last line
	// break is not part of the password.
	User, PasswordFile string
	// ClientID is the MQTT client identifier. Two links with the same one disconnect
	// each other for ever. Default: "fleetbus-", node and account.
	ClientID string
	// Prefix is the topic, of one or more levels, below which everything is. Default
	// "fleetbus". Links of one prefix and account hear one another.
	Prefix string
	// AtMostOnce publishes and subscribes with QoS 0. Default: QoS 1.
	AtMostOnce bool
	// KeepAlive is the silence after which either side gives the other up. Default 20 s.
	KeepAlive time.Duration
	// SessionExpiry is how long the hub keeps what it has for this link while it is
	// away, and this link what other links may still lack. Default 1 h.
	SessionExpiry time.Duration
	// Subjects pass beside all change notices. "*" and a last ">" stand for any; the
	// first token is a word.
	Subjects []string
	// Queue bounds what waits on this node's disk, in bytes. Default 256 MiB.
	Queue int64

	// Node and Account are whose messages are carried.
	Node, Account string
}

const (
	defaultPrefix        = "fleetbus"
	defaultKeepAlive     = 20 * time.Second
	defaultSessionExpiry = time.Hour
	defaultQueue         = 256 << 20
	maxKeepAlive         = 18 * time.Hour
	// maxFile bounds a file of certificates or with a password, in bytes.
	maxFile = 1 << 20
)

// A FieldError is one setting that is wrong. Field is its name in a configuration
// file, below that of the hub.
type FieldError struct{ Field, Problem, Hint string }

// Error gives field and problem in one line.
func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Validate returns every problem of o, joined, each a *FieldError. It opens
// nothing.
func (o *Options) Validate() error {
	var all []error
	add := func(field, hint, format string, args ...any) {
		all = append(all, &FieldError{field, fmt.Sprintf(format, args...), hint})
	}
	if len(o.Servers) == 0 {
		add("servers", "set hub.servers, such as mqtts://mqtt.example.net", "no hub is named")
	}
	for i, s := range o.Servers {
		if _, err := parseServer(s); err != nil {
			add(fmt.Sprintf("servers[%d]", i), "write it like mqtts://mqtt.example.net:8883", "%v", err)
		}
	}
	if (o.Cert == "") != (o.Key == "") {
		add("cert", "set both hub.cert and hub.key", "cert and key belong together and one is missing")
	}
	if o.Pin != "" && readPin(o.Pin) == nil {
		add("pin", "write it as fleetbus hub check prints it", "is not sha256: and 64 hexadecimal digits")
	}
	if o.PasswordFile != "" && o.User == "" {
		add("user", "set hub.user", "there is a password and no user")
	}
	if err := checkPrefix(cmp.Or(o.Prefix, defaultPrefix)); err != nil {
		add("prefix", "write it like fleetbus or plant/7", "%v", err)
	}
	if o.KeepAlive < 0 || o.KeepAlive > maxKeepAlive || o.KeepAlive > 0 && o.KeepAlive < time.Second {
		add("keep_alive", "write it like 20s", "is not between a second and 18 hours")
	}
	if o.SessionExpiry < 0 || o.SessionExpiry.Seconds() > 1<<31 {
		add("session_expiry", "write it like 1h", "is negative or longer than a life")
	}
	for i, s := range o.Subjects {
		if err := checkSubject(s); err != nil {
			add(fmt.Sprintf("subjects[%d]", i), "write it like orders.>", "%v", err)
		}
	}
	return errors.Join(all...)
}

func checkPrefix(prefix string) error {
	for level := range strings.SplitSeq(prefix, "/") {
		if level == "" || strings.ContainsAny(level, "+#") || !mapping.IsText(level) || strings.HasPrefix(prefix, "$") {
			return fmt.Errorf("%q is not a topic of levels that are not empty, without +, # and a first $", prefix)
		}
	}
	return nil
}

func checkSubject(s string) error {
	first, _, _ := strings.Cut(s, ".")
	tokens := strings.Split(s, ".")
	for i, token := range tokens {
		switch {
		case token == "", strings.ContainsAny(token, " \t\r\n"):
			return fmt.Errorf("%q is not a subject", s)
		case token == ">" && i < len(tokens)-1:
			return fmt.Errorf("%q has > before its end", s)
		case len(token) > 1 && strings.ContainsAny(token, "*>"):
			return fmt.Errorf("%q has a wildcard within a word", s)
		}
	}
	switch {
	case first == "*", first == ">":
		return fmt.Errorf("%q begins with a wildcard: it would take what is the engine's", s)
	case first[0] == '$', first[0] == '_', first == "announce", first == "announced":
		return fmt.Errorf("%q is the engine's or of the history of changes, which stays here", s)
	}
	if _, ok := mapping.Filter(s); !ok {
		return fmt.Errorf("%q has no MQTT topics", s)
	}
	return nil
}

// withDefaults returns a copy in which every empty field has its default.
func (o Options) withDefaults() Options {
	o.Prefix = cmp.Or(o.Prefix, defaultPrefix)
	o.KeepAlive = cmp.Or(o.KeepAlive, defaultKeepAlive)
	o.SessionExpiry = cmp.Or(o.SessionExpiry, defaultSessionExpiry)
	o.Queue = cmp.Or(o.Queue, defaultQueue)
	o.ClientID = cmp.Or(o.ClientID, "fleetbus-"+o.Node+"-"+o.Account)
	return o
}

// A server is one address of the hub.
type server struct {
	url  string // as it was written
	tls  bool
	host string
	addr string // host:port
}

func parseServer(text string) (server, error) {
	u, err := url.Parse(text)
	if err != nil {
		return server{}, fmt.Errorf("%q is not a URL", redact(text))
	}
	s := server{url: text, host: u.Hostname()}
	port := u.Port()
	switch u.Scheme {
	case "mqtts", "ssl", "tls":
		s.tls, port = true, cmp.Or(port, "8883")
	case "mqtt", "tcp":
		port = cmp.Or(port, "1883")
	default:
		return server{}, fmt.Errorf("%q begins with neither mqtts:// nor mqtt://", redact(text))
	}
	if s.host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return server{}, fmt.Errorf("%q is more or less than a host and a port", redact(text))
	}
	s.addr = net.JoinHostPort(s.host, port)
	return s, nil
}

// redact leaves out what may be a password.
func redact(text string) string {
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			return scheme + "://…@" + rest[i+1:]
		}
	}
	return text
}

func readPin(text string) []byte {
	digits, ok := strings.CutPrefix(text, "sha256:")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != sha256.Size {
		return nil
	}
	return b
}

// pinOf is the pin of a certificate's key.
func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// errPin says that the hub has another key than the one that is pinned.
var errPin = errors.New("the hub's key is not the pinned one")

// config is the TLS configuration for a host. Files are read each time, so that new
// ones are used from the next connection on.
func (o *Options) config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(o.ServerName, host)}
	if o.CA != "" {
		pem, err := readFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("reading the hub's authority: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the hub's authority: no certificate in %q", o.CA)
		}
	}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the certificate for the hub: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if pin := readPin(o.Pin); pin != nil {
		c.InsecureSkipVerify = o.CA == ""
		c.VerifyConnection = func(s tls.ConnectionState) error {
			sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare(sum[:], pin) != 1 {
				return fmt.Errorf("%w: it has %s", errPin, pinOf(s.PeerCertificates[0]))
			}
			return nil
		}
	}
	return c, nil
}

func (o *Options) password() ([]byte, error) {
	if o.PasswordFile == "" {
		return nil, nil
	}
	b, err := readFile(o.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("reading the password for the hub: %w", err)
	}
	return []byte(strings.TrimRight(string(b), "\r\n")), nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// checkNames looks at what a configuration file does not say.
func (o *Options) checkNames() error {
	if err := identity.CheckName(o.Node); err != nil {
		return fmt.Errorf("making a link: its node: %w", err)
	}
	if err := identity.CheckAccountName(o.Account); err != nil {
		return fmt.Errorf("making a link: its account: %w", err)
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
