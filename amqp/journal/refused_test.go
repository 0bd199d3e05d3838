package journal

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// fullDisk is a stream whose leader takes a message without an answer, refuses it when it
// comes again, and has it stored in the end, as another node leads the stream that had it.
type fullDisk struct {
	jetstream.Stream

	mu     sync.Mutex
	came   int
	first  *nats.Msg
	stored bool
}

func (f *fullDisk) hear(msg *nats.Msg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.came++; f.came == 1 {
		f.first = msg
		return
	}
	data, _ := json.Marshal(answer{Error: &jetstream.APIError{Code: 503, ErrorCode: noResources, Description: "insufficient resources"}})
	_ = msg.Respond(data)
}

func (f *fullDisk) Info(context.Context, ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info := &jetstream.StreamInfo{}
	if f.stored {
		info.State.LastSeq = 1
	}
	return info, nil
}

func (f *fullDisk) GetMsg(context.Context, uint64, ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	return &jetstream.RawStreamMsg{Header: f.first.Header, Sequence: 1}, nil
}

// TestRefusedAfterAll has nobody be told that something is not stored which was refused when
// it was sent again, because the first may be stored.
func TestRefusedAfterAll(t *testing.T) {
	nc := fleetbustest.Start(t).Dial("acme", "one")
	f := &fullDisk{}
	if _, err := nc.Subscribe("stream", f.hear); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 100)
	w, err := newWriter(t.Context(), nc, f, "run", 0, func(err error) { t.Error(err) }, func(err error) { refused <- err })
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	w.opening = false
	type told struct {
		seq uint64
		err error
	}
	done := make(chan told, 1)
	w.write("stream", []byte("x"), func(seq uint64, err error) { done <- told{seq, err} })
	for range 2 { // again, and again
		select {
		case err := <-refused:
			if _, ok := errors.AsType[*jetstream.APIError](err); !ok {
				t.Errorf("refused: %v", err)
			}
		case d := <-done:
			t.Fatalf("it is told %d, %v", d.seq, d.err)
		case <-time.After(time.Minute):
			t.Fatal("it was not sent again")
		}
	}
	f.mu.Lock()
	f.stored = true
	f.mu.Unlock()
	await.Nil(t, "it is stored", func() error {
		select {
		case d := <-done:
			if d.seq != 1 || d.err != nil {
				t.Errorf("it is told %d, %v", d.seq, d.err)
			}
			return nil
		default:
			return errors.New("it is not told")
		}
	})
}
