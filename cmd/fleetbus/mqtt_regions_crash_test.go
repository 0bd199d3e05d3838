package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// newRegionsCrash makes a fleet of two regions, of one node each.
func newRegionsCrash(t *testing.T, seed uint64) *crash {
	c := &crash{t: t, m: newHost(t), rng: rand.New(rand.NewPCG(seed, 0))}
	var first string
	for i, name := range []string{"eu", "us"} {
		n := &crashNode{name: name, mqtt: loopback.Addr(t)}
		args := []string{"init", "--cluster-name", name}
		if i > 0 {
			var token string
			c.until("the gateways are known", func() error {
				code, output := c.m.run("gateway", "token", name, "--data-dir", "eu")
				if token = secret(output); code != 0 || token == "" {
					return errors.New(output)
				}
				return nil
			})
			args = []string{"join", first, "--token", token, "--as", "gateway"}
		}
		args = c.m.node(name, append(args, "--listeners-mqtt-addr", n.mqtt, "--listeners-gateway-addr", loopback.Addr(t))...)
		c.m.must(args...)
		if i == 0 {
			first = args[slices.Index(args, "--listeners-nats-addr")+1]
		}
		n.process = c.m.serve(name)
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		c.until("the regions are linked", func() error {
			if code, output := c.m.run("gateway", "ls", "--data-dir", n.name); code != 0 || !strings.Contains(output, " linked") {
				return errors.New(output)
			}
			return nil
		})
	}
	c.until("the account is there", func() error {
		if code, output := c.m.run("account", "add", "acme", "--data-dir", "eu"); code != 0 {
			return errors.New(output)
		}
		return nil
	})
	c.m.must("user", "add", "acme/device", "--data-dir", "eu", "--cert", "device")
	c.until("the device is known in the other region", func() error {
		if code, output := c.m.run("user", "ls", "acme", "--data-dir", "us"); code != 0 || !strings.Contains(output, "acme/device") {
			return errors.New(output)
		}
		return nil
	})
	file := func(name string) string { return filepath.Join(c.m.dir, name) }
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must[[]byte](t)(os.ReadFile(file("device-ca.pem"))))
	c.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots,
		Certificates: []tls.Certificate{must[tls.Certificate](t)(tls.LoadX509KeyPair(file("device.crt"), file("device.key")))},
	}
	return c
}

// TestKilledRegionsMQTT kills the node of either of two regions, again and again, while
// MQTT clients in both publish to one another. Nothing that was acknowledged is lost in
// either, at QoS 2 nothing comes twice, and what a client publishes one by one comes in
// that order. FLEETBUS_KILLS is how often, FLEETBUS_SEED which ones.
func TestKilledRegionsMQTT(t *testing.T) {
	t.Parallel()
	kills, seed := fromEnv(t, "FLEETBUS_KILLS", 5), fromEnv(t, "FLEETBUS_SEED", int(time.Now().UnixNano()%1e6))
	if testing.Short() {
		kills = min(kills, 2)
	}
	t.Logf("%d kills, seed %d", kills, seed)
	c := newRegionsCrash(t, uint64(seed))
	ctx, stop := context.WithCancel(t.Context())
	defer c.devices.Wait()
	defer stop()

	var sources []*source
	var readers []*reader
	for _, n := range c.nodes {
		at := func() string { return n.mqtt }
		for _, qos := range []packet.QoS{1, 2} {
			r := c.reader(fmt.Sprintf("all-%s-%d", n.name, qos), qos, "load/#")
			r.addrs, r.will = at, nil
			readers = append(readers, r)
			for _, window := range []int{1, 20} {
				s := &source{qos: qos, window: window, pause: 2 * longPause, topic: fmt.Sprintf("load/%s/%d/%d", n.name, qos, window)}
				s.device = c.device(fmt.Sprintf("source-%d-%d", qos, window), 3600) // the same in both regions
				s.addrs, s.slots, s.settled = at, make(chan struct{}, window), s.settle
				sources = append(sources, s)
			}
		}
	}
	watch := c.reader("watcher", 1, "will/#")
	watch.will, watch.addrs = nil, readers[0].addrs
	for _, r := range append(slices.Clone(readers), watch) {
		c.run(ctx, r.device)
	}
	c.until("the readers have subscribed", func() error {
		for _, r := range append(slices.Clone(readers), watch) {
			if ready, _, _ := r.state(); !ready {
				return fmt.Errorf("%s has not", r.id)
			}
		}
		return nil
	})
	// A region is forwarded to from when the other has heard of its clients.
	meeting, met := context.WithCancel(ctx)
	defer met()
	var meetings sync.WaitGroup
	for _, n := range c.nodes {
		s := &source{qos: 1, window: 1, pause: longPause, topic: "load/meeting/" + n.name}
		s.device = c.device("meeting", 3600)
		s.addrs, s.slots, s.settled = func() string { return n.mqtt }, make(chan struct{}, 1), s.settle
		c.run(ctx, s.device)
		meetings.Go(func() { s.send(meeting) })
	}
	c.until("each region hears the other", func() error {
		for _, r := range readers {
			for _, n := range c.nodes {
				if r.heard("load/meeting/"+n.name) == 0 {
					return fmt.Errorf("%s has heard nothing of %s", r.id, n.name)
				}
			}
		}
		return nil
	})
	met()
	meetings.Wait()
	ending, end := context.WithCancel(ctx)
	defer end()
	var sending sync.WaitGroup
	for _, s := range sources {
		c.run(ctx, s.device)
		sending.Go(func() { s.send(ending) })
	}
	for round := range kills {
		c.wait(ctx, time.Second+time.Duration(c.rng.Int64N(int64(time.Second))))
		n := c.nodes[c.rng.IntN(len(c.nodes))]
		n.kill()
		down := time.Duration(c.rng.Int64N(int64(2 * time.Second)))
		c.wait(ctx, down)
		n.process = c.m.serve(n.name)
		t.Logf("round %d: %s was killed, and was down for %v", round, n.name, down.Round(time.Millisecond))
	}
	end()
	sending.Wait()
	c.drain(sources, readers, watch, nil)
	c.wait(ctx, 3*time.Second) // what comes although it came before
	v := c.judge(sources, readers, watch, nil)
	t.Logf("%d kills, seed %d: %s", kills, seed, v)
	if v.wrong() {
		t.Fail()
		for _, n := range c.nodes {
			t.Logf("%s:\n%s", n.name, warnings(n.log.String()))
		}
	}
}
