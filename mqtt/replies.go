package mqtt

import (
	"cmp"
	"crypto/rand"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// replies are the answers that the client waits for from those who know nothing of
// correlation data.
type replies struct {
	mu      sync.Mutex
	inbox   string
	sub     *nats.Subscription
	waiting map[string]expected
}

type expected struct {
	topic string
	corr  []byte
	until time.Time
}

const (
	// maxReplies is how many answers a client may wait for, and replyTimeout how long.
	maxReplies   = 256
	replyTimeout = time.Minute
)

// expectReply is where the answer to p, which is published to subject, is to go so that
// it comes to the response topic of p, with its correlation data; empty: nowhere.
func (s *session) expectReply(subject string, p *packet.Publish) string {
	topic := string(p.ResponseTopic)
	reply := mapping.Subject(topic)
	if reserved(topic) || len(subject)+len(reply) > maxSubject+headRoom {
		return "" // the engine does not take it: it is for MQTT clients only
	}
	if p.CorrelationData == nil {
		return reply
	}
	x := &s.replies
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	if x.sub == nil {
		x.inbox, x.waiting = s.login.NewInbox()+".", map[string]expected{}
		sub, err := s.login.Subscribe(x.inbox+"*", s.replied)
		if err != nil || s.login.Flush() != nil { // what goes past the library does not wait for it
			return ""
		}
		x.sub = sub
	}
	if len(x.waiting) >= maxReplies {
		maps.DeleteFunc(x.waiting, func(_ string, e expected) bool { return now.After(e.until) })
		if len(x.waiting) >= maxReplies {
			return ""
		}
	}
	token := rand.Text()[:12]
	x.waiting[token] = expected{topic, append([]byte(nil), p.CorrelationData...), now.Add(replyTimeout)}
	return x.inbox + token
}

// replied takes an answer.
func (s *session) replied(msg *nats.Msg) {
	x := &s.replies
	x.mu.Lock()
	token := strings.TrimPrefix(msg.Subject, x.inbox)
	e, ok := x.waiting[token]
	delete(x.waiting, token)
	x.mu.Unlock()
	subject := mapping.Subject(e.topic)
	if !ok || !s.login.Principal.Permissions.Publish.Allows(subject) {
		return
	}
	m, _ := decode("a", msg)
	p := packet.Message{Payload: msg.Data, CorrelationData: e.corr, Format: m.format, UserProperties: m.user}
	if m.content != "" {
		p.ContentType = []byte(m.content)
	}
	_ = s.login.PublishMsg(encode(subject, "", &p))
}

// owed are the answers that a client may send although its permissions do not allow
// their topics, because it was asked: so many, and so long.
type owed struct {
	left  int
	until time.Time
}

// repliesFor is how long a client may answer if its permissions do not say.
const repliesFor = 2 * time.Minute

// owe notes that the client is asked for answers to topic; mu is held.
func (s *session) owe(topic string) {
	may, subject := s.login.Principal.Permissions.Replies, mapping.Subject(topic)
	inbox := strings.HasPrefix(subject, "_INBOX.")
	if may == nil || topic == "" || reserved(topic) && !inbox || s.mayPublish(topic, subject) {
		return
	}
	now := time.Now()
	if len(s.owed) >= maxReplies {
		maps.DeleteFunc(s.owed, func(_ string, o owed) bool { return now.After(o.until) })
		if len(s.owed) >= maxReplies {
			return
		}
	}
	if s.owed == nil {
		s.owed = map[string]owed{}
	}
	s.owed[topic] = owed{cmp.Or(may.Max, 1), now.Add(cmp.Or(may.For, repliesFor))}
}

// takeOwed reports whether topic is that of an answer that the client owes, and
// counts it.
func (s *session) takeOwed(topic string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.owed[topic]
	if !ok || time.Now().After(o.until) {
		return false
	}
	if o.left--; o.left == 0 {
		delete(s.owed, topic)
	} else {
		s.owed[topic] = o
	}
	return true
}
