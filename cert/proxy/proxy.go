// Package proxy puts certificates into programs that serve TLS and are not ours:
// nginx, HAProxy, Envoy, Caddy, Traefik, and whatever reads files.
//
// [New] makes a [Proxy] from [Options], which [Detect] proposes for what runs on this
// machine. [Proxy.Install] takes all certificates that shall be served and changes
// only what differs. It returns nil once the program was told; whether it serves them
// is seen by [Verify], which shakes hands with it.
//
// It knows nothing of where certificates come from.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Proxy is one program on this machine that serves certificates. It is not safe for
// concurrent use, and no two may have the same directory.
type Proxy interface {
	// Name is the program's: one of Kinds.
	Name() string
	// Snippet is what the operator has to put into the program's configuration, once.
	// It has no secret.
	Snippet(pairs []Pair) (string, error)
	// Plan is what Install would do, in that order. Empty: nothing. It changes
	// nothing, and shows no secret.
	Plan(pairs []Pair) ([]Change, error)
	// Install has the program serve exactly pairs. Where several have a name, the
	// first is for it. A pair that is wrong in itself is refused before anything is
	// written. If the program's test of its configuration refuses what is new, what
	// was there before is back, and goes on being served; if it refuses some pairs
	// only, the others are installed, and the error tells of each that is not.
	// Files of before are removed a minute later at the soonest, by the next call: so
	// make one now and then, also when nothing differs. An error never has a secret in
	// it.
	Install(ctx context.Context, pairs []Pair) error
	// Close ends what runs in this process for the program. It removes no file.
	Close() error
}

// A Change is one thing that Install would do.
type Change struct {
	// Do is write, remove, point (a symbolic link), answer (requests of the program),
	// run (a command) or tell (the program, at its socket).
	Do string
	// What is a path, an argument vector, or what the program is told.
	What string
}

// String is "write /etc/fleetbus/nginx/…".
func (c Change) String() string { return c.Do + " " + c.What }

// Kinds are the programs that New knows.
func Kinds() []string { return []string{"nginx", "haproxy", "envoy", "caddy", "traefik", "files"} }

// Options say where a program is and how it takes certificates.
type Options struct {
	// Kind is one of Kinds.
	Kind string
	// Dir is the absolute path of a directory that no other proxy has. It is made if it
	// is missing. Certificates go there.
	Dir string
	// Group that may read what is in Dir, besides the owner, which is who runs this
	// process. Empty: nobody else.
	Group string
	// Binary of the program, for the test of its configuration. Empty: found in PATH
	// by Kind.
	Binary string
	// Config is the program's configuration file. Empty: for nginx its own default,
	// for HAProxy /etc/haproxy/haproxy.cfg.
	Config string
	// Reload is how the program is made to read its files again.
	Reload Reload
	// Socket is the path of HAProxy's socket of level admin, by which certificates
	// change without a reload. Empty: it is reloaded.
	Socket string
	// Listen is the loopback address where Caddy asks for certificates. Empty:
	// 127.0.0.1:2018.
	Listen string
	// Layout is which files there are of a certificate. For kind files alone.
	Layout Layout
	// Test is the argument vector of a command that fails if the program would not
	// take what is in Dir. For kind files alone. Empty: nothing is tested.
	Test []string
	// Timeout of each command and request to the program. 0: 30 seconds.
	Timeout time.Duration
}

// Reload is how a program is made to read its files again: the first that is set. None
// is: nginx is called with -s reload, and others are not reloaded.
type Reload struct {
	// Unit of systemd, such as "nginx.service".
	Unit string
	// Socket is the path of HAProxy's master socket.
	Socket string
	// PIDFile names the process that gets a signal: HUP, and USR2 for HAProxy.
	PIDFile string
	// Command is an argument vector. There is no shell unless it names one.
	Command []string
}

// Layout has the names of the files of a certificate, where {id} stands for its ID. An
// empty one is not written. All empty: PEM is "{id}.pem".
type Layout struct {
	PEM   string // chain and key
	Chain string
	Key   string
}

// New checks o and makes a Proxy of it. That of Caddy listens until it is closed;
// others do nothing before they are asked to.
func New(o Options) (Proxy, error) {
	o, t, err := o.checked()
	if err != nil {
		return nil, err
	}
	switch o.Kind {
	case "caddy":
		return newCaddy(o, t)
	case "traefik":
		return &traefik{o, t}, nil
	}
	return newDirectory(o, t)
}

// Advise checks o, and returns the Snippet of its Proxy for while there are no
// certificates. Nothing is made, and nothing listens.
func Advise(o Options) (string, error) {
	o, t, err := o.checked()
	if err != nil {
		return "", err
	}
	switch o.Kind {
	case "caddy":
		return (&caddy{Options: o, tree: t}).Snippet(nil)
	case "traefik":
		return (&traefik{o, t}).Snippet(nil)
	}
	p, err := newDirectory(o, t)
	if err != nil {
		return "", err
	}
	return p.Snippet(nil)
}

func (o Options) checked() (Options, *tree, error) {
	if !slices.Contains(Kinds(), o.Kind) {
		return o, nil, fmt.Errorf("%q is no proxy that certificates can be put into: it has to be one of %s", o.Kind, strings.Join(Kinds(), ", "))
	}
	if !filepath.IsAbs(o.Dir) || strings.ContainsFunc(o.Dir, unquotable) {
		return o, nil, fmt.Errorf("the directory of %s is %q: it has to be an absolute path without spaces and quotes", o.Kind, o.Dir)
	}
	o.Dir = filepath.Clean(o.Dir)
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Binary == "" {
		o.Binary = find(o.Kind)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:2018"
	}
	host, _, err := net.SplitHostPort(o.Listen)
	if ip := net.ParseIP(host); o.Kind == "caddy" && (err != nil || ip == nil || !ip.IsLoopback()) {
		return o, nil, fmt.Errorf("listening for Caddy at %q: private keys are given there, so that it has to be a loopback address and a port", o.Listen)
	}
	t, err := newTree(o.Dir, o.Group)
	return o, t, err
}

// unquotable characters would have to be quoted in one of the configurations.
func unquotable(r rune) bool {
	return r <= ' ' || r == 0x7f || strings.ContainsRune(`"'\{};$#`, r)
}

// find is where the program of that kind is, or its bare name.
func find(kind string) string {
	for _, name := range []string{kind, "/usr/sbin/" + kind, "/usr/local/sbin/" + kind} {
		if path, err := exec.LookPath(name); err == nil && !errors.Is(err, exec.ErrDot) {
			return path
		}
	}
	return kind
}
