package amqp

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/smalldisk"
)

// TestShortDisk has a node whose disk is short: who publishes to a durable queue is refused,
// told why and blocked, who consumes goes on, and when there is room publishers do.
func TestShortDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "96m")
	p := &Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts, o.Grace = []string{"acme"}, 100*time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p})
		o.Dir, o.Store.Reserve = filepath.Join(disk, "data"), 16<<20
	})
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	h := &house{Server: s, p: p, config: config}
	c, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	told := c.NotifyBlocked(make(chan amqp091.Blocking, 64))
	pub, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pub.QueueDeclare("stored", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := pub.Confirm(false); err != nil {
		t.Fatal(err)
	}
	stored := func(text string) bool {
		t.Helper()
		d, err := pub.PublishWithDeferredConfirmWithContext(t.Context(), "", "stored", false, false, amqp091.Publishing{Body: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		ok, err := d.WaitContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	var confirmed []string
	if !stored("first") {
		t.Fatal("a message was refused, and the disk has room")
	}
	confirmed = append(confirmed, "first")
	filler := filepath.Join(disk, "somebody-elses")
	if err := os.WriteFile(filler, make([]byte, 82<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "a message is refused", func() error {
		if stored("maybe") {
			confirmed = append(confirmed, "maybe")
			return errors.New("it is stored")
		}
		return nil
	})
	if b := next(t, told); !b.Active || !strings.Contains(b.Reason, "disk") {
		t.Errorf("the publisher is told %+v", b)
	}
	reader := h.channel(t) // the one above may be blocked
	got, err := reader.Consume("stored", "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range confirmed {
		if d := next(t, got); string(d.Body) != want {
			t.Errorf("a consumer has %q, want %q", d.Body, want)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "room", func() error {
		if !stored("last") {
			return errors.New("it is refused")
		}
		return nil
	})
	if d := next(t, got); string(d.Body) != "last" {
		t.Errorf("a consumer has %q", d.Body)
	}
}
