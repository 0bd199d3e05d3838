package fleetbus_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/smalldisk"
)

// finds reports whether a node has the finding now.
func finds(s *fleetbustest.Server, code string) bool {
	return slices.ContainsFunc(s.Problems(), func(f doctor.Finding) bool { return f.Code == code && f.Fix != "" })
}

func isRefused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == 10023 // insufficient resources
}

// TestShortDisk has somebody else take the disk until less than the reserve is
// left, and give it back.
func TestShortDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "96m")
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Dir, o.Store.Reserve = filepath.Join(disk, "data"), 16<<20
	})
	nc := s.Dial("acme", "alice")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	api := s.Admin()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream := fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.*"}})
	if _, err := js.Publish(ctx, "orders.1", []byte("1")); err != nil {
		t.Fatal(err)
	}
	free := smalldisk.Fill(t, disk, 15<<20)
	began := time.Now()
	fleetbustest.Eventually(t, "the node says that its disk is short", func() error {
		if !finds(s, "DISK-FULL") {
			return fmt.Errorf("findings %+v", s.Problems())
		}
		return nil
	})
	t.Logf("held after %v", time.Since(began))
	if _, err := js.Publish(ctx, "orders.2", []byte("2")); !isRefused(err) {
		t.Errorf("a publisher hears: %v", err)
	}
	// What is not stored goes on, and what is stored is read.
	if _, err := nc.Subscribe("echo", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.RequestWithContext(ctx, "echo", nil); err != nil {
		t.Errorf("asking and answering: %v", err)
	}
	fleetbustest.Eventually(t, "what is stored is read", func() error { // the engine may look for itself first
		m, err := stream.GetMsg(ctx, 1)
		if err == nil && string(m.Data) != "1" {
			err = fmt.Errorf("it is %q", m.Data)
		}
		return err
	})
	if status, err := api.Status(ctx); err != nil || len(status.Nodes) != 1 {
		t.Errorf("the status: %+v, %v", status, err)
	}
	free()
	began = time.Now()
	fleetbustest.Eventually(t, "the node stores again", func() error {
		_, err := js.Publish(ctx, "orders.3", []byte("3"))
		return err
	})
	t.Logf("storing again after %v", time.Since(began))
	if finds(s, "DISK-FULL") {
		t.Errorf("findings %+v", s.Problems())
	}
	if _, err := api.AddAccount(ctx, admin.AccountRequest{Name: "late"}); err != nil {
		t.Errorf("a new account: %v", err)
	}
	if info, err := stream.Info(ctx); err != nil || info.State.Msgs != 2 {
		t.Errorf("the stream: %+v, %v", info, err)
	}
}

// TestFullDisk fills the disk faster than any guard looks, under a client that
// writes all the time.
func TestFullDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "64m")
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Dir, o.Store.Reserve = filepath.Join(disk, "data"), 64<<10
	})
	s.ExpectError("snapshot not written")
	var dropped atomic.Int64
	nc := s.Dial("acme", "alice", nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
		if err != nil {
			dropped.Add(1)
		}
	}))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	// The callout let this one in, and is asked again when the streams are opened.
	paul, err := byPassword(s, "acme/paul", s.Password(admin.UserRequest{Name: "acme/paul", Role: "client"}),
		nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer paul.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream := fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})
	acked := map[uint64]string{}
	payload := make([]byte, 8<<10)
	// write writes one more message, and notes it if it is acknowledged.
	write := func(n int) error {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		text := fmt.Sprintf("%d %s", n, payload)
		ack, err := js.Publish(try, "orders", []byte(text))
		if err == nil {
			acked[ack.Sequence] = text
		}
		return err
	}
	n := 0
	for ; n < 20; n++ {
		if err := write(n); err != nil {
			t.Fatal(err)
		}
	}
	filled := make(chan func(), 1)
	go func() { filled <- smalldisk.Fill(t, disk, 0) }()
	var refusal error
	fleetbustest.Eventually(t, "a publisher hears that the disk is full", func() error {
		n++
		if refusal = write(n); refusal == nil {
			return errors.New("it is acknowledged")
		}
		return nil
	})
	t.Logf("%d acknowledged, then: %v", len(acked), refusal)
	free := <-filled
	free()
	began := time.Now()
	fleetbustest.Eventually(t, "the node stores again", func() error {
		n++
		return write(n)
	})
	t.Logf("storing again after %v; %d connections dropped", time.Since(began), dropped.Load())
	fleetbustest.Eventually(t, "who came by password goes on", func() error {
		from, err := jetstream.New(paul)
		if err != nil {
			return err
		}
		_, err = from.Stream(ctx, "ORDERS")
		return err
	})
	t.Logf("who came by password came back %d times", paul.Stats().Reconnects)
	for seq, text := range acked {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil || string(m.Data) != text {
			t.Errorf("acknowledged message %d: %v", seq, err)
		}
	}
	fleetbustest.Eventually(t, "no findings", func() error {
		if p := s.Problems(); len(p) > 0 && p[0].Code != "DISK-LOW" {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}
