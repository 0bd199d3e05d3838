package mqtt_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// broker is one to measure: where it is, and how to come in.
type broker struct {
	addr   string
	config *tls.Config
}

// measured starts a server of ours.
func measured(b *testing.B) (*fleetbustest.Server, broker) {
	s := fleetbustest.Start(b, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
	})
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	return s, broker{s.Addr("mqtt").String(), config}
}

// mosquitto starts the peer, with TLS and its messages on disk.
func mosquitto(b *testing.B, cert tls.Certificate) broker {
	b.Helper()
	program := "/usr/sbin/mosquitto"
	if _, err := os.Stat(program); err != nil {
		b.Skipf("mosquitto is not installed: %v", err)
	}
	dir := b.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		b.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		b.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		return path
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	ln.Close()
	certFile := write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
	keyFile := write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	conf := write("mosquitto.conf", fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nuser root\ncertfile %s\nkeyfile %s\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nmax_inflight_messages 0\n", addr.Port, certFile, keyFile, dir))
	cmd := exec.CommandContext(b.Context(), program, "-c", conf)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr.String()); err == nil {
			conn.Close()
			break
		} else if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
	return broker{addr.String(), &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a peer on loopback
}

func (k broker) connect(b *testing.B, id string, buffer int) *peer {
	b.Helper()
	conn, err := tls.Dial("tcp", k.addr, k.config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	r := packet.NewReader(conn, packet.Server, buffer)
	r.Version = packet.V311
	p := &peer{b, conn, r, packet.V311}
	p.send(&packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true})
	next[*packet.Connack](p)
	return p
}

// carry sends n messages of 256 bytes with so many under way, and returns the
// deliveries a second.
func (k broker) carry(b *testing.B, round string, qos packet.QoS, receivers, n, ahead int) float64 {
	var ready, all sync.WaitGroup
	tokens := make(chan struct{}, ahead)
	var subs []*peer
	for i := range receivers {
		sub := k.connect(b, fmt.Sprintf("sub-%s-%d", round, i), 64<<10)
		sub.subscribe(qos, "bench/"+round)
		subs = append(subs, sub)
	}
	for _, sub := range subs {
		_ = sub.SetReadDeadline(time.Now().Add(time.Minute))
	}
	pub := k.connect(b, "pub-"+round, 64<<10)
	_ = pub.SetReadDeadline(time.Now().Add(time.Minute))
	began := time.Now()
	for i, sub := range subs {
		all.Go(func() {
			var out []byte
			for range n {
				var m *packet.Publish
				for m == nil {
					got, err := sub.r.Next()
					if err != nil {
						b.Error(err)
						return
					}
					m, _ = got.(*packet.Publish)
				}
				if qos == 1 {
					out, _ = (&packet.Ack{Kind: packet.PUBACK, ID: m.ID}).Append(out, sub.v, 0)
					if sub.r.Buffered() == 0 {
						_, _ = sub.Write(out)
						out = out[:0]
					}
				}
				if i == 0 {
					<-tokens
				}
			}
		})
	}
	if qos > 0 {
		ready.Go(func() {
			for range n {
				if _, err := pub.r.Next(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	m := publish("bench/"+round, string(make([]byte, 256)), qos, 0)
	var out []byte
	for i := range n {
		select {
		case tokens <- struct{}{}:
		default:
			_, _ = pub.Write(out)
			out = out[:0]
			tokens <- struct{}{}
		}
		if qos > 0 {
			m.ID = uint16(i%60_000 + 1)
		}
		out, _ = m.Append(out, pub.v, 0)
		if len(out) > 16<<10 || i == n-1 {
			_, _ = pub.Write(out)
			out = out[:0]
		}
	}
	all.Wait()
	ready.Wait()
	for _, p := range append(subs, pub) {
		p.Close()
	}
	return float64(n*receivers) / time.Since(began).Seconds()
}

// BenchmarkPeers compares with mosquitto, round by round. Run it with
// -benchtime 1x.
func BenchmarkPeers(b *testing.B) {
	s, ours := measured(b)
	peer := mosquitto(b, s.Certificate(admin.UserRequest{Name: "acme/peer", Role: "client"}))
	for _, c := range []struct {
		name             string
		qos              packet.QoS
		receivers, n, at int
	}{{"qos0", 0, 1, 100_000, 2000}, {"fanout50", 0, 50, 4000, 200}, {"qos1", 1, 1, 10_000, 100}} {
		b.Run(c.name, func(b *testing.B) {
			const rounds = 5
			var rates [2][]float64
			for b.Loop() {
				for i := range rounds {
					for which, k := range []broker{ours, peer} {
						rates[which] = append(rates[which], k.carry(b, fmt.Sprintf("%s%d%d", c.name, which, i), c.qos, c.receivers, c.n, c.at))
					}
				}
			}
			slices.Sort(rates[0])
			slices.Sort(rates[1])
			b.ReportMetric(rates[0][rounds/2], "ours/s")
			b.ReportMetric(rates[1][rounds/2], "mosquitto/s")
			b.ReportMetric(rates[0][rounds/2]/rates[1][rounds/2], "ratio")
		})
	}
}

// BenchmarkIdle measures what a client with one subscription that does nothing
// costs the process, its own end of the connection included.
func BenchmarkIdle(b *testing.B) {
	_, ours := measured(b)
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		const many = 500
		before, goroutines := memory(), runtime.NumGoroutine()
		for i := range many {
			ours.connect(b, fmt.Sprintf("idle-%d", i), 64).subscribe(0, fmt.Sprintf("idle/%d", i))
		}
		b.ReportMetric(float64(memory()-before)/many/1024, "KiB/client")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/many, "goroutines/client")
	}
}
