package broker

import (
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
)

// Traffic is what the clients and sites of an account have sent to this server and
// got from it since it started, without what came from or went to other servers.
type Traffic struct {
	// Account is the public key.
	Account                            string
	Connections                        int
	InMsgs, OutMsgs, InBytes, OutBytes int64
}

// Traffic lists the traffic of all accounts.
func (b *Broker) Traffic() ([]Traffic, error) {
	z, err := b.srv.AccountStatz(&server.AccountStatzOptions{IncludeUnused: true})
	if err != nil {
		return nil, fmt.Errorf("reading the traffic of accounts: %w", err)
	}
	all := make([]Traffic, len(z.Accounts))
	for i, a := range z.Accounts {
		in, out := clientsOf(a.Received), clientsOf(a.Sent)
		all[i] = Traffic{Account: a.Account, Connections: a.TotalConns, InMsgs: in.Msgs, OutMsgs: out.Msgs, InBytes: in.Bytes, OutBytes: out.Bytes}
	}
	return all, nil
}

// clientsOf leaves out what was exchanged with other servers.
func clientsOf(d server.DataStats) server.MsgBytes {
	n := d.MsgBytes
	for _, o := range []*server.MsgBytes{d.Routes, d.Gateways} {
		if o != nil {
			n.Msgs -= o.Msgs
			n.Bytes -= o.Bytes
		}
	}
	return n
}
