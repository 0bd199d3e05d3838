package attack

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// errNever says that a connection did not end.
var errNever = errors.New("it is still there")

// stayNATS, and what follows it, come in and return when the connection ends, with why nobody
// was let in.
func stayNATS(ctx context.Context, s node, with shown) error {
	over := make(chan struct{})
	nc, err := dialNATS(s, with, nats.ClosedHandler(func(*nats.Conn) { close(over) }), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return err
	}
	defer nc.Close()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return errNever
	}
}

func stayMQTT(ctx context.Context, s node, with shown) error {
	conn, answer, err := dialMQTT(s, with, with.user)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, ok := answer.(*packet.Connack); !ok {
		return errOut
	}
	until, _ := ctx.Deadline()
	_ = conn.SetDeadline(until)
	return ended(io.Copy(io.Discard, conn))
}

func stayAMQP(ctx context.Context, s node, with shown) error {
	conn, err := dialAMQP(s, with)
	if err != nil {
		return err
	}
	over := conn.NotifyClose(make(chan *amqp091.Error, 1))
	defer conn.Close()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return errNever
	}
}

// stayWeb opens a stream of server-sent events.
func stayWeb(ctx context.Context, client *http.Client, url string, with shown) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if with.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+with.bearer)
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errOut
	}
	for in := bufio.NewScanner(answer.Body); in.Scan(); {
		if strings.Contains(in.Text(), "event: over") {
			return nil // the console says so, and leaves the rest to the page
		}
	}
	if ctx.Err() != nil {
		return errNever
	}
	return nil
}

func staySSE(ctx context.Context, s node, with shown) error {
	transport := &http.Transport{TLSClientConfig: with.config(s)}
	defer transport.CloseIdleConnections()
	return stayWeb(ctx, &http.Client{Transport: transport}, "https://"+s.Addr("sse").String()+"/changes/x", with)
}

func stayConsole(ctx context.Context, s node, with shown) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: with.config(s)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Jar: jar}
	if _, err := visit(ctx, s, client, "", ""); err != nil {
		return err
	}
	return stayWeb(ctx, client, "https://"+s.Addr("console").String()+"/api/live?feeds=", with)
}

// ended takes the end of a connection for one, but for the end of patience.
func ended(_ int64, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errNever
	}
	return nil
}

// TestAttackExpiry has each listener see each kind of credential end while its connection is
// there, which ends with it, and shown again afterwards, stolen or not.
func TestAttackExpiry(t *testing.T) {
	const life = 25 * time.Second
	s := fleetbustest.Start(t, withEverything)
	began := time.Now()
	bearer := func(name string) shown {
		text, hash, err := identity.NewBearer("acme", name)
		if err != nil {
			t.Fatal(err)
		}
		s.User(admin.UserRequest{Name: "acme/" + name, Bearer: hash, Expires: life})
		return shown{user: "acme/" + name, bearer: text}
	}
	certificate := func(name string) shown {
		cert := s.Certificate(admin.UserRequest{Name: "acme/" + name, Expires: life})
		return shown{cert: &cert}
	}
	token := func(name string) shown {
		public, seed, err := identity.NewUserKey()
		if err != nil {
			t.Fatal(err)
		}
		reply := s.User(admin.UserRequest{Name: "acme/" + name, Key: public, Expires: life})
		creds, err := identity.CreateCreds(reply.JWT, seed)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name+".creds")
		if err := os.WriteFile(path, creds, 0o600); err != nil {
			t.Fatal(err)
		}
		return shown{creds: path}
	}
	once := bearer("web")
	once.user = ""
	enter := map[string]func(context.Context, node, shown) error{}
	for _, w := range ways() {
		enter[w.name] = w.enter
	}
	cases := []struct {
		on, kind string
		with     shown
		stay     func(context.Context, node, shown) error
	}{
		{"nats", "credentials", token("one"), stayNATS},
		{"nats", "certificate", certificate("two"), stayNATS},
		{"mqtt", "bearer token", bearer("three"), stayMQTT},
		{"mqtt", "certificate", certificate("four"), stayMQTT},
		{"amqp", "bearer token", bearer("five"), stayAMQP},
		{"amqp", "certificate", certificate("six"), stayAMQP},
		{"sse", "bearer token", once, staySSE},
		{"sse", "certificate", certificate("seven"), staySSE},
		{"console", "certificate", certificate("eight"), stayConsole},
		{"metrics", "bearer token", once, nil}, // each request is a login
	}
	made := time.Now()
	ctx := within(t, time.Until(made.Add(life+slack)))
	var all sync.WaitGroup
	for _, c := range cases {
		if c.stay == nil {
			continue
		}
		all.Go(func() {
			err := c.stay(ctx, s, c.with)
			at := time.Since(began)
			if err != nil {
				t.Errorf("%s: who has a %s that ends: %v", c.on, c.kind, err)
			} else if at < life/2 {
				t.Errorf("%s: who has a %s was sent away after %v", c.on, c.kind, at)
			}
			t.Logf("figure: %s | a %s that ends after %v | its connection ended %.1f s after all were made", c.on, c.kind, life, time.Since(made).Seconds())
		})
	}
	all.Wait()
	// The last of them was made at made.
	wait := time.NewTimer(time.Until(made.Add(life + time.Second)))
	defer wait.Stop()
	<-wait.C
	for _, c := range cases {
		if err := enter[c.on](within(t, time.Minute), s, c.with); err == nil || errors.Is(err, errOften) {
			t.Errorf("%s: who shows an expired %s: %v", c.on, c.kind, err)
		}
	}
}

