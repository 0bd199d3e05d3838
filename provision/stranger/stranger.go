// Package stranger is the protocol of machines that nobody knows: NATS, in clear or
// not, on a listener of its own, whose clients are all in one isolated account and
// may ask for an identity there, whatever credentials they show.
//
// A client gives itself a name, its user, of 12 to 23 letters and digits made by
// chance. It hears what is sent to _INBOX.<user>.> and may publish to
// provision.hello.<where> and provision.ask.<instance>.<where>, where <where> is its
// address as the server's INFO says in client_ip, with "-" for every "." or ":", and
// an IPv6 address in full. The engine sees to it.
//
// It is also the protocol of whoever is let in without credentials: see Protocol.Open.
package stranger

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// greeting is how long a client may take to say who it is, and maxLine how long
	// the line may be.
	greeting, maxLine = 5 * time.Second, 4 << 10
	// maxInfo bounds the engine's first line.
	maxInfo = 64 << 10
	// writeTimeout is how long a client may take to read something.
	writeTimeout = 10 * time.Second
	// saying is what the clients of one address may say who ask for an identity, in bytes a
	// second, and sayingBurst at once: a thousand of them a minute say less.
	saying, sayingBurst = 128 << 10, 128 << 10
)

// Protocol is the protocol; it implements fleetbus.Protocol. The zero value is
// ready. It is safe for concurrent use.
type Protocol struct {
	// Open says that who comes in asks for no identity, but has the role of the listener
	// in its account. It needs no name.
	Open bool
	// Connections at once, on this listener. Default: 4096.
	Connections int
	// PerAddress is how many of them may come from one address, or from one /64 of IPv6.
	// Default: 256.
	PerAddress int

	mu   sync.Mutex
	all  int
	from map[string]*address
}

// An address is one that clients come from, or a network of IPv6: how many there are, and how much they say.
type address struct {
	clients int
	pace    *rate.Limiter
}

// Why a client is not even listened to.
var (
	errFull    = errors.New("too many machines are here: try again later")
	errCrowded = errors.New("too many machines are here from your address: try again later")
)

// enter counts one more client from an address, or says why there may not be one.
func (p *Protocol) enter(network string) (*rate.Limiter, error) {
	most, each := p.Connections, p.PerAddress
	if most == 0 {
		most = 4096
	}
	if each == 0 {
		each = 256
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.from[network]
	switch {
	case p.all >= most:
		return nil, errFull
	case a != nil && a.clients >= each:
		return nil, errCrowded
	case p.from == nil:
		p.from = map[string]*address{}
	}
	if a == nil {
		a = &address{pace: rate.NewLimiter(saying, sayingBurst)}
		if p.Open {
			a.pace.SetLimit(rate.Inf)
		}
		p.from[network] = a
	}
	p.all++
	a.clients++
	return a.pace, nil
}

func (p *Protocol) leave(network string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if a := p.from[network]; a.clients > 1 {
		a.clients--
	} else {
		delete(p.from, network)
	}
}

// Serve serves the clients of ln until ctx is done.
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serving strangers: %w", err)
		}
		running.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			// Whoever has one address of IPv6 has as many as there are connections here.
			network := strangers.Network(conn.RemoteAddr().String())
			pace, err := p.enter(network)
			if err != nil {
				p.refuse(conn, err)
				return
			}
			defer p.leave(network)
			if err := p.serve(ctx, conn, host, pace, login); err != nil {
				p.refuse(conn, err)
			}
		})
	}
}

