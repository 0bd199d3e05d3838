//go:build !lean

package moving

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/definitions"
	"github.com/fleetbus/fleetbus/internal/rabbittest"
)

// house is a node with a listener for AMQP, and a directory to run commands in.
type house struct {
	*fleetbustest.Server
	dir string
}

func start(t *testing.T) *house {
	t.Helper()
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		p := &amqp.Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Options: amqp.Options{Passwords: true}}
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p})
	})
	return &house{s, t.TempDir()}
}

// imported runs the command with text as the file, and returns its lines by kind and name.
func (h *house) imported(t *testing.T, text string, want command.ExitCode, args ...string) map[string]definitions.Line {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &command.App{Stdin: strings.NewReader(text), Stdout: &stdout, Stderr: &stderr, Terminal: func(any) bool { return false }}
	root := Commands(a)[0]
	root.SilenceErrors, root.SilenceUsage = true, true
	f := h.Founded()
	args = append([]string{"import", "-", "-o", "json", "--server", h.Addr("nats").String(), "--creds", f.AdminCreds, "--ca", f.CA,
		"--amqp", h.Addr("amqp").String(), "--passwords", filepath.Join(h.dir, "passwords")}, args...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := command.ExitOK
	if err != nil {
		code = command.Explain(ctx, err).Code
	}
	if code != want {
		t.Fatalf("exit code %d, want %d: %v\n%s\n%s", code, want, err, &stderr, &stdout)
	}
	var lines []definitions.Line
	if err := json.Unmarshal(stdout.Bytes(), &lines); err != nil && stdout.Len() > 0 {
		t.Fatal(err)
	}
	all := map[string]definitions.Line{}
	for _, l := range lines {
		all[l.Kind+" "+l.Name] = l
	}
	return all
}

// password is what the file has for a user.
func (h *house) password(t *testing.T, user string) string {
	t.Helper()
	path := filepath.Join(h.dir, "passwords")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for line := range strings.Lines(string(data)) {
		if name, password, _ := strings.Cut(strings.TrimSpace(line), " "); name == user {
			return password
		}
	}
	t.Fatalf("%s has no password in\n%s", user, data)
	return ""
}

func (h *house) channel(t *testing.T, sasl amqp091.Authentication, config *tls.Config) *amqp091.Channel {
	t.Helper()
	c, err := amqp091.DialConfig("amqps://"+h.Addr("amqp").String()+"/", amqp091.Config{TLSClientConfig: config, SASL: []amqp091.Authentication{sasl}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func (h *house) byPassword(t *testing.T, user string) *amqp091.Channel {
	t.Helper()
	return h.channel(t, &amqp091.PlainAuth{Username: user, Password: h.password(t, user)}, h.TLS())
}

func refused(t *testing.T, what string, err error, code int) {
	t.Helper()
	var e *amqp091.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%s: %v, want %d", what, err, code)
	}
}

const small = `{"users":[{"name":"nova","tags":""}],"vhosts":[{"name":"/"}],
	"permissions":[{"user":"nova","vhost":"/","configure":"^nova_","write":"^(nova|nova_.*|amq\\.default)$","read":"^nova(_.*)?$"}],
	"exchanges":[{"name":"nova","vhost":"/","type":"topic","durable":true,"arguments":{}}],
	"queues":[{"name":"nova_q","vhost":"/","durable":true,"auto_delete":false,"arguments":{"x-max-length":5,"x-n":{"a":[1,true]}}}],
	"bindings":[{"source":"nova","vhost":"/","destination":"nova_q","destination_type":"queue","routing_key":"k.#","arguments":{}}]}`

func TestImport(t *testing.T) {
	h := start(t)
	for key, l := range h.imported(t, small, command.ExitOK, "--dry-run", "--account", "/=shop") {
		if l.Status == definitions.There || l.Account != "shop" {
			t.Errorf("%s: %+v", key, l)
		}
	}
	if accounts, err := h.Admin().Accounts(t.Context()); err != nil || len(accounts) != 0 {
		t.Errorf("a dry run made %v, %v", accounts, err)
	}
	got := h.imported(t, small, command.ExitOK, "--account", "/=shop")
	for _, key := range []string{"vhost /", "permission nova", "exchange nova", "queue nova_q", "binding nova -> nova_q (k.#)"} {
		if got[key].Status != definitions.Taken {
			t.Errorf("%s: %+v", key, got[key])
		}
	}
	if got["user nova"].Status != definitions.Changed {
		t.Errorf("%+v", got["user nova"])
	}
	password := h.password(t, "shop/nova")
	for key, l := range h.imported(t, small, command.ExitOK, "--account", "/=shop") {
		if l.Status != definitions.There {
			t.Errorf("a second time, %s: %+v", key, l)
		}
	}
	if h.password(t, "shop/nova") != password {
		t.Error("a second run made another password")
	}
	users, err := h.Admin().Users(t.Context(), "shop")
	if err != nil || len(users) != 1 || users[0].Name != "nova" {
		t.Errorf("users %v, %v", users, err)
	}

	// A client has what it had, and no more.
	ch := h.byPassword(t, "shop/nova")
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	d, err := ch.PublishWithDeferredConfirm("nova", "k.1", true, false, amqp091.Publishing{Body: []byte("m")})
	if err != nil || !d.Wait() {
		t.Fatalf("publishing: %v", err)
	}
	if m, ok, err := ch.Get("nova_q", true); err != nil || !ok || string(m.Body) != "m" {
		t.Errorf("got %q, %v, %v", m.Body, ok, err)
	}
	_, err = h.byPassword(t, "shop/nova").QueueDeclare("nova.q", true, false, false, false, nil)
	refused(t, "declaring nova.q", err, 403)
	_, err = h.byPassword(t, "shop/nova").QueueDeclare("other", true, false, false, false, nil)
	refused(t, "declaring other", err, 403)
	_, err = h.byPassword(t, "shop/nova").QueueDeclare("nova_q", true, false, false, false, amqp091.Table{"x-max-length": 5})
	if err != nil {
		t.Errorf("declaring as before: %v", err)
	}

	// What is there and otherwise stays.
	other := strings.NewReplacer(`"x-max-length":5`, `"x-max-length":6`, `^nova_"`, `^nova"`).Replace(small)
	got = h.imported(t, other, command.ExitPartial, "--account", "/=shop", "--narrow")
	if got["queue nova_q"].Status != definitions.Conflict || got["permission nova"].Status != definitions.Conflict || got["exchange nova"].Status != definitions.There {
		t.Errorf("%+v", got)
	}
	h.imported(t, "{", command.ExitUsage)
	h.imported(t, small, command.ExitUnavailable, "--account", "/=shop", "--amqp", "127.0.0.1:1")
	if users, err := h.Admin().Users(t.Context(), "shop"); err != nil || len(users) != 1 {
		t.Errorf("users %v, %v", users, err)
	}
}

func TestImportWithCertificates(t *testing.T) {
	h := start(t)
	dir := filepath.Join(h.dir, "certs")
	got := h.imported(t, small, command.ExitOK, "--certs", dir)
	if got["user nova"].Account != "default" {
		t.Errorf("%+v", got["user nova"])
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "default-nova.crt"), filepath.Join(dir, "default-nova.key"))
	if err != nil {
		t.Fatal(err)
	}
	config := h.TLS()
	config.Certificates = []tls.Certificate{pair}
	if _, err := h.channel(t, &amqp091.ExternalAuth{}, config).QueueDeclarePassive("nova_q", true, false, false, false, nil); err != nil {
		t.Error(err)
	}
}

// TestImportFromRabbitMQ moves what a RabbitMQ has, and has its clients go on: another
// library's, with the names that they had.
func TestImportFromRabbitMQ(t *testing.T) {
	r := rabbittest.Start(t)
	r.Control("add_vhost", "shop")
	r.Control("add_user", "nova", "secret-of-nova")
	r.Control("set_permissions", "-p", "shop", "nova", "^nova_", "^(nova_.*|amq\\.default|events)$", "^(nova_.*|events)$")
	r.Control("set_policy", "-p", "shop", "ttl", "^nova_", `{"message-ttl":60000,"ha-mode":"all"}`, "--apply-to", "queues")
	r.Control("set_operator_policy", "-p", "shop", "most", ".*", `{"max-length":1000}`, "--apply-to", "queues")
	r.Control("set_permissions", "-p", "shop", "guest", ".*", ".*", ".*")
	conn, err := amqp091.Dial("amqp://guest:guest@" + r.Addr + "/shop")
	if err != nil {
		t.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	_, err1 := ch.QueueDeclare("nova_jobs", true, false, false, false, amqp091.Table{"x-dead-letter-exchange": "dead"})
	_, err2 := ch.QueueDeclare("nova_dead", true, false, false, false, amqp091.Table{"x-queue-type": "quorum"})
	_, err3 := ch.QueueDeclare("stream", true, false, false, false, amqp091.Table{"x-queue-type": "stream"})
	err = errors.Join(err1, err2, err3, ch.ExchangeDeclare("events", "topic", true, false, false, false, nil), ch.ExchangeDeclare("dead", "fanout", true, false, false, false, nil),
		ch.ExchangeDeclare("headers", "headers", true, false, false, false, nil), ch.QueueBind("nova_jobs", "job.*", "events", false, nil), ch.QueueBind("nova_dead", "", "dead", false, nil),
		ch.ExchangeBind("events", "", "headers", false, amqp091.Table{"x-match": "any", "kind": "job"}), conn.Close())
	if err != nil {
		t.Fatal(err)
	}
	export := filepath.Join(t.TempDir(), "definitions.json")
	r.Control("export_definitions", export)
	data, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	h := start(t)
	got := h.imported(t, string(data), command.ExitPartial)
	for key, want := range map[string]definitions.Status{
		"vhost shop": definitions.Taken, "vhost /": definitions.Taken, "permission nova": definitions.Taken, "user nova": definitions.Changed, "queue nova_jobs": definitions.Changed,
		"queue nova_dead": definitions.Changed, "queue stream": definitions.NotTaken, "exchange events": definitions.Taken, "exchange dead": definitions.Taken,
		"binding events -> nova_jobs (job.*)": definitions.Taken, "binding headers -> events": definitions.Taken, "policy ttl": definitions.Changed, "operator policy most": definitions.Changed,
		"tag guest administrator": definitions.NotTaken,
	} {
		if got[key].Status != want {
			t.Errorf("%s: %+v, want %s", key, got[key], want)
		}
	}
	for key, l := range h.imported(t, string(data), command.ExitPartial) {
		if slices.Contains([]definitions.Status{definitions.Taken, definitions.Conflict, definitions.Failed}, l.Status) {
			t.Errorf("a second time, %s: %+v", key, l)
		}
	}
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(t.Context(), python, "-c", "import pika").Run(); err != nil {
		t.Skip("pika is missing: install python3-pika")
	}
	host, port, _ := strings.Cut(h.Addr("amqp").String(), ":")
	cmd := exec.CommandContext(t.Context(), python, "-c", `
import pika, ssl, sys, time
host, port, ca, user, password = sys.argv[1:]
tls = pika.SSLOptions(ssl.create_default_context(cafile=ca), host)
bus = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), "shop", pika.PlainCredentials(user, password), ssl_options=tls))
ch = bus.channel()
ch.confirm_delivery()
ch.basic_publish("events", "job.1", b"one", mandatory=True)
method, _, body = ch.basic_get("nova_jobs")
assert body == b"one", body
ch.basic_reject(method.delivery_tag, requeue=False)
body, until = None, time.time() + 30
while body is None and time.time() < until: # a dead letter is on its way
    method, properties, body = ch.basic_get("nova_dead", auto_ack=True)
assert body == b"one" and properties.headers["x-death"][0]["queue"] == "nova_jobs", (body, properties)
try:
    ch.queue_declare("other")
except pika.exceptions.ChannelClosedByBroker as e:
    assert e.reply_code == 403, e
else:
    assert False
`, host, port, h.Founded().CA, "shop/nova", h.password(t, "shop/nova"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
