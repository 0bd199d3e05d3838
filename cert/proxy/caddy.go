package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// caddyFile has the line for the Caddyfile. It is a file because the URL in it is the
// secret by which Caddy, and no other user of this machine, gets the keys.
const caddyFile = "get_certificate"

// A caddy answers Caddy, which asks in every handshake and waits for as long as it
// takes: so it answers from memory, at once.
type caddy struct {
	Options
	tree   *tree
	ln     net.Listener
	server *http.Server
	path   string // of the URL
	// now is what is served, never changed once it is here.
	now atomic.Pointer[caddyState]
}

type caddyState struct {
	all    []certificate
	byName map[string]certificate
}

func newCaddy(o Options, t *tree) (_ Proxy, err error) {
	c := &caddy{Options: o, tree: t}
	c.now.Store(&caddyState{})
	if c.ln, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("listening for Caddy: %w", err)
	}
	defer func() {
		if err != nil {
			c.ln.Close()
		}
	}()
	if err := c.writeURL(); err != nil {
		return nil, fmt.Errorf("preparing the directory for caddy: %w", err)
	}
	c.server = &http.Server{
		Handler:           http.HandlerFunc(c.answer),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	go c.server.Serve(c.ln) // until Close
	return c, nil
}

// writeURL keeps the URL over restarts, so that Caddy need not be reloaded.
func (c *caddy) writeURL() error {
	if err := c.tree.open(); err != nil {
		return err
	}
	base := "get_certificate http http://" + c.ln.Addr().String()
	// A file of another port has a token that is as good.
	if text, err := os.ReadFile(c.tree.path(caddyFile)); err == nil {
		if i := strings.LastIndexByte(string(text), '/'); len(strings.TrimSpace(string(text[max(i, 0):]))) == len("/"+rand.Text()) {
			c.path = strings.TrimSpace(string(text[i:]))
		}
	}
	if c.path == "" {
		c.path = "/" + rand.Text()
	}
	return c.tree.replace(caddyFile, []byte(base+c.path+"\n"))
}

func (c *caddy) Name() string { return c.Kind }

func (c *caddy) Close() error { return c.server.Close() }

func (c *caddy) Snippet(pairs []Pair) (string, error) {
	all, err := check(pairs)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# In the global options: Caddy 2.6 asks an authority for the same names otherwise.\nauto_https disable_certs\n\n")
	if len(all) == 0 {
		fmt.Fprintf(&b, "# In each site block:\ntls {\n\timport %s\n}\n", c.tree.path(caddyFile))
	}
	for _, one := range all {
		fmt.Fprintf(&b, "# In the site block of %s:\ntls {\n\timport %s\n}\n\n", strings.Join(one.names, ", "), c.tree.path(caddyFile))
	}
	return b.String(), nil
}

func (c *caddy) Plan(pairs []Pair) ([]Change, error) {
	all, err := check(pairs)
	if err != nil {
		return nil, err
	}
	var plan []Change
	for _, id := range changed(c.now.Load().all, all) {
		plan = append(plan, Change{"answer", fmt.Sprintf("requests of Caddy at %s with what is new of certificate %s", c.ln.Addr(), id)})
	}
	return plan, nil
}

func (c *caddy) Install(_ context.Context, pairs []Pair) error {
	all, err := check(pairs)
	if err != nil {
		return err
	}
	c.now.Store(&caddyState{all, byName(all)})
	return nil
}

// answer has 200 with chain and key, or 204: Caddy then looks for another certificate.
// Everything else would end the handshake.
func (c *caddy) answer(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.URL.Path), []byte(c.path)) == 0 {
		http.NotFound(w, r)
		return
	}
	name := strings.ToLower(strings.TrimSuffix(r.URL.Query().Get("server_name"), "."))
	now := c.now.Load()
	one, ok := now.byName[name]
	if !ok {
		_, parent, _ := strings.Cut(name, ".")
		one, ok = now.byName["*."+parent]
	}
	if !ok {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(one.pem()) // if Caddy went away, it knows
}
