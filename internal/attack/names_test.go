package attack

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A journal is a test that keeps what its servers log.
type journal struct {
	testing.TB
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Output() io.Writer { return j }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) content() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// nasty are names that would do something to a terminal, a log or a page, if anything
// showed them as they are.
func nasty() []string {
	return []string{
		"evil\nlevel=ERROR msg=forged", "evil\r\nlevel=ERROR msg=forged\r\n", "evil\x1b[31mred\x1b[0m", "evil\x1b]0;title\a", "evil\x00null", "evil\u202ecod", "evil\u2028line", "evil\x7f\b\b\b",
		"evil\u009b2J", "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "%0d%0aevil", "../../../evil", "evil\xff\xfe", "${jndi:ldap://evil}", "%s%s%n", "'; drop table x; --", strings.Repeat("e", 10_000),
	}
}

// TestAttackNames has strangers and users call themselves, and what they make, by names that
// are made to do something where they are shown: to a log, in an event, in an answer.
func TestAttackNames(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withEverything)
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	user := "acme/alice"
	var seen journal
	auditor := s.Admin()
	events, err := s.Session(t.Context(), identity.Principal{Account: identity.FleetName, Name: "spy", Permissions: identity.Permissions{
		Subscribe: identity.Rule{Allow: []string{">", identity.Private + ">"}}, Publish: identity.Rule{Allow: []string{">"}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.Close)
	if _, err := events.Subscribe(identity.Private+">", func(m *nats.Msg) { fmt.Fprintf(&seen, "%s\n", m.Data) }); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, name := range nasty() {
		for _, as := range []shown{{user: name, password: "x"}, {user: "acme/" + name, password: "x"}, {token: name}} {
			for _, w := range ways() {
				tried++
				if err := w.enter(within(t, time.Minute), s, as); err == nil {
					t.Errorf("%s lets in %q", w.name, name)
				}
			}
		}
		// Names beside the user's.
		if nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.UserInfo(user, password), nats.Name(name)); err == nil {
			_ = nc.Publish("a", nil)
			nc.Close()
		}
		conn, err := tls.Dial("tcp", s.Addr("mqtt").String(), s.TLS())
		if err != nil {
			t.Fatal(err)
		}
		c := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: name, Username: &user, Password: packet.Secret(password), Will: &packet.Will{Message: packet.Message{Topic: []byte(name)}}}
		if b, err := c.Append(nil, packet.V5, 0); err == nil {
			_, _ = conn.Write(b)
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = conn.Read(make([]byte, 1000))
			_, _ = conn.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}) // an error, which is logged
			_, _ = io.Copy(io.Discard, conn)
		}
		conn.Close()
		rabbit, err := amqp091.DialConfig("amqps://"+s.Addr("amqp").String(), amqp091.Config{
			SASL: []amqp091.Authentication{&amqp091.PlainAuth{Username: user, Password: password}}, TLSClientConfig: s.TLS(), Vhost: "/",
			Properties: amqp091.Table{"product": name, "connection_name": name, "version": name},
		})
		if err == nil {
			if ch, err := rabbit.Channel(); err == nil && len(name) < 255 {
				_, _ = ch.QueueDeclare(name, true, false, false, false, amqp091.Table{name: name})
			}
			_ = rabbit.Close()
		}
		for _, l := range []string{"console", "sse", "metrics"} {
			r, err := http.NewRequestWithContext(within(t, time.Minute), http.MethodGet, "https://"+s.Addr(l).String()+"/"+url.PathEscape(name), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header["User-Agent"], r.Header["X-Forwarded-For"] = []string{url.QueryEscape(name)}, []string{url.QueryEscape(name)}
			transport := &http.Transport{TLSClientConfig: s.TLS()}
			if answer, err := (&http.Client{Transport: transport}).Do(r); err == nil {
				body, _ := io.ReadAll(answer.Body)
				answer.Body.Close()
				if strings.HasPrefix(answer.Header.Get("Content-Type"), "text/html") || bytes.Contains(body, []byte("<script>alert")) {
					t.Errorf("%s answers %q: %.200s", l, name, body)
				}
			}
			transport.CloseIdleConnections()
		}
		cert := issuer{}.issue(t, "acme/alice", nil, func(c *x509.Certificate) {
			c.Subject.CommonName, c.Subject.Organization = strings.ToValidUTF8(name, "?"), []string{"x"}
		})
		for _, l := range Listeners() {
			if !l.Clear {
				tried++
				config := showing(cert)
				_ = knock(s, l, 20*time.Second, shake(l, config))
			}
		}
		tried += 6
	}
	if _, err := auditor.Status(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	line := regexp.MustCompile(`^time=\S+ level=(DEBUG|INFO|WARN|ERROR) msg=`)
	lines := 0
	for in := bufio.NewScanner(strings.NewReader(j.content())); in.Scan(); lines++ {
		text := in.Text()
		if text != "" && !line.MatchString(text) || strings.HasPrefix(text, "level=ERROR msg=forged") {
			t.Errorf("a line of the log was made by somebody else: %.200q", text)
		}
		if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' }); i >= 0 {
			t.Errorf("a line of the log has a character that does something: %.200q", text)
		}
		if len(text) > 4000 {
			t.Errorf("a line of the log has %d bytes: %.100q", len(text), text)
		}
	}
	for in := bufio.NewScanner(strings.NewReader(seen.content())); in.Scan(); {
		if i := strings.IndexFunc(in.Text(), unicode.IsControl); i >= 0 {
			t.Errorf("an event has a character that does something: %.200q", in.Text())
		}
	}
	if lines < 100 || !strings.Contains(j.content(), "evil") {
		t.Errorf("the log has %d lines, and the test proves little", lines)
	}
	t.Logf("figure: every listener | names | %d tries with %d names, %d lines of the log without a character that does something", tried, len(nasty()), lines)
}

