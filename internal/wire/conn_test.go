package wire_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/wire"
)

// TestConn has the library and a Conn publish and hear over one connection at once: each
// has all of it, in the order in which each published it.
func TestConn(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) { o.Accounts = []string{"acme"} })
	session, err := s.Session(t.Context(), identity.Principal{Account: "acme", Name: "app"})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	every := identity.Rule{Allow: []string{">"}}
	conn := wire.NewListener(64 << 20)
	nc, err := session.Account("wire", identity.Permissions{Publish: every, Subscribe: every}, conn.Option())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	all, err := conn.Subscribe("a.>", "")
	if err != nil {
		t.Fatal(err)
	}
	end, err := conn.Subscribe("end", "group")
	if err != nil {
		t.Fatal(err)
	}
	library, err := nc.SubscribeSync("a.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	const n = 3000
	payload := func(i int) []byte { return []byte(strconv.Itoa(i) + strings.Repeat("\r\n", i%500)) }
	var both sync.WaitGroup
	both.Go(func() {
		for i := range n {
			if err := nc.PublishRequest("a.library", "r", payload(i)); err != nil {
				t.Error(err)
			}
		}
	})
	both.Go(func() {
		var lines []byte
		for i := range n {
			header := wire.Header(nats.Header{"N": []string{strconv.Itoa(i), "x"}})
			lines = wire.AppendPublish(lines, "a.wire", "", header, payload(i))
			if i%70 == 0 || i == n-1 {
				if err := conn.Send(lines); err != nil {
					t.Error(err)
				}
				lines = lines[:0]
			}
		}
	})
	both.Wait()
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Unsubscribe(all); err != nil {
		t.Fatal(err)
	}
	if err := conn.Send(wire.AppendPublish(wire.AppendPublish(nil, "a.late", "", nil, nil), "end", "", nil, []byte("end"))); err != nil {
		t.Fatal(err)
	}

	heard := map[string]int{}
	judge := func(subject, reply string, header nats.Header, data []byte) {
		i := heard[subject]
		heard[subject]++
		wantReply, wantHeader := "r", ""
		if subject == "a.wire" {
			wantReply, wantHeader = "", fmt.Sprintf("[%d x]", i)
		}
		if got := fmt.Sprint(header["N"]); string(data) != string(payload(i)) || reply != wantReply || wantHeader != "" && got != wantHeader {
			t.Fatalf("%s, %d: %q %s %q", subject, i, reply, got, data)
		}
	}
	for over := false; !over; {
		messages, dropped, ok := conn.Receive()
		if !ok || dropped > 0 {
			t.Fatalf("%d dropped, %v", dropped, ok)
		}
		for len(messages) > 0 {
			var m wire.Message
			m, messages = wire.Next(messages)
			if m.ID == end {
				over = true
				continue
			}
			var header nats.Header
			if len(m.Header) > 0 {
				if header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
					t.Fatal(err)
				}
			}
			judge(string(m.Subject), string(m.Reply), header, m.Payload)
		}
	}
	if heard["a.wire"] != n || heard["a.library"] != n || len(heard) != 2 {
		t.Errorf("the Conn heard %v", heard)
	}
	clear(heard)
	for range 2 * n {
		m, err := library.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		judge(m.Subject, m.Reply, m.Header, m.Data)
	}
	nc.Close()
	if _, _, ok := conn.Receive(); ok {
		t.Error("the connection is not closed")
	}
	if err := conn.Send([]byte("PING\r\n")); err == nil {
		t.Error("it sends on a closed connection")
	}
	if _, err := nats.Connect("nats://127.0.0.1:1", wire.New().Option()); err == nil || !strings.Contains(err.Error(), "within the process") {
		t.Errorf("outside: %v", err)
	}
}
