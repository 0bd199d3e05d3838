package console

import (
	"context"
	"net/http"
	"strings"
	"time"
)

const (
	// beat is how often a silent stream shows that it is alive, and writeTimeout how
	// long a browser may take to read.
	beat, writeTimeout = 15 * time.Second, 20 * time.Second
	// retry is how soon a browser comes again, in milliseconds.
	retry = "retry: 1000\n\n"
	// feedsEach is how many feeds one stream may have, and streamsEach how many
	// streams one visitor.
	feedsEach, streamsEach = 8, 32
)

// hello is the first event of a stream.
type hello struct {
	Epoch string `json:"epoch"`
	// At is the node's time, in milliseconds.
	At int64 `json:"at"`
	// Missing are the feeds that there are not, for whoever asks.
	Missing []string `json:"missing"`
}

// live sends what a browser looks at, for as long as it looks: the feeds that it names.
func (h *Handler) live(w http.ResponseWriter, r *http.Request, v *visitor) {
	names := strings.Split(r.URL.Query().Get("feeds"), ",")
	if len(names) > feedsEach {
		refuse(w, http.StatusBadRequest, "too many feeds", "use the page")
		return
	}
	v.look(1)
	defer v.look(-1)
	if v.looking() > streamsEach {
		refuse(w, http.StatusTooManyRequests, "you look too often at once", "close some windows")
		return
	}
	watching := &watcher{visitor: v, wake: make(chan struct{}, 1)}
	defer h.leave(watching)
	first := hello{Epoch: h.epoch, At: time.Now().UnixMilli(), Missing: []string{}}
	for _, name := range names {
		if !h.join(watching, name) {
			first.Missing = append(first.Missing, name)
		}
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	send := func(data []byte) bool {
		if len(data) == 0 {
			return true
		}
		if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return false
		}
		_, err := w.Write(data)
		return err == nil && control.Flush() == nil
	}
	if !send(append([]byte(retry), event("hello", h.epoch, 0, first)...)) {
		return
	}
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for {
		for _, s := range watching.subs {
			if !send(s.next(h.epoch)) {
				return
			}
		}
		select {
		case <-watching.wake:
		case <-beats.C:
			if !send([]byte(": still here\n\n")) {
				return
			}
		case <-v.over:
			send(event("over", h.epoch, 0, map[string]string{"why": v.reason()}))
			return
		case <-r.Context().Done():
			return
		case <-h.ctx.Done():
			return
		}
	}
}

func (v *visitor) looking() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.streams
}

func (v *visitor) reason() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.why
}

// within bounds one question or change by a visitor.
func within(r *http.Request, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), d)
}