// TestAttackRequests sends the listeners of HTTPS requests that hide others, and paths that
// lead out of where they may; and has administrators make things by such names.
func TestAttackRequests(t *testing.T) {
	s := fleetbustest.Start(t, withEverything)
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	tried := 0
	for _, l := range Listeners() {
		if l.Name != "console" && l.Name != "sse" && l.Name != "metrics" {
			continue
		}
		for name, request := range map[string]string{
			"both lengths":            "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
			"both, the other first":   "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 40\r\n\r\n0\r\n\r\n" + hidden,
			"two lengths":             "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n" + hidden,
			"a list of lengths":       "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 40\r\n\r\n" + hidden,
			"a length with a sign":    "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n" + hidden,
			"a negative length":       "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" + hidden,
			"chunked twice":           "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
			"chunked, and not":        "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
			"chunked, with a space":   "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
			"chunked, in a tab":       "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
			"a chunk that overflows":  "POST /api/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + hidden,
			"two hosts":               "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
			"no host":                 "GET / HTTP/1.1\r\n\r\n",
			"a null in a header":      "GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
			"a line that ends early":  "GET / HTTP/1.1\r\nHost: x\r\nX: a\rContent-Length: 40\r\n\r\n",
			"a header without a name": "GET / HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n",
			"HTTP/0.9":                "GET /\r\n",
			"HTTP/9":                  "GET / HTTP/9.9\r\nHost: x\r\n\r\n",
			"CONNECT":                 "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n",
			"TRACE":                   "TRACE / HTTP/1.1\r\nHost: x\r\nX-Secret: mirrored\r\n\r\n",
			"another's page":          "GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
			"an upgrade to h2c":       "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		} {
			tried++
			var heard []byte
			err := knock(s, l, 20*time.Second, func(conn net.Conn) error {
				secure, err := secured(l, conn)
				if err != nil {
					return err
				}
				if _, err := io.WriteString(secure, request); err != nil {
					return err
				}
				_ = secure.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				heard, _ = io.ReadAll(secure)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(heard), "HTTP/1.1 "); n > 1 {
				t.Errorf("%s: %s: %d answers: %q", l.Name, name, n, heard)
			}
			if strings.Contains(string(heard), "mirrored") || strings.HasPrefix(string(heard), "HTTP/1.1 101") {
				t.Errorf("%s: %s: %q", l.Name, name, heard)
			}
		}
		for _, path := range []string{
			"/ui/../../../etc/passwd", "/ui/..%2f..%2f..%2fetc%2fpasswd", "/ui/%2e%2e/%2e%2e/etc/passwd", "/ui/....//....//etc/passwd", "/ui/..\\..\\etc\\passwd", "/ui//etc/passwd", "/ui/%00/etc/passwd", "/ui/console.go",
			"/../admin/admin.creds", "//etc/passwd", "/changes/..%2f..%2fetc", "/changes/%2e%2e", "/api/ask/..%2fdo%2fx", "/debug/pprof/", "/debug/vars", "/.git/config", "/authority.json", "/metrics/../authority.json",
		} {
			tried++
			var heard []byte
			if err := knock(s, l, 20*time.Second, func(conn net.Conn) error {
				secure, err := secured(l, conn)
				if err == nil {
					_, err = io.WriteString(secure, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
				}
				heard, _ = io.ReadAll(secure)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(`^HTTP/1.1 (3|4)\d\d `).Match(heard) || bytes.Contains(heard, []byte("root:")) || bytes.Contains(heard, []byte("Location: //")) {
				t.Errorf("%s: %s: %.200q", l.Name, path, heard)
			}
		}
	}
	before := tree(t, filepath.Dir(s.Options.Dir))
	api := s.Admin()
	for _, name := range append(nasty(), "..", ".", "/", "../x", "a/b", "a/../../b", "", "a.b", "*", ">", "a b", "$SYS", "node", "region", strings.Repeat("a", 64)) {
		ctx := within(t, time.Minute)
		for what, err := range map[string]error{
			"account":       second(api.AddAccount(ctx, admin.AccountRequest{Name: name})),
			"user":          second(api.AddUser(ctx, admin.UserRequest{Name: "acme/" + name})),
			"user's place":  second(api.AddUser(ctx, admin.UserRequest{Name: name + "/x"})),
			"role":          second(api.AddRole(ctx, identity.Role{Name: name})),
			"token":         second(api.AddToken(ctx, admin.TokenRequest{Kind: identity.KindUser, Account: "acme", Name: name})),
			"site":          second(api.AddToken(ctx, admin.TokenRequest{Kind: identity.KindLeaf, Account: "acme", Name: name})),
			"adapter":       second(api.AddAdapter(ctx, admin.AdapterRequest{Name: name, From: []string{"acme"}, Subject: "x.>", To: "evil", Stream: "S"})),
			"stream of one": second(api.AddAdapter(ctx, admin.AdapterRequest{Name: "ok", From: []string{"acme"}, Subject: "x.>", To: "evil", Stream: name})),
		} {
			tried++
			kept := name == "node" || name == "region" || what == "site" && name == "" || what == "stream of one" && (name == strings.Repeat("a", 64) || name == "node" || name == "region")
			if err == nil && !kept {
				t.Errorf("there is a %s %q", what, name)
			}
		}
	}
	for path := range tree(t, filepath.Dir(s.Options.Dir)) {
		if !before[path] && !strings.HasPrefix(path, s.Options.Dir) {
			t.Errorf("%s was made", path)
		}
	}
	t.Logf("figure: every listener of HTTPS | requests and paths | %d tries, no hidden request answered, nothing read or made outside", tried)
}

func second[T any](_ T, err error) error { return err }

// tree is what is in a directory.
func tree(t *testing.T, dir string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all[path] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
