package natsload

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
)

// buffer is what a client reads at once, in bytes, and a line at most.
const buffer = 4 << 10

// A client is one of a Crowd.
type client struct {
	crowd  *Crowd
	jwt    string
	key    nkeys.KeyPair
	config *tls.Config
	from   net.IP
	order  []int // of servers; it is at the first, or tries it next
}

// run keeps the client connected until ctx is done. It goes through the servers as the
// library does: to the next at once, and after all of them it rests.
func (c *client) run(ctx context.Context, gate, next chan struct{}) {
	tried := 0
	for ctx.Err() == nil {
		server := c.order[0]
		select {
		case gate <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, r, err := c.connect(ctx, c.crowd.Servers[server])
		<-gate
		if err == nil {
			tried, gate = 0, next
			c.crowd.status.came(server)
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			_ = c.hear(conn, r) // whatever ended it
			stop()
			conn.Close()
			if ctx.Err() != nil {
				return
			}
			c.crowd.status.went(server)
		} else if ctx.Err() == nil {
			c.crowd.status.fail(reason(err))
		}
		c.order = append(c.order[1:], server)
		if tried++; tried%len(c.order) != 0 {
			continue
		}
		select {
		case <-time.After(roundPause + rand.N(roundJitter)):
		case <-ctx.Done():
		}
	}
}

// reason is a few words of an error, which many clients share.
func reason(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer in time"
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// connect logs in and subscribes.
func (c *client) connect(ctx context.Context, server string) (_ net.Conn, _ *bufio.Reader, err error) {
	raw, err := (&net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: c.from}}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, nil, err
	}
	conn := net.Conn(raw)
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := raw.SetDeadline(time.Now().Add(loginTimeout)); err != nil {
		return nil, nil, err
	}
	// Nothing follows the greeting before the handshake.
	greeting, err := readLine(bufio.NewReaderSize(raw, buffer))
	if err != nil {
		return nil, nil, err
	}
	var info struct{ Nonce string }
	if err := json.Unmarshal(bytes.TrimPrefix(greeting, []byte("INFO ")), &info); err != nil {
		return nil, nil, fmt.Errorf("reading a greeting: %w", err)
	}
	secure := tls.Client(raw, c.config)
	conn = secure
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	signature, err := c.key.Sign([]byte(info.Nonce))
	if err != nil {
		return nil, nil, err
	}
	login := fmt.Sprintf("CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1,\"headers\":true,\"no_responders\":true,\"jwt\":%q,\"sig\":%q}\r\nSUB %s 1\r\nPING\r\n",
		c.jwt, base64.RawURLEncoding.EncodeToString(signature), c.crowd.Subject)
	if _, err := io.WriteString(secure, login); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(secure, 512)
	for {
		line, err := readLine(r)
		switch {
		case err != nil:
			return nil, nil, err
		case bytes.HasPrefix(line, []byte("-ERR")):
			return nil, nil, errors.New(string(line))
		case bytes.HasPrefix(line, []byte("PONG")):
			return secure, r, secure.SetDeadline(time.Time{})
		}
	}
}

// hear reads until the connection ends.
func (c *client) hear(conn net.Conn, r *bufio.Reader) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		switch {
		case bytes.HasPrefix(line, []byte("PING")):
			if _, err := io.WriteString(conn, "PONG\r\n"); err != nil {
				return err
			}
		case bytes.HasPrefix(line, []byte("MSG ")):
			size, err := strconv.Atoi(string(line[bytes.LastIndexByte(line, ' ')+1:]))
			if err != nil || size > r.Size()-2 {
				return fmt.Errorf("a message is not as expected: %q", line)
			}
			payload, err := r.Peek(size + 2)
			if err != nil {
				return err
			}
			c.crowd.status.hear(payload[:size])
			if _, err := r.Discard(size + 2); err != nil {
				return err
			}
		}
	}
}

// readLine reads a line, however long it is up to what the engine writes, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) && len(long) < 64<<10 {
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	return bytes.TrimRight(line, "\r\n"), err
}
