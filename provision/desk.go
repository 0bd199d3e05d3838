package provision

import (
	"context"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
)

// A Desk is where a provisioner works: its place in an account, its connection there,
// and the book. OpenDesk makes one; Close it.
type Desk struct {
	*Station
	Conn *nats.Conn
	Book *Book

	asking *nats.Conn
}

// OpenDesk makes the user that connect connects as, of role admin or provisioner, a
// provisioner in an account. connect is called twice, with options for the second
// connection, which take the place of its own.
func OpenDesk(ctx context.Context, account string, connect func(...nats.Option) (*nats.Conn, error)) (_ *Desk, err error) {
	d := new(Desk)
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.asking, err = connect(); err != nil {
		return nil, err
	}
	if d.Station, err = Join(ctx, admin.New(d.asking), account); err != nil {
		if last := d.asking.LastError(); last != nil {
			err = last // such as a permission that is missing
		}
		return nil, err
	}
	if d.Conn, err = connect(d.Options()...); err != nil {
		return nil, err
	}
	d.Book, err = OpenBook(ctx, d.Conn, d.Replicas)
	return d, err
}

// Close ends all of it.
func (d *Desk) Close() {
	if d.Book != nil {
		d.Book.Close()
	}
	for _, nc := range []*nats.Conn{d.Conn, d.asking} {
		if nc != nil {
			nc.Close()
		}
	}
}