// TestAttackTokens shows JWTs that nobody signed who may, by every way to say so.
func TestAttackTokens(t *testing.T) {
	s := fleetbustest.Start(t, withEverything)
	good, err := os.ReadFile(s.Creds("acme", "alice"))
	if err != nil {
		t.Fatal(err)
	}
	right, err := nkeys.ParseDecoratedJWT(good)
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.ParseDecoratedUserNKey(good)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeUserClaims(right)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(by nkeys.KeyPair, edit func(*jwt.UserClaims)) string {
		c := *claims
		edit(&c)
		text, err := c.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	parts := strings.Split(right, ".")
	const none = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0" // {"typ":"JWT","alg":"none"}
	const hmac = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9"
	enter := func(token string) error {
		nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.NoReconnect(), nats.Timeout(30*time.Second), nats.UserJWT(func() (string, error) { return token, nil }, key.Sign))
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := enter(right); err != nil {
		t.Fatalf("the right one: %v", err)
	}
	tried := 0
	for name, token := range map[string]string{
		"no algorithm":                       none + "." + parts[1] + "." + parts[2],
		"no algorithm, and no signature":     none + "." + parts[1] + ".",
		"another algorithm":                  hmac + "." + parts[1] + "." + parts[2],
		"no signature":                       parts[0] + "." + parts[1] + ".",
		"half of a signature":                parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])/2],
		"two parts":                          parts[0] + "." + parts[1],
		"four parts":                         right + "." + parts[2],
		"signed by another account":          sign(stranger, func(*jwt.UserClaims) {}),
		"signed by another, for the account": sign(stranger, func(c *jwt.UserClaims) { c.IssuerAccount = claims.IssuerAccount }),
		"signed by the user itself":          selfSigned(t, claims, key),
		"a bearer's, that needs no key":      sign(stranger, func(c *jwt.UserClaims) { c.BearerToken = true }),
		"that has ended":                     sign(stranger, func(c *jwt.UserClaims) { c.Expires = time.Now().Add(-time.Hour).Unix() }),
		"that has not begun":                 sign(stranger, func(c *jwt.UserClaims) { c.NotBefore = time.Now().Add(time.Hour).Unix() }),
		"empty":                              "",
		"very long":                          parts[0] + "." + strings.Repeat("a", 200_000) + "." + parts[2],
	} {
		tried++
		if err := enter(token); err == nil {
			t.Errorf("nats lets in who shows a JWT: %s", name)
		}
		// Others take none, wherever it is put.
		for _, w := range ways()[1:] {
			tried++
			with := shown{user: "acme/alice", password: token}
			if w.name == "sse" || w.name == "metrics" {
				with = shown{bearer: token}
			}
			if len(token) > 5000 {
				continue // no client can say it everywhere
			}
			if err := w.enter(within(t, time.Minute), s, with); err == nil {
				t.Errorf("%s lets in who shows a JWT: %s", w.name, name)
			}
		}
	}
	t.Logf("figure: every listener | JWTs that nobody signed who may | %d shown, none let in", tried)
}

// selfSigned are claims that a user's own key signed, which the library would not do.
func selfSigned(t *testing.T, claims *jwt.UserClaims, key nkeys.KeyPair) string {
	t.Helper()
	c := *claims
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(text, ".")
	body := rewrite(t, parts[1], issuer, public)
	signature, err := key.Sign([]byte(parts[0] + "." + body))
	if err != nil {
		t.Fatal(err)
	}
	return parts[0] + "." + body + "." + encode(signature)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// rewrite puts one text in the place of another in a part of a JWT.
func rewrite(t *testing.T, part, from, to string) string {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	return encode([]byte(strings.ReplaceAll(string(text), from, to)))
}
