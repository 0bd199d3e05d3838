// Package probe asks a broker of AMQP what its settings should have said, as anybody may
// who reaches its port: it shows certificates of its own making, and logs in as nobody but
// guest.
package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/internal/hardening"
)

// Options say what is asked, and how.
type Options struct {
	// Timeout is for each connection; 0 is 5 seconds.
	Timeout time.Duration
	// Hosts are names and addresses that the certificate has to be for, besides the one
	// that is asked.
	Hosts []string
	// Certificate is shown where one is demanded, so that more can be seen: the mechanisms
	// of logins. It may be empty.
	Certificate *tls.Certificate
	// Management has the ports that are looked at beside the broker's; nil are RabbitMQ's.
	Management []string
}

// A port is one broker that is asked.
type port struct {
	addr, host string
	o          Options
	all        []hardening.Finding
}

// Probe asks the broker at host:port, and returns a finding for each rule that it can
// judge. It fails if nobody is there.
func Probe(ctx context.Context, addr string, o Options) ([]hardening.Finding, error) {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Management == nil {
		o.Management = []string{"15672", "15692", "4369", "25672", "8222"}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("probing %q: %w", addr, err)
	}
	p := &port{addr: addr, host: host, o: o}
	conn, err := p.dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("probing %q: %w", addr, err)
	}
	_ = conn.Close()
	plain := p.plain(ctx)
	if p.versions(ctx) {
		p.strangers(ctx)
		p.mechanisms(ctx)
	} else if !plain {
		p.add("1", hardening.Unknown, "", "it answers neither AMQP nor TLS")
	}
	p.guest(ctx, plain)
	p.management(ctx)
	return p.all, nil
}

func (p *port) add(rule string, v hardening.Verdict, fix, format string, args ...any) {
	if v == hardening.Pass {
		fix = ""
	}
	p.all = append(p.all, hardening.Finding{Rule: rule, Title: hardening.TitleOf(rule), Verdict: v, Text: fmt.Sprintf(format, args...), File: "amqp://" + p.addr, Fix: fix})
}

func (p *port) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: p.o.Timeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(p.o.Timeout))
	}
	return conn, err
}

// header is what a client of AMQP 0-9-1 begins with.
const header = "AMQP\x00\x00\x09\x01"

// maxFrame is the longest Connection.Start that is taken.
const maxFrame = 1 << 16

// errNotAMQP is an answer that is none of AMQP.
var errNotAMQP = errors.New("it does not answer as a broker of AMQP 0-9-1")

// start sends the header of AMQP and reads Connection.Start: its mechanisms.
func start(conn net.Conn) (mechanisms []string, r *bufio.Reader, err error) {
	if _, err := io.WriteString(conn, header); err != nil {
		return nil, nil, err
	}
	r = bufio.NewReader(conn)
	head, err := r.Peek(4)
	if err != nil {
		return nil, r, err
	}
	if string(head) == "AMQP" {
		return nil, r, nil // it speaks another version of AMQP, in clear
	}
	if head[0] != 1 {
		return nil, r, errNotAMQP
	}
	class, method, body, err := readMethod(r)
	if err != nil || class != 10 || method != 10 || len(body) < 6 {
		return nil, r, errors.Join(errNotAMQP, err)
	}
	// Two bytes of version, a table, a text of mechanisms.
	rest := body[2:]
	for i := range 2 {
		if len(rest) < 4 {
			return nil, r, errNotAMQP
		}
		n := int(binary.BigEndian.Uint32(rest))
		if n > len(rest)-4 {
			return nil, r, errNotAMQP
		}
		if i == 1 {
			return strings.Fields(string(rest[4 : 4+n])), r, nil
		}
		rest = rest[4+n:]
	}
	return nil, r, errNotAMQP
}

// readMethod reads one frame of a method.
func readMethod(r io.Reader) (class, method uint16, body []byte, err error) {
	var head [7]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[3:])
	if head[0] != 1 || n < 4 || n > maxFrame {
		return 0, 0, nil, errNotAMQP
	}
	body = make([]byte, n+1)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, 0, nil, err
	}
	if body[n] != 0xce {
		return 0, 0, nil, errNotAMQP
	}
	return binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:]), body[4:n], nil
}

