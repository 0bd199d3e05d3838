package fleetbustest

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// A ProtocolContract is a protocol as TestProtocol tries it.
type ProtocolContract struct {
	// Protocol makes the protocol under test, for each node one.
	Protocol func() fleetbus.Protocol
	// Dial connects a client of the protocol and logs in: with user, account/name,
	// and password if user is not empty, else with the certificate in config. It
	// returns when the server has accepted or refused, or when ctx is done.
	Dial func(ctx context.Context, addr string, config *tls.Config, user, password string) (ProtocolClient, error)
}

// A ProtocolClient is a client that speaks the protocol under test. Subjects are
// those of NATS; the client turns them into what its protocol calls them. It
// need not be safe for concurrent use.
type ProtocolClient interface {
	// Publish sends text, and returns when the server has it. A protocol that
	// tells its clients of a refusal returns it.
	Publish(ctx context.Context, subject, text string) error
	// Subscribe returns when the server knows the subscription, or refused it.
	Subscribe(ctx context.Context, subject string) error
	// Receive returns the next message, or an error that is not ctx's when the
	// server has ended the connection.
	Receive(ctx context.Context) (subject, text string, err error)
	// Close ends the connection.
	Close() error
}

const (
	// protocolListener is the listener of the protocol under test.
	protocolListener = "contract"
	// strangerTimeout is how long a protocol may keep a connection that says
	// nothing, or nothing sensible, before it logs in.
	strangerTimeout = 15 * time.Second
)

// TestProtocol tries what every protocol owes: that its clients are the same
// principals, with the same permissions, as over NATS; that they are refused with
// one and the same text; that they go when they expire, are denied, or the node
// stops; and that strangers do not stay.
func TestProtocol(t *testing.T, c ProtocolContract) {
	nodes := StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: protocolListener, Addr: "127.0.0.1:0", Protocol: c.Protocol()})
	})
	p := &protocolTest{ProtocolContract: c, nodes: nodes}
	p.roles(t)
	t.Run("one principal", p.onePrincipal)
	t.Run("permissions", p.permissions)
	t.Run("accounts", p.accounts)
	t.Run("refusals", p.refusals)
	t.Run("listeners", p.listeners)
	t.Run("expiry", p.expiry)
	t.Run("denial", p.denial)
	t.Run("strangers", p.strangers)
	t.Run("stop", p.stop)
}

type protocolTest struct {
	ProtocolContract
	nodes []*Server
}

// Roles of the contract.
const (
	roleOrders = "contract-orders" // may use orders.<its name>.> only
	roleBrief  = "contract-brief"  // expires after briefLife
	roleHere   = "contract-here"   // may come in by the protocol's listener only
	roleNATS   = "contract-nats"   // may not

	briefLife = 5 * time.Second
)

func (p *protocolTest) roles(t *testing.T) {
	t.Helper()
	everything := identity.Rule{Allow: []string{">"}}
	own := identity.Rule{Allow: []string{"orders.{{name()}}.>"}}
	all := identity.Permissions{Publish: everything, Subscribe: everything}
	for _, r := range []identity.Role{
		{Name: roleOrders, Permissions: identity.Permissions{Publish: own, Subscribe: own}},
		{Name: roleBrief, Permissions: all, Expires: briefLife},
		{Name: roleHere, Permissions: all, Listeners: []string{protocolListener}},
		{Name: roleNATS, Permissions: all, Listeners: []string{"nats"}},
	} {
		if _, err := p.nodes[0].Admin().AddRole(soon(t), r); err != nil {
			t.Fatal(err)
		}
	}
}

// dial logs in at a node of the cluster.
func (p *protocolTest) dial(t *testing.T, node int, config *tls.Config, user, password string) (ProtocolClient, error) {
	t.Helper()
	client, err := p.Dial(soon(t), p.nodes[node].Addr(protocolListener).String(), config, user, password)
	if err == nil {
		t.Cleanup(func() { client.Close() })
	}
	return client, err
}

// login is dial with a password, for a user who has to be let in.
func (p *protocolTest) login(t *testing.T, node int, user, password string) ProtocolClient {
	t.Helper()
	client, err := p.dial(t, node, p.nodes[node].TLS(), user, password)
	if err != nil {
		t.Fatalf("logging in as %q: %v", user, err)
	}
	return client
}

