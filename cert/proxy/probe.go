package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of a handshake.
const (
	handshakeTime  = 5 * time.Second
	handshakeBytes = 256 << 10
)

// Probe shakes hands at addr, host:port, and returns what is served there for
// serverName, which is an empty string or an IP address where there is to be none. It
// believes nothing and checks no chain. It takes 5 seconds and 256 KiB at most. It is
// safe for concurrent use.
func Probe(ctx context.Context, addr, serverName string) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("looking what %s serves: %w", addr, err)
	}
	defer raw.Close()
	// What is presented is what this is about, whoever vouches for it.
	conn := tls.Client(bounded{raw, io.LimitReader(raw, handshakeBytes)}, &tls.Config{ServerName: serverName, InsecureSkipVerify: true})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("looking what %s serves for %q: %w", addr, serverName, err)
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

// bounded is a connection that ends after so many bytes.
type bounded struct {
	net.Conn
	r io.Reader
}

func (b bounded) Read(p []byte) (int, error) { return b.r.Read(p) }

// Served is what was seen at an address for a name of a pair.
type Served struct {
	// ID of the pair, and its Name that was asked for, at Addr.
	ID, Name, Addr string
	// Serial that is served, and the Latest, as Serial writes them. Serial is empty if
	// there was no handshake.
	Serial, Latest string
	// Err is why it is not the pair that is served. Nil: it is.
	Err error
}

// probeLabel is what stands for the asterisk of a wildcard, for lack of a host that is
// known.
const probeLabel = "fleetbus-probe"

// Verify shakes hands for each name of each pair at each of addrs, host:port, until all
// are served or ctx ends, and returns what it saw last, in the order of pairs. A
// program that was told to reload takes its time: give it a context of some seconds. No
// addrs: 127.0.0.1:443. Where pairs share a name, any of them will do.
func Verify(ctx context.Context, addrs []string, pairs []Pair) ([]Served, error) {
	all, err := check(pairs)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		addrs = []string{"127.0.0.1:443"}
	}
	leaves := map[string][]*x509.Certificate{}
	var seen []Served
	for _, c := range all {
		for _, name := range c.names {
			leaves[name] = append(leaves[name], c.leaf)
			for _, addr := range addrs {
				seen = append(seen, Served{ID: c.id, Name: name, Addr: addr, Latest: Serial(c.leaf), Err: errors.New("nobody has looked yet")})
			}
		}
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		look(ctx, seen, leaves)
		if !slices.ContainsFunc(seen, func(s Served) bool { return s.Err != nil }) {
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return seen, nil
		case <-time.After(pause):
		}
	}
}

// look probes what is not served yet, some at a time.
func look(ctx context.Context, seen []Served, leaves map[string][]*x509.Certificate) {
	var group sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range seen {
		if seen[i].Err == nil {
			continue
		}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			seen[i].look(ctx, leaves[seen[i].Name])
		})
	}
	group.Wait()
}

func (s *Served) look(ctx context.Context, wanted []*x509.Certificate) {
	name := s.Name
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		name = probeLabel + "." + parent
	}
	leaf, err := Probe(ctx, s.Addr, name)
	switch {
	case err != nil && ctx.Err() != nil && s.Serial != "":
		// What was seen before says more than that there was no time to look again.
	case err != nil:
		s.Serial, s.Err = "", err
	case slices.ContainsFunc(wanted, leaf.Equal):
		s.Serial, s.Err = Serial(leaf), nil
	default:
		s.Serial = Serial(leaf)
		s.Err = fmt.Errorf("%s answered with serial %s for %q, latest is %s", s.Addr, s.Serial, s.Name, s.Latest)
	}
}