// plain judges rule 1: whether the port speaks without TLS.
func (p *port) plain(ctx context.Context) bool {
	conn, err := p.dial(ctx, p.addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	mechanisms, r, err := start(conn)
	if err != nil {
		p.add("1", hardening.Pass, "", "what is sent in clear is not answered as AMQP")
		return false
	}
	_ = r
	p.add("1", hardening.Fail, "listeners.tcp = none, or the like", "it speaks AMQP without TLS")
	for _, m := range mechanisms {
		if m == "EXTERNAL" {
			p.add("13", hardening.Fail, "offer EXTERNAL on TLS alone", "EXTERNAL is offered where there is no certificate")
		}
	}
	return true
}

// shake shakes hands, and reads: with TLS 1.3 a client hears only then that it is refused.
func (p *port) shake(ctx context.Context, config *tls.Config) (state tls.ConnectionState, mechanisms []string, err error) {
	conn, err := p.dial(ctx, p.addr)
	if err != nil {
		return state, nil, err
	}
	defer conn.Close()
	config.InsecureSkipVerify = true //nolint:gosec // what is shown is looked at, and nothing is sent that is secret
	if net.ParseIP(p.host) == nil {
		config.ServerName = p.host
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return state, nil, err
	}
	state = c.ConnectionState()
	mechanisms, _, err = start(c)
	return state, mechanisms, err
}

// versions judges rule 6, and reports whether there is TLS at all.
func (p *port) versions(ctx context.Context) bool {
	var shown []*x509.Certificate
	newest := &tls.Config{VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		for _, der := range raw {
			if c, err := x509.ParseCertificate(der); err == nil {
				shown = append(shown, c)
			}
		}
		return nil
	}}
	_, _, err := p.shake(ctx, newest)
	if len(shown) == 0 {
		if err != nil {
			p.add("6", hardening.Unknown, "", "there is no TLS on this port")
		}
		return false
	}
	fix := "ssl_options.versions.1 = tlsv1.3, and .2 = tlsv1.2"
	bad := false
	for version, name := range map[uint16]string{tls.VersionTLS10: "TLS 1.0", tls.VersionTLS11: "TLS 1.1"} {
		old := false
		_, _, _ = p.shake(ctx, &tls.Config{MinVersion: version, MaxVersion: version, VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { old = true; return nil }}) //nolint:gosec // old versions are what is tried
		if old {
			bad = true
			p.add("6", hardening.Fail, fix, "it speaks %s", name)
		}
	}
	c := shown[0]
	for _, host := range slices.Compact(append([]string{p.host}, p.o.Hosts...)) {
		if err := c.VerifyHostname(host); err != nil {
			bad = true
			p.add("6", hardening.Fail, "make a certificate with all names and addresses of the broker as subjectAltName", "the certificate is not for %s", host)
		}
	}
	if !bad {
		p.add("6", hardening.Pass, "", "it refuses TLS 1.0 and 1.1, and its certificate is for %s", p.host)
	}
	switch left := time.Until(c.NotAfter); {
	case left <= 0:
		p.add("9", hardening.Fail, "renew it", "the certificate ended at %s", c.NotAfter.UTC().Format(time.DateOnly))
	case left < 30*24*time.Hour:
		p.add("9", hardening.Warn, "renew it", "the certificate ends at %s", c.NotAfter.UTC().Format(time.DateOnly))
	default:
		p.add("9", hardening.Pass, "", "the certificate is good until %s", c.NotAfter.UTC().Format(time.DateOnly))
	}
	return true
}

// strangers judges rule 3: nobody is let in without a certificate of the broker's authority.
func (p *port) strangers(ctx context.Context) {
	let := false
	for _, s := range []struct {
		what string
		make func() ([]tls.Certificate, error)
	}{
		{"no certificate", func() ([]tls.Certificate, error) { return nil, nil }},
		{"a certificate of an unknown authority", func() ([]tls.Certificate, error) { return stranger(false) }},
		{"a certificate that signed itself", func() ([]tls.Certificate, error) { return stranger(true) }},
	} {
		certs, err := s.make()
		if err != nil {
			p.add("3", hardening.Unknown, "", "%s cannot be made: %v", s.what, err)
			continue
		}
		config := &tls.Config{}
		if certs != nil {
			// Whatever authorities the broker names: it is shown.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
		}
		if _, _, err := p.shake(ctx, config); err == nil {
			let = true
			p.add("3", hardening.Fail, "ssl_options.verify = verify_peer, and ssl_options.fail_if_no_peer_cert = true", "who has %s is let in as far as the login", s.what)
		}
	}
	if !let {
		p.add("3", hardening.Pass, "", "who has no certificate, one of an unknown authority, or one that signed itself, is refused")
	}
}