func (p *protocolTest) onePrincipal(t *testing.T) {
	s := p.nodes[0]
	user := "one/alice"
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: user, Role: roleOrders})}
	byCertificate, err := p.dial(t, 0, config, "", "")
	if err != nil {
		t.Fatalf("logging in with a certificate: %v", err)
	}
	byPassword := p.login(t, 0, user, s.Password(admin.UserRequest{Name: user}))
	byNATS, err := nats.Connect(s.URL(), nats.Secure(config))
	if err != nil {
		t.Fatal(err)
	}
	defer byNATS.Close()
	heard, err := byNATS.SubscribeSync("orders.alice.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := byNATS.Flush(); err != nil {
		t.Fatal(err)
	}
	for how, client := range map[string]ProtocolClient{"certificate": byCertificate, "password": byPassword} {
		if err := client.Subscribe(soon(t), "orders.alice."+how); err != nil {
			t.Fatalf("%s: subscribing: %v", how, err)
		}
		if err := byNATS.Publish("orders.alice."+how, []byte("to "+how)); err != nil {
			t.Fatal(err)
		}
		expect(t, client, "orders.alice."+how, "to "+how)
		if _, err := heard.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("%s: its own message: %v", how, err)
		}
		if err := client.Publish(soon(t), "orders.alice.from", "by "+how); err != nil {
			t.Fatalf("%s: publishing: %v", how, err)
		}
		msg, err := heard.NextMsg(5 * time.Second)
		if err != nil || string(msg.Data) != "by "+how {
			t.Fatalf("%s: NATS heard %v, %v", how, msg, err)
		}
	}
	info, err := s.Admin().User(soon(t), user)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Connections) != 3 {
		t.Errorf("the principal has the connections %+v", info.Connections)
	}
}

// permissions tries to publish and to subscribe where the role does not allow it.
// Whatever the client is told, nothing may come of it.
func (p *protocolTest) permissions(t *testing.T) {
	s := p.nodes[0]
	user := "rules/bob"
	client := p.login(t, 0, user, s.Password(admin.UserRequest{Name: user, Role: roleOrders}))
	witness := s.Dial("rules", "witness")
	all, err := witness.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := witness.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"orders.alice.new", "other", "orders.bob", "$JS.API.INFO", "$SYS.REQ.SERVER.PING"} {
		err := client.Publish(soon(t), subject, "forbidden")
		t.Logf("publishing to %q: %v", subject, err)
		// A protocol may end the connection of who breaks the rules.
		client = p.again(t, client, user)
		if err := client.Publish(soon(t), "orders.bob.mark", subject); err != nil {
			t.Fatalf("publishing to what is allowed: %v", err)
		}
		for marked := false; !marked; {
			msg, err := all.NextMsg(5 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			marked = msg.Subject == "orders.bob.mark"
			if !marked && msg.Subject != "orders.bob.alive" && !(engines(msg.Subject) && string(msg.Data) != "forbidden") {
				t.Errorf("a forbidden publish was heard as %q %q", msg.Subject, msg.Data)
			}
		}
	}
	err = client.Subscribe(soon(t), "orders.alice.>")
	t.Logf("subscribing to another's subjects: %v", err)
	client = p.again(t, client, user)
	if err := client.Subscribe(soon(t), "orders.bob.>"); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"orders.alice.new", "orders.bob.new"} {
		if err := witness.Publish(subject, []byte("seen")); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, client, "orders.bob.new", "seen")
}

// again is client, or another of the user if that one was disconnected.
func (p *protocolTest) again(t *testing.T, client ProtocolClient, user string) ProtocolClient {
	t.Helper()
	//lint:ignore SA4000 the first write to a closed connection can succeed
	if client.Publish(soon(t), "orders.bob.alive", "") == nil && client.Publish(soon(t), "orders.bob.alive", "") == nil {
		return client
	}
	return p.login(t, 0, user, p.nodes[0].Password(admin.UserRequest{Name: user}))
}

