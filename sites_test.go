package fleetbus_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// A wire is the network between a hub and its sites, which can be cut.
type wire struct {
	ln net.Listener

	mu    sync.Mutex
	to    string // "" while it is cut
	conns []net.Conn
}

func newWire(t *testing.T) *wire {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln}
	t.Cleanup(func() { ln.Close(); w.cut() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			to := w.to
			if to == "" {
				w.conns = append(w.conns, near)
			}
			w.mu.Unlock()
			if to == "" {
				continue
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, near, far)
			w.mu.Unlock()
			go func() { io.Copy(near, far); near.Close() }()
			go func() { io.Copy(far, near); far.Close() }()
		}
	}()
	return w
}

func (w *wire) join(to string) {
	w.cut() // who waits comes again
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = to
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.to, w.conns = "", nil
}

// startHub starts a node with a listener for sites, behind a wire.
func startHub(t *testing.T) (*fleetbustest.Server, *wire) {
	t.Helper()
	w := newWire(t)
	hub := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "leaf", Addr: "127.0.0.1:0", Advertise: w.ln.Addr().String(), Protocol: fleetbus.Leaf()})
	})
	w.join(hub.Addr("leaf").String())
	hub.Creds("acme", "admin")
	return hub, w
}

// siteToken is a token for a site, once the hub knows that it has a listener.
func siteToken(t *testing.T, hub *fleetbustest.Server, account, name string, networks ...string) string {
	t.Helper()
	var reply admin.TokenReply
	fleetbustest.Eventually(t, "the listener for sites is known", func() (err error) {
		reply, err = hub.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindLeaf, Account: account, Name: name, Networks: networks})
		if errors.Is(err, &admin.Error{Code: admin.Unavailable}) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
	return reply.Text
}

// joinSite makes the home of a site, with the options of a node.
func joinSite(t *testing.T, hub *fleetbustest.Server, name, token string) (fleetbus.Options, error) {
	t.Helper()
	o := fleetbustest.Options(t, name)
	client, err := enroll.Dial(limited(t, 10*time.Second), enroll.Join{Host: hub.Addr("nats").String(), Token: token})
	if err != nil {
		return o, err
	}
	defer client.Close()
	_, err = fleetbus.EnrollSite(o, name, func(r enroll.LeafRequest) (enroll.LeafReply, error) {
		return client.Leaf(limited(t, 10*time.Second), r)
	})
	return o, err
}

func launchSite(t *testing.T, o fleetbus.Options) *fleetbustest.Server {
	t.Helper()
	return fleetbustest.Launch(t, o, &fleetbus.Founded{
		AdminCreds: filepath.Join(o.Dir, "admin", "admin.creds"), CA: filepath.Join(o.Dir, "admin", "ca.pem"),
	})
}

// startSite joins a site of account acme to hub and starts it.
func startSite(t *testing.T, hub *fleetbustest.Server, name string) *fleetbustest.Server {
	t.Helper()
	o, err := joinSite(t, hub, name, siteToken(t, hub, "acme", name))
	if err != nil {
		t.Fatal(err)
	}
	site := launchSite(t, o)
	waitSite(t, hub, name, admin.SiteLinked)
	return site
}

