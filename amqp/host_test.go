package amqp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
)

// real has the exchanges and queues of the protocol behind it.
func real(p *Protocol) { p.vhosts = nil }

// bodies consumes n messages.
func bodies(t *testing.T, from <-chan amqp091.Delivery, n int) (all []string) {
	t.Helper()
	for range n {
		all = append(all, string(next(t, from).Body))
	}
	return all
}

// consumed starts a consumer that acknowledges by itself.
func consumed(t *testing.T, ch *amqp091.Channel, queue string) <-chan amqp091.Delivery {
	t.Helper()
	d, err := ch.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// made makes a queue that is bound.
func made(t *testing.T, ch *amqp091.Channel, queue, exchange, key string, arguments amqp091.Table) {
	t.Helper()
	declare(t, ch, queue)
	if err := ch.QueueBind(queue, key, exchange, false, arguments); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, ch *amqp091.Channel, exchange, key string, m amqp091.Publishing) {
	t.Helper()
	if err := ch.PublishWithContext(t.Context(), exchange, key, false, false, m); err != nil {
		t.Fatal(err)
	}
}

// fails opens a channel for what is refused, and holds the refusal to code and reason.
func (h *house) fails(t *testing.T, code int, reason string, do func(*amqp091.Channel) error) {
	t.Helper()
	wants(t, do(h.channel(t)), code, reason)
}

// TestRoutes has messages go where bindings lead, by the types of exchanges.
func TestRoutes(t *testing.T) {
	h := start(t, real)
	ch := h.channel(t)
	for name, kind := range map[string]string{"d": "direct", "f": "fanout", "p": "topic", "m": "headers"} {
		if err := ch.ExchangeDeclare(name, kind, false, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	made(t, ch, "q1", "d", "k", nil)
	made(t, ch, "q1", "f", "", nil)
	made(t, ch, "q1", "p", "a.*.c", nil)
	made(t, ch, "q1", "m", "", amqp091.Table{"x-match": "all", "os": "linux"})
	if err := ch.ExchangeBind("f", "through", "d", false, nil); err != nil {
		t.Fatal(err)
	}
	d := consumed(t, ch, "q1")
	send(t, ch, "d", "k", amqp091.Publishing{Body: []byte("direct")})
	send(t, ch, "d", "other", amqp091.Publishing{Body: []byte("lost")})
	send(t, ch, "f", "any", amqp091.Publishing{Body: []byte("fanout")})
	send(t, ch, "p", "a.b.c", amqp091.Publishing{Body: []byte("topic")})
	send(t, ch, "p", "a.b", amqp091.Publishing{Body: []byte("lost")})
	send(t, ch, "m", "", amqp091.Publishing{Headers: amqp091.Table{"os": "linux"}, Body: []byte("headers")})
	send(t, ch, "m", "", amqp091.Publishing{Headers: amqp091.Table{"os": "plan9"}, Body: []byte("lost")})
	send(t, ch, "d", "through", amqp091.Publishing{Body: []byte("exchange")})
	send(t, ch, "", "q1", amqp091.Publishing{Body: []byte("default")})
	want := []string{"direct", "fanout", "topic", "headers", "exchange", "default"}
	if got := bodies(t, d, len(want)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := ch.QueueUnbind("q1", "k", "d", nil); err != nil {
		t.Fatal(err)
	}
	send(t, ch, "d", "k", amqp091.Publishing{Body: []byte("lost")})
	send(t, ch, "", "q1", amqp091.Publishing{Body: []byte("end")})
	if got := bodies(t, d, 1); got[0] != "end" {
		t.Errorf("got %v after the queue was unbound", got)
	}

	h.fails(t, 404, "NOT_FOUND - no exchange 'none' in vhost 'acme'", func(ch *amqp091.Channel) error {
		return ch.QueueBind("q1", "", "none", false, nil)
	})
	h.fails(t, 404, "NOT_FOUND - no queue 'none' in vhost '/'", func(ch *amqp091.Channel) error {
		return ch.QueueBind("none", "", "d", false, nil)
	})
	h.fails(t, 404, "", func(ch *amqp091.Channel) error {
		return ch.ExchangeDeclarePassive("none", "direct", false, false, false, false, nil)
	})
	h.fails(t, 406, "", func(ch *amqp091.Channel) error {
		return ch.ExchangeDeclare("d", "fanout", false, false, false, false, nil)
	})
	h.fails(t, 406, "", func(ch *amqp091.Channel) error { return ch.ExchangeDelete("d", true, false) })
	h.fails(t, 403, "", func(ch *amqp091.Channel) error { return ch.ExchangeDelete("amq.topic", false, false) })
	if err := ch.ExchangeDelete("d", false, false); err != nil {
		t.Error(err)
	}
}

// TestCopies has CC and BCC be keys too, and BCC be seen by nobody.
func TestCopies(t *testing.T) {
	ch := start(t, real).channel(t)
	var all []<-chan amqp091.Delivery
	for _, name := range []string{"to", "cc", "bcc"} {
		declare(t, ch, name)
		all = append(all, consumed(t, ch, name))
	}
	send(t, ch, "", "to", amqp091.Publishing{Headers: amqp091.Table{"CC": []any{"cc", "to"}, "BCC": []any{"bcc"}, "n": int32(1)}, Body: []byte("m")})
	for i, d := range all {
		m := next(t, d)
		if _, seen := m.Headers["BCC"]; seen || m.Headers["n"] != int32(1) || len(m.Headers["CC"].([]any)) != 2 || string(m.Body) != "m" {
			t.Errorf("%d got %v with %q", i, m.Headers, m.Body)
		}
	}
	if q, err := ch.QueueDeclarePassive("to", false, false, false, false, nil); err != nil || q.Messages != 0 {
		t.Errorf("got %+v, %v: it came twice", q, err)
	}
}

// TestQueues holds declarations to what RabbitMQ does with them.
func TestQueues(t *testing.T) {
	h := start(t, real)
	ch := h.channel(t)
	q, err := ch.QueueDeclare("", false, false, true, false, nil)
	if err != nil || !strings.HasPrefix(q.Name, "amq.gen-") {
		t.Fatalf("got %+v, %v", q, err)
	}
	if _, err := ch.QueueDeclare(q.Name, false, false, true, false, nil); err != nil {
		t.Errorf("a queue of the connection's own cannot be declared again: %v", err)
	}
	h.fails(t, 405, "", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclarePassive(q.Name, false, false, true, false, nil)
		return err
	})
	h.fails(t, 405, "", func(ch *amqp091.Channel) error {
		_, err := ch.Consume(q.Name, "", true, false, false, false, nil)
		return err
	})
	h.fails(t, 403, "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclare("amq.mine", false, false, false, false, nil)
		return err
	})
	declare(t, ch, "kept")
	publish(t, ch, "kept", "a", "b")
	h.fails(t, 406, "", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclare("kept", false, true, false, false, nil)
		return err
	})
	h.fails(t, 406, "", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDelete("kept", false, true, false)
		return err
	})
	m, ok, err := ch.Get("kept", false)
	if err != nil || !ok || string(m.Body) != "a" || m.MessageCount != 1 {
		t.Errorf("got %q, %d left, %v, %v", m.Body, m.MessageCount, ok, err)
	}
	if err := m.Reject(true); err != nil {
		t.Fatal(err)
	}
	m, _, err = ch.Get("kept", true)
	if err != nil || string(m.Body) != "a" || !m.Redelivered {
		t.Errorf("got %q, redelivered %v, %v", m.Body, m.Redelivered, err)
	}
	if n, err := ch.QueuePurge("kept", false); err != nil || n != 1 {
		t.Errorf("purged %d, %v", n, err)
	}
	if n, err := ch.QueueDelete("kept", false, false, false); err != nil || n != 0 {
		t.Errorf("deleted with %d, %v", n, err)
	}
	if n, err := ch.QueueDelete("kept", false, false, false); err != nil || n != 0 {
		t.Errorf("deleted again with %d, %v", n, err)
	}
	h.fails(t, 404, "NOT_FOUND - no queue 'kept' in vhost '/'", func(ch *amqp091.Channel) error {
		_, _, err := ch.Get("kept", true)
		return err
	})
}

