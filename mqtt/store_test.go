package mqtt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// outcome is what a writer said of a message.
type outcome struct {
	text string
	seq  uint64
	err  error
}

// newTestWriter makes a writer to a subject where the test plays the engine.
func newTestWriter(t *testing.T) (w *writer, asked chan *nats.Msg, write func(owner any, texts ...string), told chan outcome) {
	s := fleetbustest.Start(t)
	nc := s.Dial("acme", "app")
	asked, told = make(chan *nats.Msg, 100), make(chan outcome, 100)
	if _, err := nc.ChanSubscribe("stream", asked); err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(nc)
	if err != nil {
		t.Fatal(err)
	}
	return w, asked, func(owner any, texts ...string) {
		for _, text := range texts {
			w.write(&nats.Msg{Subject: "stream", Data: []byte(text)}, owner, func(seq uint64, _ bool, err error) { told <- outcome{text, seq, err} })
		}
	}, told
}

func receive[T any](t *testing.T, from chan T) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case got := <-from:
		return got
	case <-ctx.Done():
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// TestWriterKeepsOrder loses what a leader had, and has none for a while: what is
// stored then is all, in the order of the first time.
func TestWriterKeepsOrder(t *testing.T) {
	w, asked, write, told := newTestWriter(t)
	write(nil, "0", "1", "2")
	for range 3 {
		receive(t, asked) // and it dies
	}
	write(nil, "3")
	refuse := receive(t, asked)
	answer := func(msg *nats.Msg, body string) {
		t.Helper()
		if err := msg.Respond([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	answer(refuse, `{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}`)
	waits(t, w, func() bool { return w.silent })
	write(nil, "4", "5")
	now := time.Now()
	w.tick(now)
	if len(asked) > 0 {
		t.Fatal("it was asked before its time")
	}
	w.tick(now.Add(answerWait + time.Second))
	for i := range 6 {
		msg := receive(t, asked)
		if text := strconv.Itoa(i); string(msg.Data) != text {
			t.Fatalf("%s came, not %s", msg.Data, text)
		}
		if i == 0 && len(asked) > 0 {
			t.Error("it does not wait for the first answer")
		}
		answer(msg, fmt.Sprintf(`{"stream":"s","seq":%d}`, i+1))
		if got := receive(t, told); got != (outcome{strconv.Itoa(i), uint64(i + 1), nil}) {
			t.Errorf("%+v", got)
		}
	}
	write(nil, "6")
	answer(receive(t, asked), `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}`)
	if got := receive(t, told); !refused(got.err, wrongLast) {
		t.Errorf("%+v", got)
	}
}

// TestWriterGivesUp has nobody answer: who waits for too long is told that nobody
// knows, and nothing of the same owner is stored after that.
func TestWriterGivesUp(t *testing.T) {
	w, asked, write, told := newTestWriter(t)
	write("owner", "0")
	receive(t, asked)
	w.mu.Lock()
	w.waiting[0].until = time.Now().Add(-time.Second) // it waits for longer than the others
	w.mu.Unlock()
	write("owner", "1")
	write("other", "2")
	w.tick(time.Now())
	var late []string
	for range 2 {
		got := receive(t, told)
		if !errors.Is(got.err, errUnanswered) {
			t.Errorf("%+v", got)
		}
		late = append(late, got.text)
	}
	slices.Sort(late)
	if !slices.Equal(late, []string{"0", "1"}) {
		t.Errorf("given up: %q", late)
	}
	write("gone", "dropped")
	w.drop("gone")
	if got := receive(t, told); got.text != "dropped" || !errors.Is(got.err, errUnanswered) {
		t.Errorf("%+v", got)
	}
	w.close()
	if got := receive(t, told); got.text != "2" || !errors.Is(got.err, errUnanswered) {
		t.Errorf("%+v", got)
	}
	write(nil, "3")
	if got := receive(t, told); got.text != "3" || !errors.Is(got.err, errUnanswered) {
		t.Errorf("%+v", got)
	}
}

// waits until what with the writer's lock held says so.
func waits(t *testing.T, w *writer, what func() bool) {
	t.Helper()
	happens := await.True(10*time.Second, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return what()
	})
	if !happens {
		t.Fatal("it does not happen")
	}
}

// TestOvertaken knows both ways in which the engine says that a record is another.
func TestOvertaken(t *testing.T) {
	for code, want := range map[jetstream.ErrorCode]bool{10071: true, 10164: true, 10158: false, 10077: false} {
		if got := overtaken(&jetstream.APIError{ErrorCode: code}); got != want {
			t.Errorf("%d: %v", code, got)
		}
	}
}