// stranger makes a certificate of nobody that the broker knows.
func stranger(itself bool) ([]tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "guest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	parent, signer := cert, key
	if !itself {
		if signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		parent = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a throw-away authority"}, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
			IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, nil
}

func (p *port) config() *tls.Config {
	if p.o.Certificate == nil {
		return &tls.Config{}
	}
	return &tls.Config{Certificates: []tls.Certificate{*p.o.Certificate}}
}

// mechanisms judges rule 13.
func (p *port) mechanisms(ctx context.Context) {
	_, mechanisms, err := p.shake(ctx, p.config())
	if err != nil || len(mechanisms) == 0 {
		p.add("13", hardening.Unknown, "--client-cert FILE --client-key FILE of a user", "which logins are offered is not told to strangers")
		return
	}
	fix := "auth_mechanisms.1 = EXTERNAL, and no other"
	good := true
	for _, m := range mechanisms {
		switch m {
		case "EXTERNAL":
		case "ANONYMOUS":
			good = false
			p.add("13", hardening.Fail, fix, "who shows nothing is let in: ANONYMOUS is offered")
		default:
			good = false
			p.add("13", hardening.Warn, fix, "login by password is offered: %s", m)
		}
	}
	if !slices.Contains(mechanisms, "EXTERNAL") {
		p.add("13", hardening.Warn, fix, "EXTERNAL, the login by certificate, is not offered")
	} else if good {
		p.add("13", hardening.Pass, "", "EXTERNAL alone is offered")
	}
}

// guest judges rule 11: whether guest may log in with its password.
func (p *port) guest(ctx context.Context, plain bool) {
	conn, err := p.dial(ctx, p.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	if !plain {
		config := p.config()
		config.InsecureSkipVerify = true //nolint:gosec // nothing is sent that is secret
		conn = tls.Client(conn, config)
	}
	mechanisms, r, err := start(conn)
	if err != nil || r == nil {
		p.add("11", hardening.Unknown, "--client-cert FILE --client-key FILE of a user", "guest cannot be tried without a certificate")
		return
	}
	if !slices.Contains(mechanisms, "PLAIN") {
		p.add("11", hardening.Pass, "", "guest has no way to log in by password: %s", strings.Join(mechanisms, ", "))
		return
	}
	if _, err := conn.Write(startOK("guest", "guest")); err != nil {
		p.add("11", hardening.Unknown, "", "guest cannot be tried: %v", err)
		return
	}
	class, method, _, err := readMethod(r)
	if err == nil && class == 10 && method == 30 { // Connection.Tune
		p.add("11", hardening.Fail, "rabbitmqctl delete_user guest", "guest logs in with its password, from here")
		return
	}
	p.add("11", hardening.Pass, "", "guest is refused, from here")
}

// startOK is the method Connection.Start-Ok for a login by PLAIN.
func startOK(user, password string) []byte {
	var table, body bytes.Buffer
	key, name := "authentication_failure_close", "capabilities"
	table.WriteByte(byte(len(key)))
	table.WriteString(key + "t\x01")
	body.Write([]byte{0, 10, 0, 11})
	long := func(b []byte) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		body.Write(n[:])
		body.Write(b)
	}
	var properties bytes.Buffer
	properties.WriteByte(byte(len(name)))
	properties.WriteString(name + "F")
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(table.Len()))
	properties.Write(n[:])
	properties.Write(table.Bytes())
	long(properties.Bytes())
	body.WriteString("\x05PLAIN")
	long([]byte("\x00" + user + "\x00" + password))
	body.WriteString("\x05en_US")
	frame := []byte{1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(frame[3:], uint32(body.Len()))
	return append(append(frame, body.Bytes()...), 0xce)
}

// management judges rule 25: what else listens on the host.
func (p *port) management(ctx context.Context) {
	open, shut := 0, 0
	loopback := p.host == "localhost"
	if ip := net.ParseIP(p.host); ip != nil {
		loopback = ip.IsLoopback()
	}
	for _, n := range p.o.Management {
		addr := net.JoinHostPort(p.host, n)
		conn, err := p.dial(ctx, addr)
		if err != nil {
			shut++
			continue
		}
		_ = conn.Close()
		if loopback {
			continue
		}
		open++
		switch n {
		case "4369":
			p.add("25", hardening.Warn, "a packet filter, or ERL_EPMD_ADDRESS=127.0.0.1", "epmd, on port 4369, can be reached from here")
		case "25672":
			p.add("25", hardening.Warn, "a packet filter, and TLS between brokers", "the port between brokers, 25672, can be reached from here")
		default:
			p.web(ctx, addr, n)
		}
	}
	switch {
	case loopback:
		p.add("25", hardening.Unknown, "probe it from another machine", "from loopback, what is on loopback alone is not told apart")
	case open == 0:
		p.add("25", hardening.Pass, "", "none of %s can be reached from here", strings.Join(p.o.Management, ", "))
	}
	_ = shut
}

// web looks at a listener of HTTP without TLS.
func (p *port) web(ctx context.Context, addr, n string) {
	client := &http.Client{Timeout: p.o.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	path := map[string]string{"15672": "/api/overview", "15692": "/metrics", "8222": "/varz"}[n]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		p.add("25", hardening.Unknown, "", "port %s is open, and does not answer HTTP", n)
		return
	}
	_ = resp.Body.Close()
	what := "asks for a login in clear"
	if resp.StatusCode == http.StatusOK {
		what = "answers who shows nothing"
	}
	p.add("25", hardening.Fail, "have it on loopback, or with TLS and a login", "port %s speaks HTTP without TLS, and %s", n, what)
}
