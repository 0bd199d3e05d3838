package fleetbus_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/tls"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// addAdapter makes one that takes registrations of some accounts into stream REG
// of ops.
func addAdapter(t *testing.T, s *fleetbustest.Server, from ...string) {
	t.Helper()
	ctx, api := limited(t, 30*time.Second), s.Admin()
	for _, name := range append(from, "ops") {
		if _, err := api.AddAccount(ctx, admin.AccountRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	spread, err := api.AddAdapter(ctx, admin.AdapterRequest{Name: "reg", From: from, Subject: "registration.>", To: "ops", Stream: "REG"})
	if err != nil || !spread.Changed {
		t.Fatalf("an adapter on %+v: %v", spread, err)
	}
}

// register sends one registration and returns what the adapter says.
func register(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (admin.Stored, error) {
	var stored admin.Stored
	answer, err := nc.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return stored, err
	}
	var reply admin.Reply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return stored, fmt.Errorf("reading %q: %w", answer.Data, err)
	}
	if reply.Error != nil {
		return stored, reply.Error
	}
	return stored, json.Unmarshal(reply.Data, &stored)
}

// reader reads the stream of an adapter as a user of ops.
func reader(t *testing.T, s *fleetbustest.Server) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(s.Dial("ops", "pool"))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(limited(t, 10*time.Second), "REG")
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestAdapter stores what is sent with who sent it, by whatever it came, and
// answers when it is stored.
func TestAdapter(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3, withLines)
	s := nodes[0]
	ctx, api := limited(t, 60*time.Second), s.Admin()
	addAdapter(t, s, "acme", "beta")
	for _, bad := range []admin.AdapterRequest{
		{Name: "reg2", From: []string{"acme"}, Subject: "registration.x", To: "ops", Stream: "REG2"}, // overlaps
		{Name: "reg2", From: []string{"acme"}, Subject: "$JS.API.>", To: "ops", Stream: "REG2"},
		{Name: "reg2", From: []string{"acme"}, Subject: "x.>", To: "none", Stream: "REG2"},
		{Name: "reg2", From: []string{"FLEET"}, Subject: "x.>", To: "ops", Stream: "REG2"},
		{Name: "reg2", From: []string{"acme"}, Subject: "x.>", To: "ops", Stream: "REG"}, // another's
		{Name: "reg2", Subject: "x.>", To: "ops", Stream: "REG2"},
	} {
		if _, err := api.AddAdapter(ctx, bad); err == nil {
			t.Errorf("made %+v", bad)
		}
	}
	if spread, err := api.AddAdapter(ctx, admin.AdapterRequest{Name: "reg", From: []string{"beta", "acme"}, Subject: "registration.>", To: "ops", Stream: "REG"}); err != nil || spread.Changed {
		t.Errorf("made again as %+v: %v", spread, err)
	}

	// By creds file, by password, and by a session of another protocol; the headers
	// of others and of the engine are not theirs to set.
	msg := nats.NewMsg("registration.web1")
	msg.Data = []byte("one")
	for key, value := range map[string]string{
		"X-Kept": "yes", nats.MsgIdHdr: "7", "Nats-Rollup": "all", "nats-expected-last-sequence": "99", admin.AdapterAccount: "ops", "fleetbus-sender": "root",
		identity.RenewInfoHeader: `{"acc":"A","user":"root"}`,
	} {
		msg.Header[key] = []string{value}
	}
	web1 := nodes[1].Dial("acme", "web1")
	first, err := register(ctx, web1, msg)
	if err != nil || first.Stream != "REG" || first.Sequence != 1 {
		t.Fatalf("stored as %+v: %v", first, err)
	}
	if again, err := register(ctx, web1, msg); err != nil || !again.Duplicate {
		t.Errorf("the same again is stored as %+v: %v", again, err)
	}
	byWord, err := byPassword(nodes[2], "beta/web2", s.Password(admin.UserRequest{Name: "beta/web2"}))
	if err != nil {
		t.Fatal(err)
	}
	defer byWord.Close()
	if other, err := register(ctx, byWord, msg); err != nil || other.Duplicate {
		t.Errorf("another sender's is stored as %+v: %v", other, err)
	}
	line, err := loginLines(ctx, s.Addr("lines").String(), s.TLS(), "beta/web3", s.Password(admin.UserRequest{Name: "beta/web3"}))
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	if err := line.Publish(ctx, "registration.web3", "two"); err != nil { // without a request
		t.Fatal(err)
	}
	if _, err := s.Dial("gamma", "eve").Request("registration.eve", nil, 2*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("an account that it takes nothing from: %v", err)
	}
	stream := reader(t, s)
	fleetbustest.Eventually(t, "three are stored", func() error {
		info, err := stream.Info(ctx)
		if err == nil && info.State.Msgs != 3 {
			err = fmt.Errorf("there are %d", info.State.Msgs)
		}
		return err
	})
	for seq, want := range []struct{ subject, account, sender, from string }{
		{"adapter.reg.acme.registration.web1", "acme", "web1", "registration.web1"},
		{"adapter.reg.beta.registration.web1", "beta", "web2", "registration.web1"},
		{"adapter.reg.beta.registration.web3", "beta", "web3", "registration.web3"},
	} {
		got, err := stream.GetMsg(ctx, uint64(seq+1))
		if err != nil {
			t.Fatal(err)
		}
		h := got.Header
		at, err := time.Parse(time.RFC3339Nano, h.Get(admin.AdapterTime))
		if got.Subject != want.subject || h.Get(admin.AdapterAccount) != want.account || h.Get(admin.AdapterSender) != want.sender ||
			h.Get(admin.AdapterSubject) != want.from || err != nil || time.Since(at) > time.Minute {
			t.Errorf("message %d is %s with %v: %v", seq+1, got.Subject, h, err)
		}
		if h.Get("nats-expected-last-sequence") != "" || h.Get("fleetbus-sender") != "" || h.Get(identity.RenewInfoHeader) != "" || seq == 0 && h.Get("X-Kept") != "yes" {
			t.Errorf("message %d has headers %v", seq+1, h)
		}
	}
	// A consumer reads them, too; and nobody writes there by hand.
	c, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{FilterSubject: "adapter.reg.beta.>", AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Next(jetstream.FetchMaxWait(5 * time.Second)); err != nil || got.Headers().Get(admin.AdapterSender) != "web2" {
		t.Errorf("the consumer has %v: %v", got, err)
	}
	pool := s.Dial("ops", "pool2", nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	for _, subject := range []string{"adapter.reg.acme.registration.x", "$FLEETBUS.adapter.reg.acme.registration.x"} {
		if answer, err := pool.Request(subject, nil, 500*time.Millisecond); err == nil {
			t.Errorf("wrote to %s: %s", subject, answer.Data)
		}
	}
	all, err := api.Adapters(ctx)
	if err != nil || len(all) != 1 || len(all[0].Nodes) != 3 || len(all[0].Missing)+len(all[0].Waiting) != 0 {
		t.Fatalf("the adapters are %+v: %v", all, err)
	}
	var sum admin.AdapterCount
	for _, n := range all[0].Nodes {
		sum.Received, sum.Stored, sum.Refused, sum.Pending = sum.Received+n.Received, sum.Stored+n.Stored, sum.Refused+n.Refused, sum.Pending+n.Pending
	}
	if sum != (admin.AdapterCount{Received: 4, Stored: 4}) {
		t.Errorf("the counts are %+v", sum)
	}

	// An account that is gone is taken from no more, and the last ends the adapter.
	if _, err := api.RemoveAccount(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if all, err := api.Adapters(ctx); err != nil || len(all) != 1 || len(all[0].From) != 1 {
		t.Errorf("after the removal of acme the adapters are %+v: %v", all, err)
	}
	if _, err := api.RemoveAdapter(ctx, "reg"); err != nil {
		t.Fatal(err)
	}
	if _, err := byWord.Request("registration.web2", nil, time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("after its end the adapter answers: %v", err)
	}
	if _, err := api.RemoveAdapter(ctx, "reg"); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("removed again: %v", err)
	}
}

// rawClient speaks the protocol by hand, so that it can send what no library
// would.
type rawClient struct {
	net.Conn
	in *bufio.Reader
}

func dialRaw(t *testing.T, s *fleetbustest.Server, creds string) *rawClient {
	t.Helper()
	data, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	token, err1 := jwt.ParseDecoratedJWT(data)
	key, err2 := jwt.ParseDecoratedUserNKey(data)
	plain, err3 := net.Dial("tcp", s.Addr("nats").String())
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	if err := plain.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReaderSize(oneByte{plain}, 16).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		t.Fatal(err)
	}
	config := s.TLS()
	config.ServerName = "127.0.0.1"
	conn := tls.Client(plain, config)
	sig, err := key.Sign([]byte(info.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	c := &rawClient{Conn: conn, in: bufio.NewReader(conn)}
	c.send(t, fmt.Sprintf(`CONNECT {"verbose":false,"headers":true,"no_responders":true,"jwt":%q,"sig":%q}`+"\r\nPING\r\n", token, base64.RawURLEncoding.EncodeToString(sig)))
	for {
		line, err := c.in.ReadString('\n')
		if err != nil || strings.HasPrefix(line, "-ERR") {
			t.Fatalf("%q: %v", line, err)
		}
		if line == "PONG\r\n" {
			return c
		}
	}
}

// oneByte reads no further than it is asked to, so that TLS can begin after it.
type oneByte struct{ io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.Reader.Read(p[:1]) }

func (c *rawClient) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// request sends a message with these bytes for a header, and returns the answer.
func (c *rawClient) request(t *testing.T, subject, header string) string {
	t.Helper()
	c.send(t, fmt.Sprintf("SUB answer.raw 1\r\nHPUB %s answer.raw %d %d\r\n%s\r\n", subject, len(header), len(header), header))
	return c.answer(t)
}

// answer is the next message.
func (c *rawClient) answer(t *testing.T) string {
	t.Helper()
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "MSG" && fields[0] != "HMSG" {
			continue
		}
		n, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, n+2)
		if _, err := io.ReadFull(c.in, data); err != nil {
			t.Fatal(err)
		}
		return string(data[:n])
	}
}

// TestSenderIsTheEnginesWord has a client send every header by which it might pass
// for another: what is stored is its own name, or nothing.
func TestSenderIsTheEnginesWord(t *testing.T) {
	s := fleetbustest.Start(t)
	addAdapter(t, s, "acme")
	acme, err := s.Admin().Account(limited(t, 10*time.Second), "acme")
	if err != nil {
		t.Fatal(err)
	}
	eve := s.Creds("acme", "eve")
	const key = identity.RenewInfoHeader
	forged := key + ": " + fmt.Sprintf(`{"acc":%q,"user":"root"}`, acme.Public)
	stored := 0
	for i, header := range []string{
		"NATS/1.0\r\n\r\n",
		"NATS/1.0\r\n" + forged + "\r\n\r\n",
		"NATS/1.0\r\n" + forged + "\r\n" + forged + "\r\n\r\n",
		"NATS/1.0\r\nX: a\n" + forged + "\r\n\r\n",
		"NATS/1.0\n" + forged + "\n\n\r\n",
		"NATS/1.0\r\nX: a\n" + forged + "\n\n\r\n\r\n",
		"NATS/1.0\r\nX: a\n" + forged + "\nY: bXX",
		"NATS/1.0\r\nX: a\n" + forged + "\r\n:XX",
		"NATS/1.0\r\nX: " + key + key + "\r\n" + forged + "\r\n\r\n",
		"NATS/1.0\r\nX: " + key + key + "\r\n" + forged + "\r\nY: bXX",
		"NATS/1.0\r\nX: " + key + key + "\r\n" + forged + "\r\n\r\n\r\n",
		forged + "\r\n\r\n",
	} {
		answer := dialRaw(t, s, eve).request(t, "registration.raw", header)
		ok := strings.Contains(answer, `"seq":`)
		if !ok && !strings.Contains(answer, `"code":"denied"`) {
			t.Errorf("header %d is answered %q", i, answer)
		}
		if ok {
			stored++
		}
	}
	t.Logf("%d of 12 were stored, the others refused", stored)
	stream := reader(t, s)
	for seq := range stored {
		got, err := stream.GetMsg(limited(t, 10*time.Second), uint64(seq+1))
		if err != nil {
			t.Fatal(err)
		}
		if got.Header.Get(admin.AdapterSender) != "eve" || len(got.Header.Values(admin.AdapterSender)) != 1 {
			t.Errorf("message %d is of %q", seq+1, got.Header.Values(admin.AdapterSender))
		}
	}
	if stored == 0 {
		t.Error("nothing was stored: the test shows nothing")
	}
}

// TestAdapterBusy has more sent than the stream takes while it cannot: what is too
// much is told so at once, and what was taken is not lost.
func TestAdapterBusy(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	addAdapter(t, nodes[0], "acme")
	nc := nodes[0].Dial("acme", "web1")
	if _, err := register(limited(t, 10*time.Second), nc, &nats.Msg{Subject: "registration.first"}); err != nil {
		t.Fatal(err)
	}
	nodes[1].Stop()
	nodes[2].Stop()
	const sent = 400 // and 256 have room
	codes := map[admin.Code]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range sent {
		all.Go(func() {
			_, err := register(limited(t, 30*time.Second), nc, nats.NewMsg(fmt.Sprint("registration.", i)))
			var refused *admin.Error
			mu.Lock()
			defer mu.Unlock()
			if errors.As(err, &refused) {
				codes[refused.Code]++
			} else {
				codes[admin.Code(fmt.Sprint(err))]++
			}
		})
	}
	all.Wait()
	t.Logf("answers: %v", codes)
	if codes[admin.Busy] == 0 || codes[admin.Busy]+codes[admin.Unavailable] != sent || codes[admin.Unavailable] > 256 {
		t.Errorf("answers: %v", codes)
	}
}

// TestRenewalIsTheEnginesWord has a client ask for the renewal of another's key, by
// headers that no library sends.
func TestRenewalIsTheEnginesWord(t *testing.T) {
	s := fleetbustest.Start(t)
	alice, eve := s.Creds("acme", "alice"), s.Creds("acme", "eve")
	acme, err := s.Admin().Account(limited(t, 10*time.Second), "acme")
	if err != nil {
		t.Fatal(err)
	}
	const key = identity.RenewInfoHeader
	forged := key + ": " + fmt.Sprintf(`{"acc":%q,"user":%q}`, acme.Public, keyOf(t, alice))
	renewed := 0
	for i, header := range []string{
		"NATS/1.0\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\nX: a\n" + forged + "\r\n\r\n", "NATS/1.0\n" + forged + "\n\n\r\n",
		"NATS/1.0\r\nX: a\n" + forged + "\nY: bXX", "NATS/1.0\r\nX: " + key + key + "\r\n" + forged + "\r\n\r\n",
	} {
		raw := dialRaw(t, s, eve)
		raw.send(t, fmt.Sprintf("SUB answer.raw 1\r\nHPUB %s answer.raw %d %d\r\n%s{}\r\n", identity.RenewSubject, len(header), len(header)+2, header))
		answer := raw.answer(t)
		if strings.Contains(answer, `"name":"alice"`) {
			t.Errorf("header %d has alice renewed: %.200s", i, answer)
		}
		if strings.Contains(answer, `"name":"eve"`) {
			renewed++
		}
		raw.Close()
	}
	if renewed == 0 {
		t.Error("nobody was renewed: the test shows nothing")
	}
}