// refuse tells the client why, in the engine's words.
func (p *Protocol) refuse(conn net.Conn, err error) {
	text := err.Error()
	switch {
	case !errors.Is(err, identity.ErrUnauthorized):
	case p.Open:
		text = "you may not come in here, or not now"
	default:
		// It is why, and tells nothing that the documentation does not.
		text = "give yourself a user of 12 to 23 letters and digits made by chance"
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(conn, "-ERR '%s'\r\n", text)
}

// info is the line that the client is greeted with.
func (p *Protocol) info(host string) ([]byte, error) {
	payload := 32 << 10
	if p.Open {
		payload = 1 << 20
	}
	body, err := json.Marshal(map[string]any{
		"server_id": "FLEETBUS", "server_name": "fleetbus", "version": "2.12.0", "proto": 0, "headers": true,
		"max_payload": payload, "auth_required": !p.Open, "client_ip": host,
	})
	return append(append([]byte("INFO "), body...), "\r\n"...), err
}

// connect is what a client may say of itself, and what is added to it. Credentials
// that it shows are none of ours.
type connect struct {
	Verbose      bool   `json:"verbose"`
	Pedantic     bool   `json:"pedantic"`
	Lang         string `json:"lang,omitempty"`
	Version      string `json:"version,omitempty"`
	Headers      bool   `json:"headers"`
	NoResponders bool   `json:"no_responders"`
	User         string `json:"user,omitempty"`
	JWT          string `json:"jwt,omitempty"`
	Signature    string `json:"sig,omitempty"`
}

var (
	errGreeting = errors.New("the first line has to be CONNECT, with what NATS has there, in 4 KiB at most")
	errAway     = errors.New("try again later")
)

// operation is the rest of a line that begins with a word of the protocol.
func operation(line []byte, word string) ([]byte, bool) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) <= len(word) || !bytes.EqualFold(line[:len(word)], []byte(word)) || line[len(word)] != ' ' && line[len(word)] != '\t' {
		return nil, false
	}
	return bytes.TrimSpace(line[len(word):]), true
}

// parseConnect reads the client's first line.
func parseConnect(line []byte) (c connect, err error) {
	body, ok := operation(line, "CONNECT")
	if !ok || json.Unmarshal(body, &c) != nil {
		return connect{}, errGreeting
	}
	c.JWT, c.Signature = "", ""
	return c, nil
}

// serve serves one client.
func (p *Protocol) serve(ctx context.Context, conn net.Conn, host string, pace *rate.Limiter, login fleetbus.Login) error {
	hello, err := p.info(host)
	if err != nil {
		return errAway
	}
	if err := conn.SetDeadline(time.Now().Add(greeting)); err != nil {
		return errAway
	}
	if _, err := conn.Write(hello); err != nil {
		return errAway
	}
	in := bufio.NewReaderSize(conn, maxLine)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return errGreeting
	}
	c, err := parseConnect(line)
	if err != nil {
		return err
	}
	session, err := login(ctx, identity.Credentials{Username: c.User, Remote: conn.RemoteAddr().String()})
	if err != nil {
		if errors.Is(err, identity.ErrUnauthorized) {
			return err
		}
		return errAway // why is not for strangers
	}
	defer session.Close()
	session.SetClosedHandler(func(*nats.Conn) { conn.Close() })
	engine, from, err := dial(session, c)
	if err != nil {
		return errAway
	}
	defer engine.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return errAway
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(engine, paced{ctx, in, pace}) // either end closes
		engine.Close()
	}()
	_, _ = io.Copy(patient{conn}, from)
	conn.Close()
	<-done
	return nil
}

// paced reads from a client as fast as its address may say something.
type paced struct {
	ctx  context.Context
	in   io.Reader
	pace *rate.Limiter
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.in.Read(b[:min(len(b), sayingBurst)])
	if err == nil {
		err = p.pace.WaitN(p.ctx, n)
	}
	return n, err
}

// patient writes to a client that reads.
type patient struct{ net.Conn }

func (p patient) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}

// dial greets the engine as the session's principal, with what c says besides.
func dial(session *fleetbus.Session, c connect) (net.Conn, io.Reader, error) {
	engine, token, sign, err := session.Raw()
	if err != nil {
		return nil, nil, err
	}
	_ = engine.SetDeadline(time.Now().Add(greeting))
	from := bufio.NewReaderSize(engine, maxInfo)
	line, err := from.ReadSlice('\n')
	if err != nil {
		return engine, nil, err
	}
	var greeted struct {
		Nonce string `json:"nonce"`
	}
	if body, ok := operation(line, "INFO"); !ok || json.Unmarshal(body, &greeted) != nil {
		return engine, nil, errAway
	}
	signature, err := sign([]byte(greeted.Nonce))
	if err != nil {
		return engine, nil, err
	}
	c.User, c.JWT, c.Signature = "", token, base64.RawURLEncoding.EncodeToString(signature)
	body, err := json.Marshal(c)
	if err != nil {
		return engine, nil, err
	}
	if _, err := fmt.Fprintf(engine, "CONNECT %s\r\n", body); err != nil {
		return engine, nil, err
	}
	return engine, from, engine.SetDeadline(time.Time{})
}