// waitSite waits until the hub says that of a site of account acme.
func waitSite(t *testing.T, hub *fleetbustest.Server, name, state string) (site admin.Site) {
	t.Helper()
	fleetbustest.Eventually(t, "site "+name+" is "+state, func() error {
		all, err := hub.Admin().Sites(limited(t, 10*time.Second))
		if err != nil {
			return err
		}
		for _, site = range all {
			if site.Name == name && site.State == state && (site.Current || state != admin.SiteLinked) {
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	})
	return site
}

// passes waits until a message of subject goes from one connection to another.
func passes(t *testing.T, from, to *nats.Conn, subject string) {
	t.Helper()
	sub, err := to.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	fleetbustest.Eventually(t, "a message of "+subject+" passes", func() error {
		if err := errors.Join(to.Flush(), from.Publish(subject, nil)); err != nil {
			return err
		}
		_, err := sub.NextMsg(50 * time.Millisecond)
		return err
	})
}

// TestSite has a site work with its hub, without it, and with it again.
func TestSite(t *testing.T) {
	hub, w := startHub(t)
	alice, bob := hub.Creds("acme", "alice"), hub.Creds("acme", "bob")
	site := startSite(t, hub, "berlin")
	connect := func(s *fleetbustest.Server, creds string) *nats.Conn {
		t.Helper()
		nc, err := s.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	atHub, atSite, bobAtSite := connect(hub, alice), connect(site, alice), connect(site, bob)
	passes(t, atHub, atSite, "orders.new")
	passes(t, atSite, atHub, "orders.done")

	// Streams of the site have its domain, and the hub has what they have.
	here, err := jetstream.New(atSite)
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Stream(t, here, jetstream.StreamConfig{Name: "READINGS", Subjects: []string{"readings.>"}})
	there, err := jetstream.New(atHub)
	if err != nil {
		t.Fatal(err)
	}
	all := fleetbustest.Stream(t, there, jetstream.StreamConfig{Name: "ALL", Sources: []*jetstream.StreamSource{{Name: "READINGS", Domain: "berlin"}}})
	publish := func(n int) {
		t.Helper()
		for range n {
			if _, err := here.Publish(limited(t, 10*time.Second), "readings.a", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrive := func(n uint64) {
		t.Helper()
		began := time.Now()
		fleetbustest.Eventually(t, "the hub has what the site has", func() error {
			info, err := all.Info(limited(t, 10*time.Second))
			if err == nil && info.State.Msgs != n {
				err = fmt.Errorf("%d of %d messages", info.State.Msgs, n)
			}
			return err
		})
		t.Logf("the hub had all %d messages after %v", n, time.Since(began))
	}
	publish(10)
	arrive(10)

	// Who the site lets in by a password is good at the site alone.
	password, err := identity.HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.Admin().AddUser(limited(t, 10*time.Second), admin.UserRequest{Name: "acme/dave", Password: password}); err != nil {
		t.Fatal(err)
	}
	login := nats.UserInfo("acme/dave", "correct horse")
	dave, err := nats.Connect(site.URL(), nats.Secure(site.TLS()), login)
	if err != nil {
		t.Fatal(err)
	}
	defer dave.Close()
	passes(t, dave, atHub, "orders.dave")
	passes(t, atHub, dave, "orders.for.dave")
	if nc, err := nats.Connect(hub.URL(), nats.Secure(hub.TLS()), login); err == nil {
		nc.Close()
		t.Error("a password of the site is good at the hub")
	}
	if _, err := site.Admin().AddAccount(limited(t, 10*time.Second), admin.AccountRequest{Name: "acme", Limits: identity.Limits{Connections: 1}}); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("a site changes the limits of its hub's account: %v", err)
	}

	// A denial closes at the site, while it is linked, and once it is again.
	denied := func(nc *nats.Conn, name string) {
		t.Helper()
		began := time.Now()
		if _, err := hub.Admin().DenyUser(limited(t, 10*time.Second), "acme/"+name); err != nil {
			t.Fatal(err)
		}
		fleetbustest.Eventually(t, "the denied user is closed at the site", func() error {
			if !nc.IsClosed() {
				return errors.New("connected")
			}
			return nil
		})
		t.Logf("%s was closed after %v", name, time.Since(began))
	}
	carol := connect(site, hub.Creds("acme", "carol"))
	denied(carol, "carol")

	w.cut()
	waitSite(t, hub, "berlin", admin.SiteAway)
	if _, err := hub.Admin().DenyUser(limited(t, 10*time.Second), "acme/bob"); err != nil {
		t.Fatal(err)
	}
	publish(10)
	if err := bobAtSite.Flush(); err != nil {
		t.Errorf("a site that is cut off closed its users: %v", err)
	}
	connect(site, alice).Close()
	began := time.Now()
	w.join(hub.Addr("leaf").String())
	fleetbustest.Eventually(t, "the denial reaches the site", func() error {
		if bobAtSite.IsClosed() {
			return nil
		}
		return errors.New("bob is connected")
	})
	t.Logf("linked again, and bob closed, after %v", time.Since(began))
	if _, err := site.Connect(bob); err == nil {
		t.Error("a denied user of the hub came in at the site")
	}
	arrive(20)

	// The site starts and works without its hub.
	w.cut()
	site.Stop()
	site = site.Restart()
	atSite = connect(site, alice)
	if here, err = jetstream.New(atSite); err != nil {
		t.Fatal(err)
	}
	publish(10)
	if _, err := site.Connect(bob); err == nil {
		t.Error("a denied user of the hub came in at a site that does not reach it")
	}
	w.join(hub.Addr("leaf").String())
	waitSite(t, hub, "berlin", admin.SiteLinked)
	passes(t, atHub, atSite, "orders.new")

	// A renewal that is asked for at the site is for who asked.
	fleetbustest.Eventually(t, "alice is renewed at the site", func() error {
		renewed, err := admin.Renew(limited(t, 10*time.Second), atSite)
		if err == nil && renewed.User.Name != "alice" {
			t.Fatalf("alice's renewal at the site is of %v", renewed.User)
		}
		return err
	})
}

// TestSitesApart refuses whoever is no site, and a site that there is already.
func TestSitesApart(t *testing.T) {
	hub, _ := startHub(t)
	site := startSite(t, hub, "berlin")
	refused := func(what string, err error, code admin.Code, want string) {
		t.Helper()
		if !errors.Is(err, &admin.Error{Code: code}) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}

	// A name is one site's, whoever asks, and whenever.
	munich := siteToken(t, hub, "acme", "munich")
	again := siteToken(t, hub, "acme", "munich")
	o, err := joinSite(t, hub, "munich", munich)
	if err != nil {
		t.Fatal(err)
	}
	_, err = joinSite(t, hub, "munich", again)
	refused("a second site of a name", err, admin.Conflict, `site "acme/munich" exists: it joined at `)
	_, err = hub.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindLeaf, Account: "acme", Name: "munich"})
	refused("a token for a site that exists", err, admin.Conflict, `site "acme/munich" exists`)
	_, err = joinSite(t, hub, "munich", munich)
	refused("a used token", err, admin.Denied, "used")
	_, err = fleetbus.EnrollSite(o, "munich", nil)
	if !errors.Is(err, fleetbus.ErrInitialized) {
		t.Errorf("a site was made anew: %v", err)
	}

	// A site that was removed is closed, and its credentials with it.
	gone, err := hub.Admin().RemoveUser(limited(t, 10*time.Second), "acme/berlin")
	if err != nil || gone.Closed() != 1 {
		t.Errorf("removing a site closed %d links: %v", gone.Closed(), err)
	}
	fleetbustest.Eventually(t, "a removed site knows that its hub is away", func() error {
		status, err := site.Admin().Status(limited(t, 10*time.Second))
		if err == nil && status.Nodes[0].Uplink.State != admin.SiteAway {
			err = fmt.Errorf("%+v", status.Nodes[0].Uplink)
		}
		return err
	})
}

// TestSiteOfCluster has a site lose the node that it is linked to, and another pose
// as it at another node.
func TestSiteOfCluster(t *testing.T) {
	hub := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "leaf", Addr: "127.0.0.1:0", Protocol: fleetbus.Leaf()})
	})
	alice := hub[0].Creds("acme", "alice")
	fleetbustest.Eventually(t, "all nodes have a listener for sites", func() error {
		status, err := hub[0].Admin().Status(limited(t, 10*time.Second))
		if err != nil || slices.ContainsFunc(status.Nodes, func(n admin.NodeInfo) bool { return n.LeafAddr == "" }) {
			return fmt.Errorf("not yet: %w", err)
		}
		return nil
	})
	o, err := joinSite(t, hub[0], "berlin", siteToken(t, hub[0], "acme", "berlin"))
	if err != nil {
		t.Fatal(err)
	}
	stolen := o
	stolen.Dir, stolen.Listeners = filepath.Join(t.TempDir(), "data"), fleetbustest.Options(t, "berlin").Listeners
	if err := os.CopyFS(stolen.Dir, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"authority.json", "link.creds"} {
		if err := os.Chmod(filepath.Join(stolen.Dir, secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	site := launchSite(t, o)
	before := waitSite(t, hub[0], "berlin", admin.SiteLinked)
	holder := slices.IndexFunc(hub, func(s *fleetbustest.Server) bool { return s.Options.Name == before.Node })
	others := slices.Delete(slices.Clone(hub), holder, holder+1)

	// A denial by any node reaches it.
	bob, err := site.Connect(others[0].Creds("acme", "bob"), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer bob.Close()
	far, err := others[1].Connect(alice)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	passes(t, bob, far, "orders.bob")
	if _, err := others[1].Admin().DenyUser(limited(t, 10*time.Second), "acme/bob"); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "the denied user is closed at the site", func() error {
		if !bob.IsClosed() {
			return errors.New("connected")
		}
		return nil
	})

	// A copy of all that the site has serves nobody while the site is linked.
	thief := launchSite(t, stolen)
	fleetbustest.Eventually(t, "the second link of a site is a finding", func() error {
		for _, s := range hub {
			for _, f := range s.Check(limited(t, time.Second)) {
				if f.Code == "SITE-TWICE" && f.Subject == "acme/berlin" {
					return nil
				}
			}
		}
		return errors.New("there is none")
	})
	if now := waitSite(t, hub[0], "berlin", admin.SiteLinked); now.Remote != before.Remote {
		t.Errorf("the link of the site was %+v, and is %+v", before, now)
	}
	thief.Stop()

	hub[holder].Stop()
	near, err := site.Connect(alice)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	passes(t, far, near, "orders.new")
	if now := waitSite(t, others[0], "berlin", admin.SiteLinked); now.Node == before.Node {
		t.Errorf("the site is linked to %+v, which is down", now)
	}
}

// TestLinkStrangers dials the listener for sites with what is no site's.
func TestLinkStrangers(t *testing.T) {
	hub, _ := startHub(t)
	alice := hub.Creds("acme", "alice")
	password, err := identity.HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.Admin().AddUser(limited(t, 10*time.Second), admin.UserRequest{Name: "acme/bob", Password: password}); err != nil {
		t.Fatal(err)
	}
	addr := hub.Addr("leaf").String()
	for name, connect := range map[string]func(nonce string) map[string]string{
		"nobody":                   func(string) map[string]string { return map[string]string{} },
		"a creds file of a user":   func(nonce string) map[string]string { return signed(t, alice, nonce) },
		"a password":               func(string) map[string]string { return map[string]string{"user": "acme/bob", "pass": "correct horse"} },
		"an enrollment token":      func(string) map[string]string { return map[string]string{"auth_token": siteToken(t, hub, "acme", "x")} },
		"an administrator of hubs": func(nonce string) map[string]string { return signed(t, hub.Founded().AdminCreds, nonce) },
	} {
		t.Run(name, func(t *testing.T) {
			if all := link(t, hub, connect); !strings.Contains(all, "-ERR") || strings.Contains(all, "LS+") {
				t.Errorf("the hub answered %q", all)
			}
		})
	}

	// What is no TLS 1.3 gets nothing at all.
	old := hub.TLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if conn, err := tls.Dial("tcp", addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := plain.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(plain, "CONNECT {}\r\n"); err != nil {
		t.Fatal(err)
	}
	if all, _ := io.ReadAll(plain); strings.Contains(string(all), "INFO") {
		t.Errorf("without TLS the hub answered %q", all)
	}
}

// signed are a creds file and its signature of a nonce.
func signed(t *testing.T, path, nonce string) map[string]string {
	t.Helper()
	creds, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token, err := nkeys.ParseDecoratedJWT(creds)
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.ParseDecoratedNKey(creds)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign([]byte(nonce))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"jwt": token, "sig": base64.RawURLEncoding.EncodeToString(sig)}
}

// link dials the listener for sites, shows what connect makes of the hub's nonce,
// and returns what the hub says until it closes, or for a moment.
func link(t *testing.T, hub *fleetbustest.Server, connect func(nonce string) map[string]string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", hub.Addr("leaf").String(), hub.TLS())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		t.Fatal(err)
	}
	hello := connect(info.Nonce)
	hello["name"], hello["version"] = "stranger", "2.15.2"
	body, err := json.Marshal(hello)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s\r\nPING\r\n", body); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for line, err = in.ReadString('\n'); err == nil; line, err = in.ReadString('\n') {
		all.WriteString(line)
		if strings.HasPrefix(line, "PONG") {
			break
		}
	}
	return all.String()
}

// TestSiteNetworks has links come from where they may, and from where they may not.
func TestSiteNetworks(t *testing.T) {
	hub, _ := startHub(t)
	for name, network := range map[string]string{"near": "127.0.0.0/8", "far": "192.0.2.0/24"} {
		o, err := joinSite(t, hub, name, siteToken(t, hub, "acme", name, network))
		if err != nil {
			t.Fatal(err)
		}
		all := link(t, hub, func(nonce string) map[string]string { return signed(t, filepath.Join(o.Dir, "link.creds"), nonce) })
		if in := strings.Contains(all, "LS+"); in != (name == "near") {
			t.Errorf("the credentials of a site that may come from %s were answered by %q", network, all)
		}
	}
	_, err := hub.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindLeaf, Account: "acme", Name: "x", Networks: []string{"here"}})
	if !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("a network that is none: %v", err)
	}
}
