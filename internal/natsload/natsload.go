// Package natsload is very many NATS clients in one process, each as light as it can be:
// it logs in, hears one subject, and comes back when it is cut off, when and where the
// client library would.
package natsload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nkeys"
)

// The client library's own: how long the way to a server and the login there may take,
// each; and the pause after a round of all servers, with as much more by chance.
const (
	dialTimeout, loginTimeout = 2 * time.Second, 2 * time.Second
	roundPause, roundJitter   = 2 * time.Second, time.Second
)

// A Member is who a client is.
type Member struct {
	// JWT of the user, and the Seed of its key.
	JWT  string
	Seed []byte
	// Chain is the client's certificate, in DER, and Key that of it, in PKCS #8.
	Chain [][]byte
	Key   []byte
}

// WriteMembers writes them to a file, for ReadMembers.
func WriteMembers(path string, members []Member) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing members: %w", err)
	}
	if err := errors.Join(json.NewEncoder(f).Encode(members), f.Close()); err != nil {
		return fmt.Errorf("writing members to %q: %w", path, err)
	}
	return nil
}

// ReadMembers reads what WriteMembers wrote.
func ReadMembers(path string) (members []Member, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading members: %w", err)
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&members); err != nil {
		return nil, fmt.Errorf("reading members from %q: %w", path, err)
	}
	return members, nil
}

// A Crowd is clients that connect and stay connected. Serve runs one.
type Crowd struct {
	// Members are the clients. Member i begins at server Homes[i % len(Homes)].
	Members []Member
	// Servers are host:port, and Homes indexes of them.
	Servers []string
	Homes   []int
	// Trust verifies the servers, once for each certificate.
	Trust *x509.CertPool
	// From are addresses of this machine to connect from, each for so many ports as the
	// kernel has.
	From []net.IP
	// Subject is what all of them hear.
	Subject string
	// AtOnce bounds the connections that are under way for the first time, and Returning
	// those of clients that were connected before: the clients of this process share
	// processors that their machines would not.
	AtOnce, Returning int

	verified sync.Map // raw certificates that Trust has verified
	status   status
}

// A Status is how the clients stand.
type Status struct {
	// Connected counts those that are now, by server, and Lost how often one was cut off.
	Connected []int
	Lost      int
	// Failed counts attempts that failed, by reason.
	Failed map[string]int
	// Tag is the last payload that was heard, how many times, and when last, in Unix nanoseconds.
	Tag   string
	Heard int
	Last  int64
}

type status struct {
	mu        sync.Mutex
	connected []int
	lost      int
	failed    map[string]int

	heard struct {
		sync.RWMutex
		tag         string
		count, last atomic.Int64
	}
}

// Status may be called by any goroutine.
func (c *Crowd) Status() Status {
	s := &c.status
	s.mu.Lock()
	out := Status{Connected: append([]int{}, s.connected...), Lost: s.lost, Failed: maps.Clone(s.failed)}
	s.mu.Unlock()
	s.heard.RLock()
	defer s.heard.RUnlock()
	out.Tag, out.Heard, out.Last = s.heard.tag, int(s.heard.count.Load()), s.heard.last.Load()
	return out
}

// prepare makes the clients.
func (c *Crowd) prepare() ([]*client, error) {
	c.status.connected, c.status.failed = make([]int, len(c.Servers)), map[string]int{}
	clients := make([]*client, len(c.Members))
	for i, m := range c.Members {
		one, err := c.client(i, m)
		if err != nil {
			return nil, err
		}
		clients[i] = one
	}
	return clients, nil
}

// run connects the clients and keeps them so until ctx is done.
func (c *Crowd) run(ctx context.Context, clients []*client) {
	first, next := make(chan struct{}, c.AtOnce), make(chan struct{}, c.Returning)
	var all sync.WaitGroup
	for _, one := range clients {
		all.Go(func() { one.run(ctx, first, next) })
	}
	all.Wait()
}

func (c *Crowd) client(i int, m Member) (*client, error) {
	pair, err := nkeys.FromSeed(m.Seed)
	if err != nil {
		return nil, fmt.Errorf("reading the key of member %d: %w", i, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(m.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the TLS key of member %d: %w", i, err)
	}
	// The servers in an order of its own, its home first.
	order := rand.Perm(len(c.Servers))
	home := c.Homes[i%len(c.Homes)]
	for j, server := range order {
		if server == home {
			order[0], order[j] = order[j], order[0]
		}
	}
	return &client{crowd: c, jwt: m.JWT, key: pair, from: c.From[i%len(c.From)], order: order, config: &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: m.Chain, PrivateKey: key}},
		// verify does it, once for each certificate of a server: there are very many
		// clients, and few servers.
		InsecureSkipVerify: true,
		VerifyConnection:   c.verify,
	}}, nil
}

// verify says why the other end is no server, or nil.
func (c *Crowd) verify(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	if _, ok := c.verified.Load(string(leaf.Raw)); ok {
		return nil
	}
	opts := x509.VerifyOptions{Roots: c.Trust, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	c.verified.Store(string(leaf.Raw), true)
	return nil
}

func (s *status) came(server int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected[server]++
}

func (s *status) went(server int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected[server]--
	s.lost++
}

func (s *status) fail(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[reason]++
}

// hear notes that a client has heard tag.
func (s *status) hear(tag []byte) {
	h := &s.heard
	for {
		h.RLock()
		if h.tag == string(tag) {
			h.count.Add(1)
			h.last.Store(time.Now().UnixNano())
			h.RUnlock()
			return
		}
		h.RUnlock()
		h.Lock()
		if h.tag != string(tag) {
			h.tag = string(tag)
			h.count.Store(0)
		}
		h.Unlock()
	}
}