// TestExclusiveEnds has exclusive queues end with their connection, and auto-delete ones
// with their last consumer; what was bound to them with them.
func TestExclusiveEnds(t *testing.T) {
	h := start(t, real)
	ch := h.channel(t)
	c, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.ExchangeDeclare("shortlived", "fanout", false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		name := fmt.Sprint("own", i)
		if _, err := theirs.QueueDeclare(name, false, false, true, false, nil); err != nil {
			t.Fatal(err)
		}
		if err := theirs.QueueBind(name, "", "shortlived", false, nil); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			if _, err := theirs.QueueDelete(name, false, false, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, "they are gone", func() error {
		one, err := h.connect(t)
		if err != nil {
			return err
		}
		defer one.Close()
		ch, err := one.Channel()
		if err != nil {
			return err
		}
		if err := ch.ExchangeDeclarePassive("shortlived", "fanout", false, true, false, false, nil); err == nil {
			return fmt.Errorf("the exchange is there")
		}
		return nil
	})
	h.fails(t, 404, "", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclarePassive("own38", false, false, true, false, nil)
		return err
	})

	if _, err := ch.QueueDeclare("auto", false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Consume("auto", "tag", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.Cancel("tag", false); err != nil {
		t.Fatal(err)
	}
	h.fails(t, 404, "", func(ch *amqp091.Channel) error {
		_, err := ch.QueueDeclarePassive("auto", false, true, false, false, nil)
		return err
	})
}

// TestDirectReplyTo answers requests without a queue for answers.
func TestDirectReplyTo(t *testing.T) {
	h := start(t, real)
	server, client := h.channel(t), h.channel(t)
	declare(t, server, "rpc")
	requests := consumed(t, server, "rpc")
	answers := consumed(t, client, "amq.rabbitmq.reply-to")
	send(t, client, "", "rpc", amqp091.Publishing{ReplyTo: "amq.rabbitmq.reply-to", CorrelationId: "7", Body: []byte("question")})
	q := next(t, requests)
	if !strings.HasPrefix(q.ReplyTo, "amq.rabbitmq.reply-to.") {
		t.Fatalf("asked with %q", q.ReplyTo)
	}
	if _, err := server.QueueDeclarePassive(q.ReplyTo, false, false, false, false, nil); err != nil {
		t.Errorf("who answers cannot see whether somebody waits: %v", err)
	}
	send(t, server, "", q.ReplyTo, amqp091.Publishing{CorrelationId: q.CorrelationId, Body: []byte("answer")})
	if a := next(t, answers); string(a.Body) != "answer" || a.CorrelationId != "7" {
		t.Errorf("got %q, %q", a.Body, a.CorrelationId)
	}
	h.fails(t, 406, "PRECONDITION_FAILED - reply consumer cannot acknowledge", func(ch *amqp091.Channel) error {
		_, err := ch.Consume("amq.rabbitmq.reply-to", "", false, false, false, false, nil)
		return err
	})
	closed := h.channel(t)
	told := closed.NotifyClose(make(chan *amqp091.Error, 1))
	send(t, closed, "", "rpc", amqp091.Publishing{ReplyTo: "amq.rabbitmq.reply-to"})
	wants(t, next(t, told), 406, "PRECONDITION_FAILED - fast reply consumer does not exist")
}

// TestDeadLetters has what is rejected and what expires go where the queue says, once.
func TestDeadLetters(t *testing.T) {
	ch := start(t, real).channel(t)
	declare(t, ch, "dead")
	args := amqp091.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
	if _, err := ch.QueueDeclare("work", false, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	dead := consumed(t, ch, "dead")
	publish(t, ch, "work", "bad")
	m, _, err := ch.Get("work", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Reject(false); err != nil {
		t.Fatal(err)
	}
	send(t, ch, "", "work", amqp091.Publishing{Expiration: "1", Body: []byte("old")})
	for i, reason := range []string{"rejected", "expired"} {
		d := next(t, dead)
		deaths, _ := d.Headers["x-death"].([]any)
		if len(deaths) != 1 || deaths[0].(amqp091.Table)["reason"] != reason || d.Headers["x-first-death-queue"] != "work" {
			t.Errorf("%d, %q came with %v", i, d.Body, d.Headers)
		}
	}
	// Nobody touches a message that goes round by itself.
	if _, err := ch.QueueDeclare("round", false, false, false, false, amqp091.Table{"x-dead-letter-exchange": "", "x-message-ttl": 1}); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "round", "turn")
	await.Nil(t, "it is gone", func() error {
		q, err := ch.QueueDeclarePassive("round", false, false, false, false, nil)
		if err == nil && q.Messages > 0 {
			err = fmt.Errorf("%d are there", q.Messages)
		}
		return err
	})
}

// TestConfirmsOfOverflow refuses what a queue has no room for.
func TestConfirmsOfOverflow(t *testing.T) {
	ch := start(t, real).channel(t)
	if _, err := ch.QueueDeclare("small", false, false, false, false, amqp091.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "small", false, false, amqp091.Publishing{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.WaitContext(t.Context()); got != want || err != nil {
			t.Errorf("%d was taken: %v, %v", i, got, err)
		}
	}
}

// TestTransactionOfHost publishes all at the commit, or nothing.
func TestTransactionOfHost(t *testing.T) {
	h := start(t, real)
	ch, other := h.channel(t), h.channel(t)
	declare(t, ch, "q")
	if err := ch.Tx(); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "q", "rolled back")
	if err := ch.TxRollback(); err != nil {
		t.Fatal(err)
	}
	publish(t, ch, "q", "a", "b")
	if _, ok, err := other.Get("q", true); ok || err != nil {
		t.Errorf("it is there before the commit: %v, %v", ok, err)
	}
	if err := ch.TxCommit(); err != nil {
		t.Fatal(err)
	}
	if got := bodies(t, consumed(t, other, "q"), 2); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
	publish(t, ch, "q", "c")
	send(t, ch, "none", "q", amqp091.Publishing{})
	wants(t, ch.TxCommit(), 404, "NOT_FOUND - no exchange 'none' in vhost 'acme'")
	if q, err := other.QueueDeclarePassive("q", false, false, false, false, nil); err != nil || q.Messages != 0 {
		t.Errorf("got %+v, %v after a commit that failed", q, err)
	}
}

// TestPermissions holds every right to the refusal of who does not have it.
func TestPermissions(t *testing.T) {
	h := start(t, real)
	admins := h.Admin()
	ctx := t.Context()
	allow := func(subjects ...string) identity.Rule { return identity.Rule{Allow: subjects} }
	if _, err := admins.AddRole(ctx, identity.Role{Name: "nova", Permissions: identity.Permissions{
		Publish:   allow("amqp.configure.nova.>", "amqp.write.nova.>", "amqp.write.amq.default"),
		Subscribe: allow("amqp.read.nova.>"),
	}}); err != nil {
		t.Fatal(err)
	}
	h.config.Certificates[0] = h.Certificate(admin.UserRequest{Name: "acme/nova", Role: "nova"})
	ch := h.channel(t)
	declare(t, ch, "nova.q")
	if err := ch.ExchangeDeclare("nova.x", "topic", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("nova.q", "#", "nova.x", false, nil); err != nil {
		t.Fatal(err)
	}
	send(t, ch, "nova.x", "k", amqp091.Publishing{Body: []byte("m")})
	if got := bodies(t, consumed(t, ch, "nova.q"), 1); got[0] != "m" {
		t.Errorf("got %v", got)
	}
	for name, do := range map[string]func(*amqp091.Channel) error{
		"configure access to queue 'q' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare("q", false, false, false, false, nil)
			return err
		},
		"configure access to exchange 'x' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare("x", "topic", false, false, false, false, nil)
		},
		"read access to exchange 'amq.fanout' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			return ch.QueueBind("nova.q", "#", "amq.fanout", false, nil)
		},
		"write access to exchange 'amq.fanout' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			if err := ch.Tx(); err != nil {
				return err
			}
			send(t, ch, "amq.fanout", "k", amqp091.Publishing{})
			return ch.TxCommit()
		},
		"read access to queue 'other' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			_, err := ch.Consume("other", "", true, false, false, false, nil)
			return err
		},
		"write access to exchange 'dlx' in vhost '/' refused for user 'nova'": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare("nova.d", false, false, false, false, amqp091.Table{"x-dead-letter-exchange": "dlx"})
			return err
		},
	} {
		h.fails(t, 403, "ACCESS_REFUSED - "+name, do)
	}
}

