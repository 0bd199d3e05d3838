package cert

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// readers is what relays share the requests of targets by.
	readers = "readers"
	// maxRead bounds the request of a target to read.
	maxRead = 16 << 10
	// readAbandoned is after how long without a request the engine forgets a consumer.
	readAbandoned = 30 * time.Second
)

// A Relay has the targets of an account read the ledger. The engine writes what it
// delivers, and what it answers, wherever a request says, and asks nobody's permission
// for that: who may use its API can have stored records, its own reports among them,
// written to any subject. So targets ask a relay, in the words of the engine's API, and
// the relay asks the engine for what they may read, to be sent to their own inbox and
// nowhere else.
//
// It is a service of a node. Any number of them share the work.
type Relay struct {
	// Logger is told of requests that are refused. Nil: nobody is.
	Logger *slog.Logger
}

// Run answers targets over a connection that may use the engine's API, until ctx ends.
func (r Relay) Run(ctx context.Context, nc *nats.Conn) error {
	log := r.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	sub, err := nc.QueueSubscribe(readPrefix("*")+">", readers, func(m *nats.Msg) {
		words := strings.SplitN(strings.TrimPrefix(m.Subject, requests+"read."), ".", 2)
		target, call := words[0], words[1]
		if !strings.HasPrefix(m.Reply, inbox(target)+".") {
			log.Warn("a target's request was refused", "target", target, "request", call, "err", "its answer is not for an inbox of its own")
			return
		}
		body, err := readable(target, call, m.Data)
		if err == nil {
			err = nc.PublishRequest("$JS.API."+call, m.Reply, body)
		} else {
			log.Warn("a target's request was refused", "target", target, "request", call, "err", err)
			err = m.Respond([]byte(`{"error":{"code":403,"description":"targets may not read this"}}`))
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("a target was not answered", "target", target, "err", err)
		}
	})
	if err != nil {
		return fmt.Errorf("answering targets that read: %w", err)
	}
	<-ctx.Done()
	_ = sub.Unsubscribe() // the connection may be gone
	return nil
}

// readPrefix begins the subjects of what a target asks of the engine's API.
func readPrefix(target string) string { return requests + "read." + target + "." }

// inbox begins the subjects where a target hears replies.
func inbox(target string) string { return "_INBOX." + target }

// readable returns the body that a target's request is to have, if it may make it.
func readable(target, call string, data []byte) ([]byte, error) {
	if len(data) > maxRead {
		return nil, fmt.Errorf("it has %d bytes, and %d are allowed", len(data), maxRead)
	}
	words := strings.Split(call, ".")
	verb := strings.Join(words[:min(3, len(words))], ".")
	switch {
	case call == "STREAM.INFO."+Stream:
		return nil, nil
	case call == "STREAM.MSG.GET."+Stream:
		var r struct {
			Seq  uint64 `json:"seq,omitempty"`
			Last string `json:"last_by_subj,omitempty"`
			Next string `json:"next_by_subj,omitempty"`
		}
		if err := json.Unmarshal(data, &r); err != nil || (r.Last == "") == (r.Next == "") || !mayRead(target, r.Last+r.Next) {
			return nil, fmt.Errorf("it may not read %q", r.Last+r.Next)
		}
		return json.Marshal(r)
	case verb == "CONSUMER.CREATE."+Stream && len(words) == 4:
		var r struct {
			Config jetstream.ConsumerConfig `json:"config"`
		}
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("it cannot be read: %w", err)
		}
		filters := r.Config.FilterSubjects
		if r.Config.FilterSubject != "" || len(filters) == 0 || slices.ContainsFunc(filters, func(f string) bool { return !mayRead(target, f) }) {
			return nil, fmt.Errorf("it may not read %q", filters)
		}
		return json.Marshal(map[string]any{"stream_name": Stream, "action": "create", "config": jetstream.ConsumerConfig{
			Name: words[3], DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(r.Config.OptStartSeq, 1), FilterSubjects: filters,
			AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: readAbandoned, Replicas: 1, MemoryStorage: true,
		}})
	case len(words) == 5 && strings.Join(words[:4], ".") == "CONSUMER.MSG.NEXT."+Stream:
		return data, nil
	}
	return nil, fmt.Errorf("it may not ask for that")
}

// mayRead reports whether a target may read all that a subject of the stream, which may
// have wildcards, matches: what is of groups, and its own reports.
func mayRead(target, subject string) bool {
	own := strings.Split(subject, ".")
	return strings.HasPrefix(subject, Prefix+".g.") ||
		strings.HasPrefix(subject, Prefix+".seen.") && len(own) == 6 && own[4] == target
}
