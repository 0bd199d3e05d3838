package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// houses are the nodes of a cluster, each with a listener for AMQP.
func houses(t *testing.T, n int) []*house {
	t.Helper()
	var all []*house
	servers := fleetbustest.StartCluster(t, n, func(o *fleetbus.Options) {
		p := &Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", o.Name), Options: Options{Passwords: true, Account: "acme"}}
		o.Accounts = []string{"acme", "other"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p})
		all = append(all, &house{p: p})
	})
	for i, s := range servers {
		all[i].Server = s
		all[i].config = s.TLS()
	}
	certificate := servers[0].Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})
	for _, h := range all {
		h.config.Certificates = []tls.Certificate{certificate}
	}
	return all
}

// again tries until it is done, as a client does whose virtual host moves.
func (h *house) again(t *testing.T, what string, do func(*amqp091.Channel) error) {
	t.Helper()
	await.Nil(t, what, func() error {
		c, err := h.connect(t)
		if err != nil {
			return err
		}
		defer c.Close()
		ch, err := c.Channel()
		if err != nil {
			return err
		}
		return do(ch)
	})
}

// TestOneOwner has an account be the same at every node, and be at another when its owner
// stops: what was confirmed is there.
func TestOneOwner(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three nodes")
	}
	all := houses(t, 3)
	all[0].again(t, "a queue is made", func(ch *amqp091.Channel) error {
		if _, err := ch.QueueDeclare("kept", true, false, false, false, nil); err != nil {
			return err
		}
		_, err := ch.QueueDeclare("lost", false, false, false, false, nil)
		return err
	})
	// Each node's clients see the same.
	second, third := all[1].channel(t), all[2].channel(t)
	if err := second.Confirm(false); err != nil {
		t.Fatal(err)
	}
	got := consumed(t, third, "kept")
	for i := range 10 {
		c, err := second.PublishWithDeferredConfirmWithContext(t.Context(), "", "kept", true, false, amqp091.Publishing{Body: []byte(fmt.Sprint(i)), MessageId: "m"})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := c.WaitContext(t.Context()); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if got := bodies(t, got, 10); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}) {
		t.Errorf("got %v", got)
	}
	// Large bodies go through, and a refusal is the same from everywhere.
	large := make([]byte, 5<<20)
	forLarge := consumed(t, third, "lost")
	send(t, second, "", "lost", amqp091.Publishing{Body: large})
	if m := next(t, forLarge); len(m.Body) != len(large) {
		t.Errorf("%d bytes came", len(m.Body))
	}
	send(t, second, "", "kept", amqp091.Publishing{Body: large[:900<<10]})
	if m := next(t, got); len(m.Body) != 900<<10 {
		t.Errorf("%d bytes came", len(m.Body))
	}
	refused := all[1].channel(t)
	told := refused.NotifyClose(make(chan *amqp091.Error, 1))
	send(t, refused, "", "kept", amqp091.Publishing{Body: make([]byte, 15<<20)})
	wants(t, next(t, told), 406, "")
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		h.fails(t, 404, "NOT_FOUND - no queue 'none' in vhost '/'", func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive("none", false, false, false, false, nil)
			return err
		})
	}

	// Publishers at all nodes, while one node after the other stops.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	confirmed := map[string]bool{}
	var publishing sync.WaitGroup
	for i, h := range all {
		publishing.Go(func() {
			for n := 0; ctx.Err() == nil; {
				c, err := h.connect(t)
				if err != nil { // its node stopped
					await.True(100*time.Millisecond, func() bool { return ctx.Err() != nil })
					continue
				}
				ch, err := c.Channel()
				if err == nil {
					err = ch.Confirm(false)
				}
				for ; err == nil && ctx.Err() == nil; n++ {
					id := fmt.Sprint(i, "-", n)
					var d *amqp091.DeferredConfirmation
					d, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", "kept", true, false, amqp091.Publishing{Body: []byte(id)})
					if err != nil {
						break
					}
					try, cancel := context.WithTimeout(ctx, 5*time.Second)
					ok, waited := d.WaitContext(try)
					cancel()
					if waited == nil && ok {
						mu.Lock()
						confirmed[id] = true
						mu.Unlock()
					} else if waited != nil {
						err = errors.New("no confirm")
					}
				}
				c.Close()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(confirmed)
	}
	await.Nil(t, "messages are confirmed", func() error {
		if n := count(); n < 100 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	all[0].Stop()
	before := count()
	await.Nil(t, "messages are confirmed again", func() error {
		if n := count(); n < before+100 {
			return fmt.Errorf("%d are", n-before)
		}
		return nil
	})
	stop()
	publishing.Wait()
	there := map[string]int{}
	all[1].again(t, "all is read", func(ch *amqp091.Channel) error {
		for {
			m, ok, err := ch.Get("kept", true)
			if err != nil || !ok {
				return err
			}
			there[string(m.Body)]++
		}
	})
	missing := 0
	for id := range confirmed {
		if there[id] == 0 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d confirmed messages are lost", missing, len(confirmed))
	}
	t.Logf("%d confirmed, %d there", len(confirmed), len(there))
}

// TestDeniedAtAnotherNode closes who is denied, wherever the virtual host is.
func TestDeniedAtAnotherNode(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three nodes")
	}
	all := houses(t, 3)
	var told []chan *amqp091.Error
	for _, h := range all {
		h.again(t, "it is let in", func(*amqp091.Channel) error { return nil })
		c, err := h.connect(t)
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, c.NotifyClose(make(chan *amqp091.Error, 1)))
	}
	if _, err := all[0].Admin().DenyUser(t.Context(), "acme/device"); err != nil {
		t.Fatal(err)
	}
	for _, c := range told {
		wants(t, next(t, c), 320, "CONNECTION_FORCED - its right to be connected ended")
	}
}