// TestRightsByKey has who may publish or have only some keys of an exchange be refused the
// others, on every way there is to them.
func TestRightsByKey(t *testing.T) {
	h := start(t, real)
	admins := h.Admin()
	all := h.channel(t)
	for name, kind := range map[string]string{"nova": "topic", "fan_out": "fanout"} {
		if err := all.ExchangeDeclare(name, kind, false, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	declare(t, all, "conductor")
	if err := all.QueueBind("conductor", "conductor.#", "nova", false, nil); err != nil {
		t.Fatal(err)
	}
	for role, p := range map[string]identity.Permissions{
		"compute": {
			Publish:   identity.Rule{Allow: []string{"amqp.configure.>", "amqp.write.compute.>", "amqp.key.nova.conductor", "amqp.key.nova.conductor.>", "amqp.key.amq%2Edefault.reply.>", "amqp.key.fan_out.>"}},
			Subscribe: identity.Rule{Allow: []string{"amqp.key.nova.compute.a", "amqp.key.nova.compute.a.>", "amqp.read.compute.>"}},
		},
		"muted": {
			Publish:   identity.Rule{Allow: []string{"amqp.>"}, Deny: []string{"amqp.key.nova.scheduler.>"}},
			Subscribe: identity.Rule{Allow: []string{"amqp.>"}, Deny: []string{"amqp.key.nova.scheduler.>"}},
		},
	} {
		if _, err := admins.AddRole(t.Context(), identity.Role{Name: role, Permissions: p}); err != nil {
			t.Fatal(err)
		}
	}
	type step struct {
		what string
		do   func(ch *amqp091.Channel) error
		may  bool
	}
	publishing := func(exchange, key string, headers amqp091.Table) func(*amqp091.Channel) error {
		return func(ch *amqp091.Channel) error {
			if err := ch.Tx(); err != nil {
				return err
			}
			send(t, ch, exchange, key, amqp091.Publishing{Headers: headers})
			return ch.TxCommit()
		}
	}
	binding := func(exchange, key string) func(*amqp091.Channel) error {
		return func(ch *amqp091.Channel) error {
			if _, err := ch.QueueDeclare("compute.q", false, false, false, false, nil); err != nil {
				return err
			}
			return ch.QueueBind("compute.q", key, exchange, false, nil)
		}
	}
	for role, steps := range map[string][]step{
		"compute": {
			{"a key", publishing("nova", "conductor", nil), true},
			{"a key with words", publishing("nova", "conductor.ctl1", nil), true},
			{"another key", publishing("nova", "scheduler", nil), false},
			{"another key as a copy", publishing("nova", "conductor", amqp091.Table{"CC": []any{"scheduler"}}), false},
			{"another key as a blind copy", publishing("nova", "conductor", amqp091.Table{"BCC": []any{"scheduler"}}), false},
			{"no key", publishing("nova", "", nil), false},
			{"an answer", publishing("", "reply_1", nil), true},
			{"a queue by the default exchange", publishing("", "conductor", nil), false},
			{"an exchange that knows no keys", publishing("fan_out", "k", nil), false},
			{"an exchange that is not there", publishing("none", "k", nil), false},
			{"a binding", binding("nova", "compute.a"), true},
			{"a binding of all below", binding("nova", "compute.a.#"), true},
			{"a binding of one below", binding("nova", "compute.a.*"), true},
			{"another binding", binding("nova", "compute.b"), false},
			{"a binding of more", binding("nova", "compute.*"), false},
			{"a binding of all", binding("nova", "#"), false},
			{"a binding with a wildcard first", binding("nova", "*.a"), false},
			{"a way from there to an own exchange", func(ch *amqp091.Channel) error {
				if err := ch.ExchangeDeclare("compute.x", "fanout", false, false, false, false, nil); err != nil {
					return err
				}
				return ch.ExchangeBind("compute.x", "#", "nova", false, nil)
			}, false},
		},
		"muted": {
			{"a key", publishing("nova", "conductor", nil), true},
			{"a denied key", publishing("nova", "scheduler.x", nil), false},
			{"a denied binding", binding("nova", "scheduler.x"), false},
			{"a binding with a denied part", binding("nova", "#"), false},
			{"a binding", binding("nova", "conductor.#"), true},
			{"a way there by dead letters", func(ch *amqp091.Channel) error {
				_, err := ch.QueueDeclare("muted.d", false, false, false, false, amqp091.Table{"x-dead-letter-exchange": "nova", "x-dead-letter-routing-key": "scheduler.x"})
				return err
			}, false},
			{"a way there by a binding", func(ch *amqp091.Channel) error {
				return ch.ExchangeBind("nova", "scheduler.x", "amq.fanout", false, nil)
			}, false},
		},
	} {
		h.config.Certificates[0] = h.Certificate(admin.UserRequest{Name: "acme/" + role, Role: role})
		for _, s := range steps {
			err := s.do(h.channel(t))
			refusal, ok := errors.AsType[*amqp091.Error](err)
			if s.may && err != nil || !s.may && (!ok || refusal.Code != amqp091.AccessRefused) {
				t.Errorf("%s, %s: %v; allowed: %v", role, s.what, err, s.may)
			}
		}
	}
}

// TestSubjectOf holds names that are no subjects to one spelling each.
func TestSubjectOf(t *testing.T) {
	for name, want := range map[string]string{
		"": "amq.default", "a": "a", "a.b": "a.b", ".": "%.%", "a..b": "a.%.b", "a.": "a.%", "*": "%2A", "a b": "a%20b", "%": "%25", ">": "%3E", "\x00é": "%00%C3%A9",
	} {
		if got := right.Words(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

// TestDurable has what is durable be there after the node was started anew, and nothing
// else.
func TestDurable(t *testing.T) {
	h := start(t, real)
	ch := h.channel(t)
	for _, durable := range []bool{true, false} {
		if err := ch.ExchangeDeclare(fmt.Sprint("x-", durable), "topic", durable, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("q-", durable)
		if _, err := ch.QueueDeclare(name, durable, false, false, false, amqp091.Table{"x-max-priority": int32(3)}); err != nil {
			t.Fatal(err)
		}
		if err := ch.QueueBind(name, "k.#", "x-true", false, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ch.QueueDeclare("removed", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDelete("removed", false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for i, body := range []string{"kept", "a", "b", "c"} {
		c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "x-true", "k.1", false, false, amqp091.Publishing{Body: []byte(body), Headers: amqp091.Table{"n": int32(i)}})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := c.WaitContext(t.Context()); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	// Of two that are handed out, one is settled.
	for range 2 {
		m, ok, err := ch.Get("q-true", false)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if string(m.Body) == "a" {
			if err := m.Ack(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The answer comes after the acknowledgement is taken.
	if q, err := ch.QueueDeclarePassive("q-true", true, false, false, false, nil); err != nil || q.Messages != 2 {
		t.Fatalf("got %+v, %v", q, err)
	}
	h.Stop()
	h.p = &Protocol{Logger: h.p.Logger, Options: h.p.Options}
	h.Options.Listeners[len(h.Options.Listeners)-1].Protocol = h.p
	h.Server = h.Server.Restart()

	ch = h.channel(t)
	q, err := ch.QueueDeclare("q-true", true, false, false, false, amqp091.Table{"x-max-priority": int32(3)})
	if err != nil || q.Messages != 3 {
		t.Fatalf("got %+v, %v", q, err)
	}
	for _, want := range []struct {
		body        string
		redelivered bool
	}{{"kept", true}, {"b", false}, {"c", false}} {
		m, _, err := ch.Get("q-true", true)
		if err != nil || string(m.Body) != want.body || m.Redelivered != want.redelivered || m.RoutingKey != "k.1" || m.Headers["n"] == nil {
			t.Errorf("got %q, redelivered %v, %v, %v, want %+v", m.Body, m.Redelivered, m.Headers, err, want)
		}
	}
	send(t, ch, "x-true", "k.2", amqp091.Publishing{Body: []byte("still bound")})
	if got := bodies(t, consumed(t, ch, "q-true"), 1); got[0] != "still bound" {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"q-false", "removed"} {
		h.fails(t, 404, "", func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
			return err
		})
	}
	h.fails(t, 404, "", func(ch *amqp091.Channel) error {
		return ch.ExchangeDeclarePassive("x-false", "topic", false, false, false, false, nil)
	})
}

// TestGetsWhatItPublished has a client find in a durable queue what it published before,
// without a confirm.
func TestGetsWhatItPublished(t *testing.T) {
	ch := start(t, real).channel(t)
	if _, err := ch.QueueDeclare("kept", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		publish(t, ch, "kept", "a", "b", "c")
		if m, ok, err := ch.Get("kept", true); err != nil || !ok || string(m.Body) != "a" {
			t.Fatalf("round %d: got %+v, %v, %v", i, m, ok, err)
		}
		publish(t, ch, "kept", "d")
		if q, err := ch.QueueDeclarePassive("kept", true, false, false, false, nil); err != nil || q.Messages != 3 {
			t.Fatalf("round %d: %+v, %v", i, q, err)
		}
		publish(t, ch, "kept", "e")
		if n, err := ch.QueuePurge("kept", false); err != nil || n != 4 {
			t.Fatalf("round %d: %d purged, %v", i, n, err)
		}
	}
}
