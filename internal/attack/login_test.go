package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// shown is what somebody shows who wants to come in.
type shown struct {
	cert           *tls.Certificate
	user, password string
	bearer, token  string
	creds, link    string
}

// errOut says that somebody was not let in.
var errOut = errors.New("not let in")

// errOften says that nobody looked at what somebody showed.
var errOften = errors.New("too many logins failed")

// A node is one in this process, or in another.
type node interface {
	Addr(listener string) net.Addr
	URL() string
	TLS() *tls.Config
}

// A way in is a listener that knows who comes.
type way struct {
	name  string
	enter func(ctx context.Context, s node, with shown) error
}

func (with shown) config(s node) *tls.Config {
	config := s.TLS()
	if with.cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return with.cert, nil }
	}
	return config
}

// asPassword is what a protocol sends that has one place for secrets.
func (with shown) asPassword() string {
	for _, s := range []string{with.password, with.bearer, with.token, with.link} {
		if s != "" {
			return s
		}
	}
	return ""
}

func ways() []way {
	return []way{{"nats", enterNATS}, {"mqtt", enterMQTT}, {"amqp", enterAMQP}, {"console", enterConsole}, {"sse", enterWeb("sse", "/changes/x")}, {"metrics", enterWeb("metrics", "/metrics")}}
}

func dialNATS(s node, with shown, opts ...nats.Option) (*nats.Conn, error) {
	opts = append(opts, nats.Secure(with.config(s)), nats.Timeout(30*time.Second), nats.NoReconnect())
	switch {
	case with.creds != "":
		opts = append(opts, nats.UserCredentials(with.creds))
	case with.user != "":
		opts = append(opts, nats.UserInfo(with.user, with.asPassword()))
	case with.asPassword() != "":
		opts = append(opts, nats.Token(with.asPassword()))
	}
	return nats.Connect(s.URL(), opts...)
}

func enterNATS(_ context.Context, s node, with shown) error {
	nc, err := dialNATS(s, with)
	if err == nil {
		nc.Close()
	}
	return err
}

// dialMQTT returns the connection of a client with that identifier, with what it was answered,
// unless that is a refusal.
func dialMQTT(s node, with shown, id string) (_ net.Conn, answer packet.Packet, err error) {
	conn, err := tls.Dial("tcp", s.Addr("mqtt").String(), with.config(s))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	c := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id, Password: packet.Secret(with.asPassword())}
	if with.user != "" {
		c.Username = &with.user
	}
	b, err := c.Append(nil, packet.V5, 0)
	if err != nil {
		return nil, nil, errors.Join(errOut, err) // no client can say it
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(b); err != nil {
		return nil, nil, err
	}
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version = packet.V5
	answer, err = r.Next()
	if ack, ok := answer.(*packet.Connack); ok && ack.Code != packet.Success {
		return nil, nil, fmt.Errorf("%w: %v", errOut, ack.Code)
	}
	return conn, answer, err
}

func enterMQTT(_ context.Context, s node, with shown) error {
	conn, _, err := dialMQTT(s, with, "x")
	if err == nil {
		conn.Close()
	}
	return err
}

func dialAMQP(s node, with shown) (*amqp091.Connection, error) {
	sasl := []amqp091.Authentication{&amqp091.PlainAuth{Username: with.user, Password: with.asPassword()}}
	if with.cert != nil && with.user == "" {
		sasl[0] = &amqp091.ExternalAuth{}
	}
	return amqp091.DialConfig("amqps://"+s.Addr("amqp").String()+"/", amqp091.Config{SASL: sasl, TLSClientConfig: with.config(s), Vhost: "/", Dial: amqp091.DefaultDial(30 * time.Second)})
}

func enterAMQP(_ context.Context, s node, with shown) error {
	conn, err := dialAMQP(s, with)
	if err == nil {
		_ = conn.Close()
	}
	return err
}

func enterConsole(ctx context.Context, s node, with shown) error {
	body, err := json.Marshal(map[string]string{"user": with.user, "password": with.asPassword(), "link": with.link})
	if err != nil {
		return err
	}
	code, err := ask(ctx, s, with, http.MethodPost, "console", "/api/login", bytes.NewReader(body))
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%w: %d", errOut, code)
		if code == http.StatusTooManyRequests {
			err = errOften
		}
	}
	return err
}

