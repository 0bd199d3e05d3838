package hub

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// foreign is a client of the hub's that knows nothing of links.
type foreign struct {
	t testing.TB
	net.Conn
	r *packet.Reader
}

func dialForeign(t testing.TB, m *mosquitto) *foreign {
	t.Helper()
	var conn net.Conn
	var err error
	if m.pki.ca == "" {
		conn, err = net.Dial("tcp", m.addr)
	} else {
		ca, err := os.ReadFile(m.pki.ca)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(m.pki.clientCert, m.pki.clientKey)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		if conn, err = tls.Dial("tcp", m.addr, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &foreign{t, conn, packet.NewReader(conn, packet.Server, 4096)}
	f.r.Version = packet.V5
	f.send(&packet.Connect{Version: packet.V5, ClientID: fmt.Sprintf("foreign-%d", time.Now().UnixNano()), CleanStart: true})
	if ack, ok := f.next().(*packet.Connack); !ok || ack.Code != 0 {
		t.Fatalf("%+v", ack)
	}
	return f
}

func (f *foreign) send(p packet.Packet) {
	f.t.Helper()
	b, err := p.Append(nil, packet.V5, 0)
	if err == nil {
		_, err = f.Write(b)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *foreign) next() packet.Packet {
	f.t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		f.t.Fatal(err)
	}
	p, err := f.r.Next()
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// publish publishes with QoS 1, and waits until the hub has it.
func (f *foreign) publish(topic, payload string, user ...packet.Pair) {
	f.t.Helper()
	f.send(&packet.Publish{ID: 1, Message: packet.Message{Topic: []byte(topic), Payload: []byte(payload), QoS: 1, UserProperties: user}})
	if ack, ok := f.next().(*packet.Ack); !ok || ack.Code.Failed() {
		f.t.Fatalf("%+v", ack)
	}
}
