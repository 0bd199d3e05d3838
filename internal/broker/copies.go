package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unsafe" // and for go:linkname

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// A server compares its copies of streams with the others' this long after it began, then
	// after twice as long, and so on.
	compareFirst, compareLast = 3 * time.Second, 10 * time.Minute
	// settles is longer than a copy is behind another that is current.
	settles = 2 * time.Second
	// lacking is how often in a row a copy lacks something before it is made anew.
	lacking = 3
)

// A copyName is whose copy of which stream it is: the public key of an account, and the name.
type copyName struct{ account, stream string }

// keepCopies makes anew, from the others, the copies of streams that lack what all others
// have: what the engine finds damaged when it starts, it throws away with all that is
// behind it in the file, and does not ask for it again. It ends with the broker.
func (b *Broker) keepCopies() {
	times := map[copyName]int{}
	for wait := compareFirst; b.rests(wait); {
		found, err := b.lacking()
		if err != nil && b.background.Err() == nil {
			b.opts.Logger.Warn("copies of streams cannot be compared", "error", err)
		}
		for name := range times {
			if found[name] == 0 {
				delete(times, name)
			}
		}
		for name, count := range found {
			if times[name]++; times[name] < lacking {
				continue
			}
			delete(times, name)
			b.opts.Logger.Warn("a copy of a stream lacks messages that all others have: it is made anew", "account", name.account, "stream", name.stream, "count", count)
			if err := b.remake(name); err != nil {
				b.opts.Logger.Error("a copy of a stream cannot be made anew", "account", name.account, "stream", name.stream, "error", err)
			}
		}
		if wait = min(2*wait, compareLast); len(times) > 0 {
			wait = compareFirst
		}
	}
}

// rests waits, and reports whether the broker goes on.
func (b *Broker) rests(wait time.Duration) bool {
	select {
	case <-b.background.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// lacking counts what copies here lack that all other copies have. Copies of a stream that is
// written to are never seen in the same state. So a copy lacks something only if it did so
// before the others are asked, and still does after it: whatever is removed or comes
// meanwhile makes it one or the other.
func (b *Broker) lacking() (map[copyName]int, error) {
	before := b.copies()
	accounts := map[string]map[string]bool{} // and the servers that have the others
	for name, one := range before {
		if one.State.NumDeleted == 0 && one.State.FirstSeq <= 1 {
			continue
		}
		if accounts[name.account] == nil {
			accounts[name.account] = map[string]bool{}
		}
		for _, peer := range one.Cluster.Replicas {
			accounts[name.account][peer.Name] = true
		}
	}
	if len(accounts) == 0 || !b.rests(settles) {
		return nil, nil
	}
	nc, err := b.Connect(b.opts.System()...)
	if err != nil {
		return nil, fmt.Errorf("comparing copies of streams: %w", err)
	}
	defer nc.Close()
	others := map[copyName]map[string]server.StreamDetail{}
	for account, servers := range accounts {
		if err := b.otherCopies(nc, account, servers, others); err != nil {
			return nil, err
		}
	}
	if !b.rests(settles) {
		return nil, nil
	}
	found := map[copyName]int{}
	for name, after := range b.copies() {
		if one, ok := before[name]; ok {
			if n := lacks(b.srv.Name(), one, after, others[name]); n > 0 {
				found[name] = n
			}
		}
	}
	return found, nil
}

// copies are those here, of streams that have three or more.
func (b *Broker) copies() map[copyName]server.StreamDetail {
	b.claims.RLock()
	defer b.claims.RUnlock()
	all := map[copyName]server.StreamDetail{}
	z, err := b.srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Limit: 1 << 20})
	if err != nil {
		return nil
	}
	for _, a := range z.AccountDetails {
		for _, s := range a.Streams {
			if s.Cluster != nil && len(s.Cluster.Replicas) >= 2 {
				all[copyName{a.Id, s.Name}] = s
			}
		}
	}
	return all
}

// otherCopies adds what servers have of an account, by their names, and waits for those.
func (b *Broker) otherCopies(nc *nats.Conn, account string, servers map[string]bool, all map[copyName]map[string]server.StreamDetail) error {
	body, err := json.Marshal(server.JSzOptions{Account: account, Streams: true})
	if err != nil {
		return fmt.Errorf("comparing copies of streams: %w", err)
	}
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err == nil {
		err = nc.PublishRequest("$SYS.REQ.SERVER.PING.JSZ", inbox, body)
	}
	if err != nil {
		return fmt.Errorf("comparing copies of streams: %w", err)
	}
	defer sub.Unsubscribe()
	for end := time.Now().Add(settles); len(servers) > 0; {
		msg, err := sub.NextMsg(time.Until(end))
		if err != nil {
			return nil // who does not answer is not there
		}
		var reply struct {
			Server server.ServerInfo `json:"server"`
			Data   server.JSInfo     `json:"data"`
		}
		if err := json.Unmarshal(msg.Data, &reply); err != nil {
			return fmt.Errorf("comparing copies of streams: %w", err)
		}
		delete(servers, reply.Server.Name)
		for _, a := range reply.Data.AccountDetails {
			for _, s := range a.Streams {
				name := copyName{a.Id, s.Name}
				if all[name] == nil {
					all[name] = map[string]server.StreamDetail{}
				}
				all[name][reply.Server.Name] = s
			}
		}
	}
	return nil
}

// lacks counts what the copy here lacked before and after the others were asked, that all of
// them have. It is 0 if they are not all there and current: then none can be spared.
func lacks(here string, before, after server.StreamDetail, others map[string]server.StreamDetail) int {
	leader := after
	if after.Cluster.Leader != here {
		leader = others[after.Cluster.Leader]
	}
	if leader.Cluster == nil || leader.Cluster.Leader != after.Cluster.Leader {
		return 0
	}
	least := 0
	for _, peer := range after.Cluster.Replicas {
		other, ok := others[peer.Name]
		if !ok {
			return 0
		}
		n := min(absent(before.State, other.State), absent(after.State, other.State))
		if n <= 0 {
			return 0
		}
		if least == 0 || n < least {
			least = n
		}
	}
	for _, peer := range leader.Cluster.Replicas {
		if peer.Name != here && (!peer.Current || peer.Offline) {
			return 0
		}
	}
	return least
}

// absent is how many messages more are missing in one copy, from the first of the other on.
func absent(one, other server.StreamState) int {
	if one.FirstSeq < other.FirstSeq {
		return 0
	}
	return one.NumDeleted + int(one.FirstSeq-other.FirstSeq) - other.NumDeleted
}

// remake removes the copy here, and has the engine get it from the others.
func (b *Broker) remake(name copyName) error {
	account, err := b.srv.LookupAccount(name.account)
	if err != nil {
		return err
	}
	stream, err := lookupStream(account, name.stream)
	if err != nil {
		return err
	}
	if !resetStream(stream, nil, errFirst) {
		return errors.New("the engine refuses to")
	}
	return nil
}

// lookupStream is where the engine has a stream, and resetStream how it makes its copy anew, which it
// does itself when it sees, by errFirst, that it is another than the leader's. Without them,
// or with other signatures, this package does not link, or its tests fail.
//
//go:linkname lookupStream github.com/nats-io/nats-server/v2/server.(*Account).lookupStream
func lookupStream(*server.Account, string) (unsafe.Pointer, error)

//go:linkname resetStream github.com/nats-io/nats-server/v2/server.(*stream).resetClusteredState
func resetStream(unsafe.Pointer, server.RaftNode, error) bool

//go:linkname errFirst github.com/nats-io/nats-server/v2/server.errFirstSequenceMismatch
var errFirst error