// accounts tries to hear another account.
func (p *protocolTest) accounts(t *testing.T) {
	s := p.nodes[0]
	ours := p.login(t, 0, "left/ann", s.Password(admin.UserRequest{Name: "left/ann"}))
	theirs := p.login(t, 0, "right/ann", s.Password(admin.UserRequest{Name: "right/ann"}))
	nc := s.Dial("right", "ben")
	heard, err := nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Subscribe(soon(t), "news.>"); err != nil {
		t.Fatal(err)
	}
	if err := ours.Publish(soon(t), "news.left", "secret"); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Publish(soon(t), "news.right", "open"); err != nil {
		t.Fatal(err)
	}
	expect(t, theirs, "news.right", "open")
	msg, err := heard.NextMsg(5 * time.Second)
	for err == nil && engines(msg.Subject) {
		msg, err = heard.NextMsg(5 * time.Second)
	}
	if err != nil || msg.Subject != "news.right" {
		t.Errorf("the other account heard %v, %v", msg, err)
	}
}

// engines reports whether a subject is the engine's, of a request to it or of its
// answer.
func engines(subject string) bool {
	return strings.HasPrefix(subject, "$JS.") || strings.HasPrefix(subject, "_INBOX.")
}

// refusals compares what the refused are told.
func (p *protocolTest) refusals(t *testing.T) {
	s := p.nodes[0]
	password := s.Password(admin.UserRequest{Name: "shut/carol"})
	denied := s.Password(admin.UserRequest{Name: "shut/dan"})
	if _, err := s.Admin().DenyUser(soon(t), "shut/dan"); err != nil {
		t.Fatal(err)
	}
	texts := map[string]bool{}
	for _, c := range []struct{ user, password string }{
		{"shut/carol", "wrong"}, {"shut/carol", ""}, {"shut/nobody", password}, {"nowhere/carol", password},
		{"shut/dan", denied}, {"carol", password}, {"shut/carol/more", password}, {"SYS/system", password}, {"FLEET/admin", password},
	} {
		_, err := p.dial(t, 0, s.TLS(), c.user, c.password)
		if err == nil {
			t.Errorf("user %q was let in with password %q", c.user, c.password)
			continue
		}
		texts[err.Error()] = true
	}
	if _, err := p.dial(t, 0, s.TLS(), "", ""); err == nil {
		t.Error("a client without credentials was let in")
	}
	if len(texts) != 1 {
		t.Errorf("what the refused are told tells them apart: %v", texts)
	}
	for text := range texts {
		for _, leak := range []string{"denied", "password", "no user", "account"} {
			if strings.Contains(text, leak) {
				t.Errorf("the refused are told %q", text)
			}
		}
	}
}

func (p *protocolTest) listeners(t *testing.T) {
	s := p.nodes[0]
	for _, c := range []struct {
		role     string
		protocol bool
	}{{roleHere, true}, {roleNATS, false}} {
		user := "doors/" + c.role
		password := s.Password(admin.UserRequest{Name: user, Role: c.role})
		if _, err := p.dial(t, 0, s.TLS(), user, password); (err == nil) != c.protocol {
			t.Errorf("role %q came in by the protocol: %v", c.role, err)
		}
		nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.UserInfo(user, password))
		if err == nil {
			nc.Close()
		}
		if (err == nil) == c.protocol {
			t.Errorf("role %q came in by NATS: %v", c.role, err)
		}
	}
}

func (p *protocolTest) expiry(t *testing.T) {
	s := p.nodes[0]
	password := s.Password(admin.UserRequest{Name: "brief/eve", Role: roleBrief})
	began := time.Now()
	client := p.login(t, 0, "brief/eve", password)
	ends(t, "an expired session", client)
	if lasted := time.Since(began); lasted < briefLife-2*time.Second || lasted > briefLife+5*time.Second {
		t.Errorf("a session of %v ended after %v", briefLife, lasted)
	}
}

