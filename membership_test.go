package fleetbus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// joinFleet makes a home for a node with a token, and starts it.
func joinFleet(t *testing.T, at *fleetbustest.Server, name string, replace bool) *fleetbustest.Server {
	t.Helper()
	token, err := at.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindNode})
	if err != nil {
		t.Fatal(err)
	}
	o := fleetbustest.Options(t, name)
	record := fleetbus.NodeRecord(o)
	join := enroll.Join{
		Host: at.Addr("nats").String(), Token: token.Text, Name: name, Advertise: "127.0.0.1",
		Clients: o.Listeners[0].Addr, Cluster: o.Cluster.Addr, Replace: replace, Version: fleetbus.Version(),
	}
	if checks, err := join.Preflight(limited(t, 20*time.Second)); err != nil {
		t.Fatalf("%+v: %v", checks, err)
	}
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	client, err := enroll.Dial(limited(t, 10*time.Second), join)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	request := enroll.NodeRequest{
		Name: name, Replace: replace, Version: fleetbus.Version(), Advertise: record.Advertise,
		Clients: record.ClientAddr, Cluster: record.ClusterAddr, Seal: public,
	}
	reply, err := client.Node(limited(t, 20*time.Second), request)
	if err != nil {
		t.Fatal(err)
	}
	// The answer may have been lost: the same key may ask again, another may not.
	if again, err := client.Node(limited(t, 20*time.Second), request); err != nil || again.Node.Incarnation != reply.Node.Incarnation {
		t.Errorf("asked again, the fleet answers %+v, %v", again.Node, err)
	}
	other := request
	other.Name, other.Seal = "thief", "X"+public[1:]
	if _, err := client.Node(limited(t, 20*time.Second), other); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Errorf("a used token was taken again: %v", err)
	}
	authority, err := identity.OpenAuthority(reply.Authority, reply.Sender, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := fleetbus.Enroll(o, reply, authority); err != nil {
		t.Fatal(err)
	}
	return fleetbustest.Launch(t, o, at.Founded())
}

func voters(t *testing.T, at *fleetbustest.Server, n int) {
	t.Helper()
	fleetbustest.Eventually(t, fmt.Sprintf("%d voters", n), func() error {
		status, err := at.Admin().Status(limited(t, 10*time.Second))
		if err != nil {
			return err
		}
		got := 0
		for _, node := range status.Nodes {
			if node.Voter && node.State == "up" {
				got++
			}
		}
		if got != n || len(status.Nodes) != n || status.Leader == "" {
			return fmt.Errorf("%d voters of %d nodes, leader %q", got, len(status.Nodes), status.Leader)
		}
		return nil
	})
}

// stored publishes n messages, each until it is acknowledged.
func stored(t *testing.T, js jetstream.JetStream, n int) {
	t.Helper()
	for i := range n {
		id := fmt.Sprintf("%s-%d-%d", t.Name(), time.Now().UnixNano(), i)
		fleetbustest.Eventually(t, "an acknowledgement", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := js.Publish(ctx, "orders.new", []byte(id), jetstream.WithMsgID(id))
			return err
		})
	}
}

// copies waits until the stream has so many messages in so many current copies.
func copies(t *testing.T, js jetstream.JetStream, replicas int, messages uint64) {
	t.Helper()
	fleetbustest.Eventually(t, fmt.Sprintf("%d copies of %d messages", replicas, messages), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, "ORDERS")
		if err != nil {
			return err
		}
		info := stream.CachedInfo()
		current := 1
		for _, r := range info.Cluster.Replicas {
			if r.Current && !r.Offline {
				current++
			}
		}
		if current != replicas || info.State.Msgs != messages || info.Cluster.Leader == "" {
			return fmt.Errorf("%d current copies of %d messages, leader %q", current, info.State.Msgs, info.Cluster.Leader)
		}
		return nil
	})
}

