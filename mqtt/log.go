package mqtt

import (
	"sync"
	"time"
)

// log has the operator told what a client brought about, by constant texts. A client
// can bring it about as often as it likes: for each text, and code among args, there is
// one line in sayEvery, which says how many were left out before it.
func (s *session) log(what string, args ...any) {
	reason := what
	for i := 0; i+1 < len(args); i += 2 {
		if code, ok := args[i+1].(string); ok && args[i] == "code" {
			reason += code
		}
	}
	omitted, may := s.said.may(reason, time.Now())
	if !may {
		return
	}
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	s.p.log().With("principal", s.login.Principal, "client", clip(s.id), "remote", s.conn.RemoteAddr().String()).Warn(what, args...)
}

// sayEvery is how long the operator is not told the same of the same client.
const sayEvery = 10 * time.Second

// said is what the operator was told. It is safe for concurrent use.
type said struct {
	mu  sync.Mutex
	all map[string]saying
}

type saying struct {
	at      time.Time
	omitted int
}

// may reports whether the operator is told of a reason now, and how often it was left
// out since it was told last.
func (s *said) may(reason string, now time.Time) (omitted int, may bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, again := s.all[reason]
	if again && now.Sub(last.at) < sayEvery {
		last.omitted++
		s.all[reason] = last
		return 0, false
	}
	if s.all == nil {
		s.all = map[string]saying{}
	}
	s.all[reason] = saying{at: now}
	return last.omitted, true
}

// clip keeps a text from strangers short in a log.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