// enterWeb comes in by a listener of HTTPS that has no login of its own.
func enterWeb(listener, path string) func(context.Context, node, shown) error {
	return func(ctx context.Context, s node, with shown) error {
		code, err := ask(ctx, s, with, http.MethodGet, listener, path, nil)
		if err == nil && code == http.StatusUnauthorized {
			err = errOut
		}
		return err
	}
}

func ask(ctx context.Context, s node, with shown, method, listener, path string, body io.Reader) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+s.Addr(listener).String()+path, body)
	if err != nil {
		return 0, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if with.user != "" {
		r.SetBasicAuth(with.user, with.asPassword())
	} else if secret := with.asPassword(); secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	// From another network each time: what is tried is the credentials, and not how often.
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+rand.IntN(250)), byte(rand.IntN(250)), 1)}}
	transport := &http.Transport{TLSClientConfig: with.config(s), DialContext: from.DialContext}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return 0, err
	}
	answer.Body.Close()
	return answer.StatusCode, nil
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// mixed are the credentials of one user, with the key of another.
func mixed(t *testing.T, token, key string) string {
	t.Helper()
	one, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	seed := func(creds []byte) []byte {
		pair, err := nkeys.ParseDecoratedNKey(creds)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		return seed
	}
	creds := bytes.Replace(one, seed(one), seed(two), 1)
	path := filepath.Join(t.TempDir(), "mixed.creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// forged is a JWT whose claims say another name, under the signature that it had.
func forged(t *testing.T, creds string) string {
	t.Helper()
	data, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := nkeys.ParseDecoratedJWT(data)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(jwt, ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(claims, []byte("alice"), []byte("admin"), 1))
	path := filepath.Join(t.TempDir(), "forged.creds")
	if err := os.WriteFile(path, bytes.Replace(data, []byte(jwt), []byte(strings.Join(parts, ".")), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAttackLogins shows at every listener that knows who comes what is not good, or not
// for that: stolen, used, withdrawn, of another kind, of another user, of nobody.
func TestAttackLogins(t *testing.T) {
	strange := fleetbustest.Start(t)
	strangeCreds := strange.Creds("acme", "carol")
	strange.Stop()
	s := fleetbustest.Start(t, withEverything)
	ctx, api := within(t, 4*time.Minute), s.Admin()
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	other := s.Password(admin.UserRequest{Name: "evil/bob"})
	cert := s.Certificate(admin.UserRequest{Name: "acme/alice"})
	bearer := func(account, name string) string {
		text, hash, err := identity.NewBearer(account, name)
		if err != nil {
			t.Fatal(err)
		}
		s.User(admin.UserRequest{Name: account + "/" + name, Bearer: hash})
		return text
	}
	withdrawn, theirs := bearer("acme", "alice"), bearer("evil", "bob")
	good := bearer("acme", "alice") // in the place of the first
	creds, theirCreds := s.Creds("acme", "carol"), s.Creds("evil", "dave")
	alice := s.Creds("acme", "alice2")
	hash, err := identity.HashPassword(password)
	if err != nil {
		t.Fatal(err)
	}
	s.User(admin.UserRequest{Name: "acme/hashed", Password: hash})
	// The one that is denied, by everything.
	denied := shown{user: "acme/mallory", password: s.Password(admin.UserRequest{Name: "acme/mallory"})}
	deniedCert := s.Certificate(admin.UserRequest{Name: "acme/mallory"})
	deniedBearer, deniedCreds := bearer("acme", "mallory"), s.MoreCreds("acme", "mallory")
	if _, err := api.DenyUser(ctx, "acme/mallory"); err != nil {
		t.Fatal(err)
	}
	token := func(kind identity.Kind, account, name string) admin.TokenReply {
		reply, err := api.AddToken(ctx, admin.TokenRequest{Kind: kind, Account: account, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	ofUser, ofNode := token(identity.KindUser, "acme", "eve"), token(identity.KindNode, "", "")
	revoked := token(identity.KindUser, "acme", "frank")
	if _, err := api.RevokeToken(ctx, revoked.ID); err != nil {
		t.Fatal(err)
	}
	loginLink := func() string {
		made, err := api.LoginLink(ctx, "acme/alice")
		if err != nil {
			t.Fatal(err)
		}
		_, secret, _ := strings.Cut(made.URL, "#login=")
		return secret
	}
	_, nobody, _ := wrongCertificates(t, s, strange)

	for _, w := range ways() {
		rights := map[string]shown{"certificate": {cert: &cert}, "password": {user: "acme/alice", password: password}, "bearer token": {user: "acme/alice", bearer: good}}
		if w.name == "console" || w.name == "nats" { // they take none
			delete(rights, "bearer token")
		}
		if w.name == "sse" || w.name == "metrics" {
			rights["bearer token"] = shown{bearer: good}
		}
		for name, with := range rights {
			if err := w.enter(ctx, s, with); err != nil {
				t.Errorf("%s: the right %s: %v", w.name, name, err)
			}
		}
	}
	if err := enterNATS(ctx, s, shown{creds: creds}); err != nil {
		t.Errorf("nats: the right credentials: %v", err)
	}
	used := loginLink()
	if err := enterConsole(ctx, s, shown{link: used}); err != nil {
		t.Errorf("console: the right login link: %v", err)
	}

	wrong := map[string]shown{
		"nothing":                             {},
		"a wrong password":                    {user: "acme/alice", password: "guess"},
		"no password":                         {user: "acme/alice"},
		"the password of another":             {user: "acme/alice", password: other},
		"a password for another":              {user: "evil/bob", password: password},
		"the hash of the password":            {user: "acme/hashed", password: hash},
		"a name with a line":                  {user: "acme/alice\r\n", password: password},
		"a name with a null":                  {user: "acme/alice\x00", password: password},
		"a name that is a path":               {user: "acme/../acme/alice", password: password},
		"a name in capitals":                  {user: "ACME/ALICE", password: password},
		"a name that is a wildcard":           {user: "acme/*", password: password},
		"every name":                          {user: ">", password: password},
		"a withdrawn bearer token":            {user: "acme/alice", bearer: withdrawn},
		"the bearer token of another":         {user: "acme/alice", bearer: theirs},
		"half of a bearer token":              {user: "acme/alice", bearer: good[:len(good)/2]},
		"a bearer token and more":             {user: "acme/alice", bearer: good + "x"},
		"a denied user, by password":          denied,
		"a denied user, by certificate":       {cert: &deniedCert},
		"a denied user, by bearer token":      {user: "acme/mallory", bearer: deniedBearer},
		"a denied user, by credentials":       {creds: deniedCreds},
		"a certificate and another's name":    {cert: &cert, user: "evil/bob", password: other},
		"a certificate and no such name":      {cert: &cert, user: "acme/nobody", password: password},
		"the credentials of two":              {creds: mixed(t, creds, theirCreds)},
		"credentials with another name":       {creds: forged(t, alice)},
		"credentials of another fleet":        {creds: strangeCreds},
		"a revoked enrollment token":          {token: revoked.Text},
		"half of an enrollment token":         {token: ofUser.Text[:len(ofUser.Text)-4]},
		"an enrollment token for a password":  {user: "acme/eve", password: ofUser.Text},
		"an enrollment token of a user":       {token: ofUser.Text},
		"an enrollment token of a node":       {token: ofNode.Text},
		"a login link that was used":          {link: used},
		"a login link for a password":         {user: "acme/alice", password: loginLink()},
		"a login link for a token":            {token: loginLink()},
		"the id of an enrollment token":       {token: ofUser.ID},
		"the public key of the authority":     {token: s.Founded().CA},
		"a JWT for a password":                {user: "acme/alice", password: "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
		"a password that is longer than long": {user: "acme/alice", password: strings.Repeat("a", 2000)},
	}
	for name, c := range nobody {
		wrong["a certificate: "+name] = shown{cert: &c}
	}
	// A stranger may enroll by NATS, and do nothing else: TestEnrolledUser.
	enrolls := []string{"an enrollment token of a user", "an enrollment token of a node"}
	tried := 0
	for _, w := range ways() {
		began := time.Now()
		n := 0
		for name, with := range wrong {
			if with.creds != "" && w.name != "nats" || w.name == "nats" && slices.Contains(enrolls, name) {
				continue
			}
			if w.name == "console" && with.cert == &cert && with.user == "evil/bob" {
				continue // who gives a name is that user there, whatever the browser shows
			}
			n++
			if err := w.enter(ctx, s, with); err == nil || errors.Is(err, errOften) {
				t.Errorf("%s: who shows %s: %v", w.name, name, err)
			}
		}
		tried += n
		t.Logf("figure: %s | credentials that are not good | %d shown, none let in, %.1f s", w.name, n, time.Since(began).Seconds())
	}
	if tried < 200 {
		t.Errorf("only %d were tried", tried)
	}
}
