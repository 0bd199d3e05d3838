// Package pebble runs Pebble, the ACME authority that Let's Encrypt tests its clients
// with, inside a demonstration.
package pebble

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// An Authority is an ACME authority in this process, on loopback. By its DNS every name
// is this machine.
type Authority struct {
	// Directory is the URL of its directory, and Trust the PEM that it is verified with.
	Directory, Trust string
	// Profile of its certificates.
	Profile string
	// Roots are what its certificates lead to.
	Roots *x509.CertPool

	web *httptest.Server
	dns *dns.Server
}

// Start starts one that looks for the answers to http-01 challenges at a port of this
// machine: challenges is host:port. It sets the variables that Pebble goes by.
func Start(challenges string) (*Authority, error) {
	_, text, err := net.SplitHostPort(challenges)
	if err != nil {
		return nil, fmt.Errorf("starting Pebble: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("starting Pebble: %w", err)
	}
	// Pebble is slow and moody on purpose, unless it is told not to be.
	for _, name := range []string{"PEBBLE_VA_NOSLEEP", "PEBBLE_WFE_NONCEREJECT"} {
		if err := os.Setenv(name, map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}[name]); err != nil {
			return nil, fmt.Errorf("starting Pebble: %w", err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // Pebble asks over TCP
	if err != nil {
		return nil, fmt.Errorf("starting Pebble: %w", err)
	}
	p := &Authority{Profile: "default", dns: &dns.Server{Listener: ln, Handler: dns.HandlerFunc(everywhereHere)}}
	go func() { _ = p.dns.ActivateAndServe() }() // it ends with close
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{
		p.Profile: {Description: "ninety days", ValidityPeriod: uint64(90 * 24 * time.Hour / time.Second)},
	})
	validation := va.New(quiet, port, port, true, ln.Addr().String(), store)
	front := wfe.New(quiet, store, validation, authority, []string{"authority.test"}, true, false, 0, 0)
	p.web = httptest.NewUnstartedServer(withUserAgent(front.Handler()))
	p.web.Config.ErrorLog = quiet
	p.web.StartTLS()
	p.Directory = p.web.URL + wfe.DirectoryPath
	p.Trust = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.web.Certificate().Raw}))
	p.Roots = x509.NewCertPool()
	p.Roots.AddCert(authority.GetRootCert(0).Cert)
	return p, nil
}

// withUserAgent is for clients that do not say who they are, which Pebble refuses.
func withUserAgent(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "" {
			r.Header.Set("User-Agent", "unknown")
		}
		h.ServeHTTP(w, r)
	})
}

// everywhereHere answers that every name is this machine.
func everywhereHere(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	for _, q := range r.Question {
		if q.Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1),
			})
		}
	}
	_ = w.WriteMsg(m) // who asked asks again
}

// Close ends it.
func (p *Authority) Close() error {
	p.web.CloseClientConnections()
	p.web.Close()
	return p.dns.Shutdown()
}
