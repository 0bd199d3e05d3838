package cert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	// refused is what is told of a request that a target may not make.
	refused = "a target's request was refused"
	// readAbandoned is after how long without a request the engine forgets a consumer.
	readAbandoned = 30 * time.Second
)

// complaints tell of the requests of targets that come to nothing, of each target and
// reason once in complainEvery. Only one goroutine uses them.
type complaints struct {
	log    *slog.Logger
	last   map[complaint]time.Time
	forgot time.Time // when those were last looked through
}

type complaint struct{ target, what, why string }

const (
	complainEvery = 10 * time.Second
	// maxComplaints bounds what is remembered; beyond it, what is new is not told.
	maxComplaints = 10_000
)

// tell tells of a request of target. The first error that err wraps, if it wraps any, is
// the reason, and the rest is different each time.
func (c *complaints) tell(now time.Time, what, target, call string, err error) {
	reason := err
	if inner := errors.Unwrap(err); inner != nil {
		reason = inner
	}
	this := complaint{target, what, reason.Error()}
	if now.Sub(c.last[this]) < complainEvery {
		return
	}
	if len(c.last) >= maxComplaints && now.Sub(c.forgot) >= complainEvery {
		c.forgot = now
		maps.DeleteFunc(c.last, func(_ complaint, at time.Time) bool { return now.Sub(at) >= complainEvery })
	}
	if len(c.last) >= maxComplaints {
		return
	}
	c.last[this] = now
	c.log.Warn(what, "target", target, "request", call, "error", err)
}

// A Relay has the targets of an account read the ledgers. The engine writes what it
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
	told := &complaints{log: log, last: map[complaint]time.Time{}}
	sub, err := nc.QueueSubscribe(readPrefix("*")+">", readers, func(m *nats.Msg) {
		words := strings.SplitN(strings.TrimPrefix(m.Subject, requests+"read."), ".", 2)
		target, call := words[0], words[1]
		if !strings.HasPrefix(m.Reply, inbox(target)+".") {
			told.tell(time.Now(), refused, target, call, errInbox)
			return
		}
		body, err := readable(target, call, m.Data)
		if err == nil {
			err = nc.PublishRequest("$JS.API."+call, m.Reply, body)
		} else {
			told.tell(time.Now(), refused, target, call, err)
			err = m.Respond([]byte(`{"error":{"code":403,"description":"targets may not read this"}}`))
		}
		if err != nil && ctx.Err() == nil {
			told.tell(time.Now(), "a target was not answered", target, call, err)
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

// Why a request of a target is refused.
var (
	errInbox      = errors.New("its answer is not for an inbox of its own")
	errTooLong    = errors.New("it is too long")
	errForbidden  = errors.New("it may not read that")
	errUnreadable = errors.New("it cannot be read")
	errUnknown    = errors.New("it may not ask for that")
)

// readable returns the body that a target's request is to have, if it may make it.
func readable(target, call string, data []byte) ([]byte, error) {
	if len(data) > maxRead {
		return nil, fmt.Errorf("%w: it has %d bytes, and %d are allowed", errTooLong, len(data), maxRead)
	}
	words := strings.Split(call, ".")
	at := map[string]int{"STREAM.INFO": 2, "STREAM.MSG": 3, "CONSUMER.CREATE": 2, "CONSUMER.MSG": 3}[strings.Join(words[:min(2, len(words))], ".")]
	if at == 0 || at >= len(words) || words[at] != Stream && words[at] != ReportStream {
		return nil, errUnknown
	}
	stream, rest := words[at], words[at+1:]
	switch verb := strings.Join(words[:at], "."); {
	case verb == "STREAM.INFO" && len(rest) == 0:
		return nil, nil
	case verb == "STREAM.MSG.GET" && len(rest) == 0:
		var r struct {
			Seq  uint64 `json:"seq,omitempty"`
			Last string `json:"last_by_subj,omitempty"`
			Next string `json:"next_by_subj,omitempty"`
		}
		if err := json.Unmarshal(data, &r); err != nil || (r.Last == "") == (r.Next == "") || !mayRead(target, stream, r.Last+r.Next) {
			return nil, fmt.Errorf("%w: %q", errForbidden, r.Last+r.Next)
		}
		return json.Marshal(r)
	case verb == "CONSUMER.CREATE" && len(rest) == 1:
		var r struct {
			Config jetstream.ConsumerConfig `json:"config"`
		}
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("%w: %s", errUnreadable, err.Error())
		}
		filters := r.Config.FilterSubjects
		if r.Config.FilterSubject != "" || len(filters) == 0 || slices.ContainsFunc(filters, func(f string) bool { return !mayRead(target, stream, f) }) {
			return nil, fmt.Errorf("%w: %q", errForbidden, filters)
		}
		return json.Marshal(map[string]any{"stream_name": stream, "action": "create", "config": jetstream.ConsumerConfig{
			Name: rest[0], DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(r.Config.OptStartSeq, 1), FilterSubjects: filters,
			AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: readAbandoned, Replicas: 1, MemoryStorage: true,
		}})
	case verb == "CONSUMER.MSG.NEXT" && len(rest) == 1:
		return data, nil
	}
	return nil, errUnknown
}

// mayRead reports whether a target may read all that a subject of a stream, which may
// have wildcards, matches: what is of groups, and its own reports.
func mayRead(target, stream, subject string) bool {
	if stream == ReportStream {
		own := strings.Split(subject, ".")
		return strings.HasPrefix(subject, ReportPrefix+".report.") && len(own) == 6 && own[4] == target
	}
	return strings.HasPrefix(subject, Prefix+".g.")
}
