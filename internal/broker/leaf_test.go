package broker

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// engine starts one by its own configuration.
func engine(t *testing.T, config string) *server.Server {
	t.Helper()
	file := filepath.Join(t.TempDir(), "engine.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the engine is not ready")
	}
	return s
}

// TestLeafCannotForge has the clients of a leaf say that they are others, in every
// way: who asks is the link, and nobody else.
func TestLeafCannotForge(t *testing.T) {
	hub := engine(t, `
		server_name: hub, listen: "127.0.0.1:-1"
		leafnodes { listen: "127.0.0.1:-1" }
		accounts {
			A { users: [{user: site, password: x}], imports: [{service: {account: F, subject: "in.A.>"}, to: "reg.>", share: true}] }
			F { users: [{user: fleet, password: x}], exports: [{service: "in.*.>"}] }
		}`)
	links, err := hub.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := engine(t, fmt.Sprintf(`server_name: leaf, listen: "127.0.0.1:-1", leafnodes { remotes: [{url: "nats://site:x@127.0.0.1:%d"}] }`, links.LeafNode.Port))
	fleet, err := (&Broker{srv: hub, inside: &inside{srv: hub}}).ConnectExact(nats.UserInfo("fleet", "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	sub, err := fleet.SubscribeSync("in.A.>")
	if err == nil {
		err = fleet.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", leaf.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	send := func(header string) {
		t.Helper()
		if _, err := fmt.Fprintf(client, "HPUB reg.x %d %d\r\n%s\r\n", len(header), len(header), header); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprint(client, `CONNECT {"verbose":false,"headers":true}`+"\r\n"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for { // until the link is there
		send("NATS/1.0\r\n\r\n")
		if _, err := sub.NextMsg(50 * time.Millisecond); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing comes by the leaf")
		}
	}
	const forged = infoHeader + `: {"acc":"B","user":"root"}`
	believed, came := 0, 0
	for i, header := range []string{
		"NATS/1.0\r\n\r\n", "NATS/1.0\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\n" + forged + "\r\n" + forged + "\r\n\r\n",
		"NATS/1.0\r\nX: a\n" + forged + "\r\n\r\n", "NATS/1.0\n" + forged + "\n\n\r\n", "NATS/1.0\r\nX: a\n" + forged + "\nY: bXX",
		"NATS/1.0\r\nX: " + infoHeader + infoHeader + "\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\n" + forged + "XX",
	} {
		send(header)
		msg, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatalf("header %d did not come: %v", i, err)
		}
		came++
		for _, info := range msg.Header.Values(infoHeader) {
			switch {
			case !strings.Contains(info, `"acc":"A"`) || !strings.Contains(info, `"user":"site"`) || strings.Contains(info, "root"):
				t.Errorf("header %d is read as %s", i, info)
			default:
				believed++
			}
		}
	}
	t.Logf("of %d messages %d say who sent them: the link", came, believed)
	if believed < 2 {
		t.Error("the test shows nothing")
	}
}