// denial denies a user who is connected to every node, by each credential.
func (p *protocolTest) denial(t *testing.T) {
	s := p.nodes[0]
	user := "gone/frank"
	password := s.Password(admin.UserRequest{Name: user})
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: user})}
	creds := s.Creds("gone", "frank")
	var clients []ProtocolClient
	var conns []*nats.Conn
	for i, n := range p.nodes {
		clients = append(clients, p.login(t, i, user, password))
		byCertificate, err := p.dial(t, i, config, "", "")
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, byCertificate)
		for _, way := range [][]nats.Option{
			{nats.Secure(s.TLS()), nats.UserInfo(user, password)},
			{nats.Secure(s.TLS()), nats.UserCredentials(creds)},
			{nats.Secure(config)},
		} {
			nc, err := nats.Connect(n.URL(), append(way, nats.NoReconnect())...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			conns = append(conns, nc)
		}
	}
	bystander := p.login(t, 0, "gone/grace", s.Password(admin.UserRequest{Name: "gone/grace"}))
	spread, err := p.nodes[1].Admin().DenyUser(soon(t), user)
	if err != nil {
		t.Fatal(err)
	}
	if len(spread.Nodes) != len(p.nodes) || spread.Closed() != len(clients)+len(conns) {
		t.Errorf("the denial of %d clients acted as %+v", len(clients)+len(conns), spread)
	}
	for _, client := range clients {
		ends(t, "a denied session", client)
	}
	for _, nc := range conns {
		Eventually(t, "a denied connection closes", func() error {
			if !nc.IsClosed() {
				return errors.New("it is open")
			}
			return nil
		})
	}
	for i, n := range p.nodes {
		if _, err := p.dial(t, i, n.TLS(), user, password); err == nil {
			t.Errorf("a denied user was let in by node %d", i)
		}
	}
	if err := bystander.Publish(soon(t), "still", "here"); err != nil {
		t.Errorf("another user suffered: %v", err)
	}
}

// strangers complete the handshake and then do nothing, or nothing sensible, all at
// once: what they wait for is the protocol's patience.
func (p *protocolTest) strangers(t *testing.T) {
	s := p.nodes[0]
	var waiting sync.WaitGroup
	for name, opening := range map[string]string{
		"silent": "", "zeros": strings.Repeat("\x00", 256), "ones": strings.Repeat("\xff", 256),
		"endless": strings.Repeat("A", 1<<20), "lines": strings.Repeat("\r\n", 4096),
	} {
		conn, err := (&tls.Dialer{Config: s.TLS()}).DialContext(soon(t), "tcp", s.Addr(protocolListener).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(strangerTimeout)); err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() {
			// The server may close before it has read all.
			_, _ = io.WriteString(conn, opening)
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("%s: the connection was still there after %v", name, strangerTimeout)
			}
		})
	}
	waiting.Wait()
}

// stop stops a node with clients. That nothing is left behind is StartCluster's
// to find out.
func (p *protocolTest) stop(t *testing.T) {
	last := len(p.nodes) - 1
	client := p.login(t, last, "end/heidi", p.nodes[0].Password(admin.UserRequest{Name: "end/heidi"}))
	p.nodes[last].Stop()
	ends(t, "a session of a stopped node", client)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// expect receives one message.
func expect(t *testing.T, client ProtocolClient, subject, text string) {
	t.Helper()
	gotSubject, gotText, err := client.Receive(soon(t))
	if err != nil || gotSubject != subject || gotText != text {
		t.Fatalf("received %q %q, %v; want %q %q", gotSubject, gotText, err, subject, text)
	}
}

// ends waits until the server has ended the client's connection.
func ends(t *testing.T, what string, client ProtocolClient) {
	t.Helper()
	ctx := soon(t)
	if _, _, err := client.Receive(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("%s did not end: %v", what, err)
	}
}

// soon is a context for one step of a test.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// User makes what r asks for, and the account, if they are missing.
func (s *Server) User(r admin.UserRequest) admin.UserReply {
	s.t.Helper()
	nc, err := s.Connect(s.founded.AdminCreds)
	if err != nil {
		s.t.Fatal(err)
	}
	defer nc.Close()
	api := admin.New(nc)
	ctx, cancel := context.WithTimeout(s.t.Context(), startTimeout)
	defer cancel()
	account, _, _ := strings.Cut(r.Name, "/")
	if _, err := api.Account(ctx, account); account != identity.FleetName && err != nil {
		if _, err := api.AddAccount(ctx, admin.AccountRequest{Name: account}); err != nil {
			s.t.Fatal(err)
		}
	}
	reply, err := api.AddUser(ctx, r)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply
}

// Password makes the user of r, if it is missing, and gives it a password.
func (s *Server) Password(r admin.UserRequest) string {
	s.t.Helper()
	password := "password of " + r.Name
	var err error
	if r.Password, err = identity.HashPassword(password); err != nil {
		s.t.Fatal(err)
	}
	s.User(r)
	return password
}

// Certificate makes the user of r, if it is missing, and returns a client
// certificate of the built-in authority with its key.
func (s *Server) Certificate(r admin.UserRequest) tls.Certificate {
	s.t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		s.t.Fatal(err)
	}
	r.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
	cert := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode([]byte(s.User(r).Chain)); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert
}