func TestMembership(t *testing.T) {
	n1 := fleetbustest.Start(t)
	js, err := jetstream.New(n1.Dial("acme", "alice", nats.MaxReconnects(-1)))
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	stored(t, js, 100)
	joinFleet(t, n1, "n2", false)
	voters(t, n1, 2)
	n3 := joinFleet(t, n1, "n3", false)
	voters(t, n1, 3)
	copies(t, js, 3, 100)
	stored(t, js, 10)

	// n3 is lost with its disk, and another takes its name.
	n3.Stop()
	n3 = joinFleet(t, n1, "n3", true)
	voters(t, n1, 3)
	copies(t, js, 3, 110)

	// n3 leaves, and its server stops by itself.
	if _, err := n3.Admin().Leave(limited(t, 60*time.Second), "n3"); err != nil {
		t.Fatal(err)
	}
	n3.WaitStopped()
	voters(t, n1, 2)
	copies(t, js, 2, 110)
	if there, err := fleetbus.Initialized(n3.Options.Dir); there || err != nil {
		t.Errorf("a node that left is still there: %v", err)
	}
	joinFleet(t, n1, "n3", false)
	voters(t, n1, 3)
	copies(t, js, 3, 110)
}

func TestDeniedWhileDown(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	alice := nodes[0].Creds("acme", "alice")
	nodes[2].Stop()
	fleetbustest.Eventually(t, "the denial is written", func() error {
		spread, err := nodes[0].Admin().DenyUser(limited(t, 10*time.Second), "acme/alice")
		if err == nil && (len(spread.Missing) != 1 || spread.Missing[0] != "n3") {
			t.Errorf("the denial acted as %+v", spread)
		}
		return err
	})
	again := nodes[2].Restart()
	if _, err := again.Connect(alice); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a user that was denied while the node was down: %v", err)
	}
}

// A listener without TLS has no gate of its own.
func TestDeniedWhileDownInPlainText(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		if o.Name == "n3" {
			o.Listeners[0].Plaintext = true
		}
	})
	alice, bob := nodes[0].Creds("acme", "alice"), nodes[0].Creds("acme", "bob")
	password := nodes[0].Password(admin.UserRequest{Name: "acme/alice"})
	nodes[2].Stop()
	fleetbustest.Eventually(t, "the denial is written", func() error {
		_, err := nodes[0].Admin().DenyUser(limited(t, 10*time.Second), "acme/alice")
		return err
	})
	url := "nats://" + nodes[2].Options.Listeners[0].Addr
	stop := make(chan struct{})
	var knocking sync.WaitGroup
	for _, how := range []nats.Option{nats.UserCredentials(alice), nats.UserInfo("acme/alice", password)} {
		knocking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if nc, err := nats.Connect(url, how); err == nil {
					t.Error("a user that was denied while the node was down came in")
					nc.Close()
					return
				}
			}
		})
	}
	nodes[2].Restart()
	nc, err := nats.Connect(url, nats.UserCredentials(bob))
	if err != nil {
		t.Errorf("a user that is not denied: %v", err)
	} else {
		nc.Close()
	}
	close(stop)
	knocking.Wait()
}

func TestStartsWithoutQuorum(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a quorum that never comes")
	}
	nodes := fleetbustest.StartCluster(t, 3)
	alice := nodes[0].Creds("acme", "alice")
	bob := nodes[0].Creds("acme", "bob")
	if _, err := nodes[0].Admin().DenyUser(limited(t, 10*time.Second), "acme/bob"); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.Stop()
	}
	alone := nodes[1].Restart()
	nc, err := alone.Connect(alice)
	if err != nil {
		t.Fatalf("without a quorum nobody gets in: %v", err)
	}
	nc.Close()
	if _, err := alone.Connect(bob); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("without a quorum a denied user gets: %v", err)
	}
	if found := alone.Problems(); len(found) == 0 || found[0].Code != "STALE-STATE" {
		t.Errorf("the findings are %+v", found)
	}
}

func TestLosesNoAccountToACorruptSnapshot(t *testing.T) {
	n1 := fleetbustest.Start(t)
	alice := n1.Creds("acme", "alice")
	n1.Stop()
	corrupt(t, filepath.Join(n1.Options.Dir, "ledger.snapshot"))
	n1.ExpectError("snapshot")
	again := n1.Restart()
	again.ExpectError("snapshot")
	nc, err := again.Connect(alice)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

// corrupt flips a bit in the middle of a file.
func corrupt(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
