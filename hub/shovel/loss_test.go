package shovel

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
)

// linkVariable has a test binary be a process that runs a link and nothing else, so that
// it can be killed.
const linkVariable = "SHOVEL_LINK"

// process is what such a process is told.
type process struct {
	Options
	Server, Creds string
}

func TestMain(m *testing.M) {
	if file := os.Getenv(linkVariable); file != "" {
		if err := runProcess(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	await.Main(m)
}

func runProcess(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var p process
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	l, err := New(p.Options)
	if err != nil {
		return err
	}
	l.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	for ctx.Err() == nil { // as a server runs a service: on a connection that is new each time
		nc, err := nats.Connect(p.Server, admin.UserCredentials(p.Creds), nats.RootCAs(p.Local.CA), nats.NoReconnect())
		if err == nil {
			err = l.Run(ctx, nc)
			nc.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		_ = pause(ctx, backoff)
	}
	return nil
}

// process starts a link in a process of its own.
func (h *house) process(t *testing.T, o Options) (kill func()) {
	t.Helper()
	_, err := h.Admin().AddRole(t.Context(), identity.Role{Name: "linker", Permissions: Permissions()})
	if err != nil {
		t.Fatal(err)
	}
	creds := filepath.Join(h.dir, "linker.creds")
	if _, err := os.Stat(creds); err != nil {
		key, seed, err := identity.NewUserKey()
		if err != nil {
			t.Fatal(err)
		}
		reply := h.User(admin.UserRequest{Name: "acme/linker", Role: "linker", Key: key})
		text, err := identity.CreateCreds(reply.JWT, seed)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(creds, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(process{o, h.URL(), creds})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.dir, "link.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), linkVariable+"="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return kill
}

// fill publishes n messages, with their numbers, which are all confirmed.
func (s side) fill(queue string, n int) {
	s.t.Helper()
	var all []*amqp091.DeferredConfirmation
	for i := range n {
		d, err := s.PublishWithDeferredConfirm("", queue, true, false, amqp091.Publishing{DeliveryMode: amqp091.Persistent, MessageId: strconv.Itoa(i), Body: []byte(strings.Repeat("x", 100))})
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, d)
		if i >= 500 && !all[i-500].Wait() {
			s.t.Fatal("a message was not confirmed")
		}
	}
	for _, d := range all {
		if !d.Wait() {
			s.t.Fatal("a message was not confirmed")
		}
	}
}

// arrived is what came of n messages.
type arrived struct {
	seen            map[int]bool
	marked, silent  int // that came again, with a mark that they may, and without
	disorder        int
	highest, copies int
}

// drain takes all from a queue, until it has seen n and there are no more.
func (s side) drain(queue string, n int) arrived {
	s.t.Helper()
	a := arrived{seen: map[int]bool{}, highest: -1}
	for {
		m, ok, err := s.Get(queue, true)
		if err != nil {
			s.t.Fatal(err)
		}
		if !ok {
			return a
		}
		i, err := strconv.Atoi(m.MessageId)
		if err != nil || i >= n {
			s.t.Fatalf("message %q", m.MessageId)
		}
		hops := hopsOf(m.Headers)
		if len(hops) != 1 {
			s.t.Fatalf("hops %v", m.Headers)
		}
		again := hops[0][hopAgain] == true || m.Redelivered
		switch {
		case a.seen[i]:
			a.copies++
			if again {
				a.marked++
			} else {
				a.silent++
			}
		case i < a.highest && !again:
			a.disorder++
		}
		a.seen[i], a.highest = true, max(a.highest, i)
	}
}

// TestNothingIsLost moves very many messages in both directions, while everything is
// killed in turn.
func TestNothingIsLost(t *testing.T) {
	n := 20_000
	if testing.Short() {
		n = 2000
	}
	h := start(t)
	there, here := h.there(t), h.here(t)
	there.queue("a", "b")
	here.queue("a", "b")
	there.fill("a", n)
	here.fill("b", n)
	o := h.options(func(o *Options) { o.In, o.Out = []string{"a"}, []string{"b"} })

	// passed is how many have arrived at either side; -1 while that side is away.
	passed := func(dial func() (*amqp091.Connection, error), queue string) int {
		c, err := dial()
		if err != nil {
			return -1
		}
		defer c.Close()
		ch, err := c.Channel()
		if err != nil {
			return -1
		}
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			return -1
		}
		return q.Messages
	}
	dialThere := func() (*amqp091.Connection, error) { return amqp091.Dial("amqp://guest:guest@" + h.rabbit.Addr + "/") }
	dialHere := func() (*amqp091.Connection, error) {
		return amqp091.DialConfig("amqps://"+h.Addr("amqp").String(), amqp091.Config{TLSClientConfig: h.config.Clone(), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}})
	}
	arrive := func(part int) {
		t.Helper()
		want := n * part / 10
		if !await.True(5*time.Minute, func() bool {
			if passed(dialHere, "a") >= want && passed(dialThere, "b") >= want {
				return true
			}
			return false
		}) {
			t.Fatalf("%d and %d of %d have arrived, and not %d", passed(dialHere, "a"), passed(dialThere, "b"), n, want)
		}
		t.Logf("%d and %d of %d have arrived", passed(dialHere, "a"), passed(dialThere, "b"), n)
	}
	kill := h.process(t, o)
	arrive(1)
	kill()
	kill = h.process(t, o)
	arrive(2)
	h.Stop()
	h.Server = h.Restart()
	arrive(4)
	h.rabbit.Kill()
	h.rabbit.Run()
	arrive(7)
	h.rabbit.Kill()
	kill()
	h.rabbit.Run()
	kill = h.process(t, o)
	arrive(10)
	await.Nil(t, "nothing is left", func() error {
		if x, y := passed(dialThere, "a"), passed(dialHere, "b"); x != 0 || y != 0 {
			return fmt.Errorf("%d and %d messages", x, y)
		}
		return nil
	})
	kill()
	for what, a := range map[string]arrived{"in": h.here(t).drain("a", n), "out": h.there(t).drain("b", n)} {
		t.Logf("%s: %d of %d, %d copies: %d marked, %d not; %d out of order", what, len(a.seen), n, a.copies, a.marked, a.silent, a.disorder)
		if len(a.seen) != n {
			t.Errorf("%s: %d of %d messages are lost", what, n-len(a.seen), n)
		}
		if a.disorder > 0 {
			t.Errorf("%s: %d are out of order", what, a.disorder)
		}
		// A broker that is killed may forget that it had handed messages out.
		if a.silent > 2*o.withDefaults().Prefetch {
			t.Errorf("%s: %d copies are not marked", what, a.silent)
		}
	}
}
