package cert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestComplaints refuses very many requests, and tells of few.
func TestComplaints(t *testing.T) {
	var out bytes.Buffer
	told := &complaints{log: slog.New(slog.NewTextHandler(&out, nil)), last: map[complaint]time.Time{}}
	now := time.Now()
	lines := func(what string, want int) {
		t.Helper()
		if got := strings.Count(out.String(), "\n"); got != want {
			t.Errorf("%s: %d lines, not %d", what, got, want)
		}
		out.Reset()
	}
	refuse := func(target string) {
		for i := range 100 {
			_, err := readable(target, "STREAM.MSG.GET."+Stream, fmt.Appendf(nil, `{"last_by_subj":"x.%d"}`, i))
			told.tell(now, refused, target, "STREAM.MSG.GET."+Stream, err)
			_, err = readable(target, fmt.Sprintf("x.%d", i), nil)
			told.tell(now, refused, target, fmt.Sprintf("x.%d", i), err)
		}
	}
	refuse("lb1")
	refuse("lb2")
	lines("two targets, two reasons", 4)
	now = now.Add(complainEvery - 1)
	refuse("lb1")
	lines("soon after", 0)
	now = now.Add(1)
	refuse("lb1")
	lines("later", 2)
	for i := range 2 * maxComplaints {
		told.tell(now, refused, fmt.Sprint(i), "x", errUnknown)
	}
	if len(told.last) > maxComplaints {
		t.Errorf("%d are remembered", len(told.last))
	}
	out.Reset()
	now = now.Add(complainEvery)
	refuse("lb3")
	lines("when the others are forgotten", 2)
}

// FuzzReadable asks for whatever a target could: what the engine is asked for then is to
// read what is of groups, or the target's own, and to deliver it to who asks.
func FuzzReadable(f *testing.F) {
	own := ReportPrefix + "." + SeenSubject("web", "lb1", "a")
	for call, body := range map[string]string{
		"STREAM.INFO.CERTS": "", "STREAM.MSG.GET.CERTREPORTS": `{"last_by_subj":"` + own + `"}`, "CONSUMER.MSG.NEXT.CERTS.x": `{"batch":1}`,
		"CONSUMER.CREATE.CERTS.x":       `{"config":{"opt_start_seq":7,"filter_subjects":["` + Prefix + `.g.web.cert.*"],"deliver_subject":"orders","durable_name":"y"}}`,
		"CONSUMER.CREATE.CERTREPORTS.x": `{"config":{"filter_subjects":["` + own + `"]}}`,
	} {
		f.Add(call, []byte(body))
	}
	f.Fuzz(func(t *testing.T, call string, data []byte) {
		body, err := readable("lb1", call, data)
		if err != nil {
			return
		}
		words := strings.Split(call, ".")
		stream := words[min(len(words)-1, 3)] // but of a consumer that is made
		var all []string
		switch {
		case (call == "STREAM.INFO.CERTS" || call == "STREAM.INFO.CERTREPORTS") && len(body) == 0, len(words) == 5 && strings.HasPrefix(call, "CONSUMER.MSG.NEXT."):
			return
		case len(words) == 4 && strings.HasPrefix(call, "STREAM.MSG.GET."):
			r := map[string]any{}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			delete(r, "seq")
			for _, subject := range r {
				all = append(all, subject.(string))
			}
		case len(words) == 4 && strings.HasPrefix(call, "CONSUMER.CREATE."):
			var r struct {
				Stream string                   `json:"stream_name"`
				Config jetstream.ConsumerConfig `json:"config"`
			}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			c := r.Config
			if c.DeliverSubject != "" || c.Durable != "" || c.FilterSubject != "" || c.Name != words[3] || r.Stream != words[2] {
				t.Errorf("%s", body)
			}
			stream, all = r.Stream, c.FilterSubjects
		}
		if len(all) == 0 {
			t.Errorf("%q was let through: %s", call, body)
		}
		for _, subject := range all {
			words := strings.Split(subject, ".")
			if own := len(words) == 6 && words[1] == "certreports" && words[2] == "report" && words[4] == "lb1"; stream == ReportStream && !own ||
				stream == Stream && !strings.HasPrefix(subject, Prefix+".g.") || stream != Stream && stream != ReportStream {
				t.Errorf("%q may be read in %q", subject, stream)
			}
		}
	})
}
