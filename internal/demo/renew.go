package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/internal/human"
)

const (
	// loadClients are connected to each node.
	loadClients = 17
	// loadPause is how long each client waits between two requests.
	loadPause = 20 * time.Millisecond
	// loadRequests are answered to each client after the renewal.
	loadRequests = 25
	// loadTimeout is how long one answer may take.
	loadTimeout = 10 * time.Second
)

// renew renews the certificates of all nodes while clients on all of them ask and
// answer each other, and looks at what a new handshake shows.
func (d *Demo) renew(ctx context.Context) (measured, error) {
	l, err := d.newLoad(ctx)
	if err != nil {
		return measured{}, err
	}
	defer l.close()
	stop := l.start(ctx)
	defer stop()
	if err := l.answeredEach(ctx, 1); err != nil {
		return measured{}, err
	}
	before, err := d.serials(ctx)
	if err != nil {
		return measured{}, err
	}
	began := time.Now()
	renewed, err := d.api.RenewNodes(ctx, "")
	if err != nil {
		return measured{}, fmt.Errorf("renewing certificates: %w", err)
	}
	took := time.Since(began)
	for _, r := range renewed {
		if r.Error != "" {
			return measured{}, fmt.Errorf("renewing the certificates of node %q: %s", r.Node, r.Error)
		}
	}
	after, err := d.serials(ctx)
	if err != nil {
		return measured{}, err
	}
	for addr, serial := range before {
		if after[addr] == serial {
			return measured{}, fmt.Errorf("renewing certificates: %s shows the old one", addr)
		}
	}
	if err := l.answeredEach(ctx, loadRequests); err != nil {
		return measured{}, err
	}
	stop()
	if err := l.failed(); err != nil {
		return measured{}, err
	}
	return measured{detail: fmt.Sprintf("%s in %s; %s, 0 dropped; %s, 0 lost", human.Count(len(after), "certificate"), human.Duration(took),
		human.Count(len(l.clients), "connection"), human.Count(l.answered(), "request"))}, nil
}

// serials are the numbers of the certificates that the ports of all nodes show,
// by address.
func (d *Demo) serials(ctx context.Context) (map[string]string, error) {
	all := map[string]string{}
	for _, n := range d.nodes {
		for _, p := range []port{clientPort(n), clusterPort(n)} {
			serial, err := p.serial(ctx)
			if err != nil {
				return nil, fmt.Errorf("looking at the certificate of %s: %w", p.addr, err)
			}
			all[p.addr] = serial
		}
	}
	return all, nil
}

// serial is the number of the certificate that a handshake shows. It matters not
// that the port then refuses a client that shows none.
func (p port) serial(ctx context.Context) (string, error) {
	conn, err := p.shake(ctx, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// A load is many clients that ask and answer each other.
type load struct {
	clients []*loadClient
	dropped atomic.Int64
	// closing says that connections are closed by us.
	closing atomic.Bool
}

// A loadClient asks the next one, which is on another node, and answers the one
// before.
type loadClient struct {
	*nats.Conn
	asks     string
	answered atomic.Int64
	lost     atomic.Pointer[error]
}

// newLoad connects the clients. None of them connects again.
func (d *Demo) newLoad(ctx context.Context) (_ *load, err error) {
	l := &load{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	total := loadClients * len(d.nodes)
	for i := range total {
		nc, err := d.connect(d.nodes[i%len(d.nodes)], d.clerk, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) {
			if !l.closing.Load() {
				l.dropped.Add(1)
			}
		}))
		if err != nil {
			return nil, err
		}
		l.clients = append(l.clients, &loadClient{Conn: nc, asks: fmt.Sprintf("load.%d", (i+1)%total)})
		if _, err := nc.Subscribe(fmt.Sprintf("load.%d", i), func(msg *nats.Msg) {
			// An answer that does not arrive is what the other one finds out.
			_ = msg.Respond(msg.Data)
		}); err != nil {
			return nil, fmt.Errorf("subscribing client %d: %w", i, err)
		}
	}
	for _, c := range l.clients {
		err := retry(ctx, "waiting until a client is known", func(ctx context.Context) error {
			_, err := c.RequestWithContext(ctx, c.asks, nil)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

// start lets every client ask without end. stop ends it when the questions under
// way are answered, and may be called again.
func (l *load) start(ctx context.Context) (stop func()) {
	quit := make(chan struct{})
	var asking sync.WaitGroup
	for _, c := range l.clients {
		asking.Go(func() { c.ask(ctx, quit) })
	}
	return sync.OnceFunc(func() {
		close(quit)
		asking.Wait()
	})
}

func (c *loadClient) ask(ctx context.Context, quit chan struct{}) {
	tick := time.NewTicker(loadPause)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, loadTimeout)
		_, err := c.RequestWithContext(try, c.asks, []byte("load"))
		cancel()
		if err != nil {
			c.lost.Store(&err)
			return
		}
		c.answered.Add(1)
		select {
		case <-quit:
			return
		case <-tick.C:
		}
	}
}

// failed says which connection dropped or which message was lost; nil if none.
func (l *load) failed() error {
	if n := l.dropped.Load(); n > 0 {
		return fmt.Errorf("keeping connections: %d of %d dropped", n, len(l.clients))
	}
	for i, c := range l.clients {
		if err := c.lost.Load(); err != nil {
			return fmt.Errorf("asking as client %d: %w", i, *err)
		}
	}
	return nil
}

// answered counts the requests that were answered.
func (l *load) answered() (n int) {
	for _, c := range l.clients {
		n += int(c.answered.Load())
	}
	return n
}

// answeredEach returns when every client has been answered n times more, or one
// of them has failed.
func (l *load) answeredEach(ctx context.Context, n int64) error {
	from := make([]int64, len(l.clients))
	for i, c := range l.clients {
		from[i] = c.answered.Load()
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	return retry(ctx, "waiting for answers", func(context.Context) error {
		if err := l.failed(); err != nil {
			fail(err)
			return err
		}
		for i, c := range l.clients {
			if c.answered.Load() < from[i]+n {
				return errors.New("too few yet")
			}
		}
		return nil
	})
}

// close closes the connections.
func (l *load) close() {
	l.closing.Store(true)
	for _, c := range l.clients {
		c.Close()
	}
}
