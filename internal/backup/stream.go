package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// chunkSize is how much of a stream is in a message, and chunksWaiting how many are
	// under way.
	chunkSize, chunksWaiting = 128 << 10, 32
	// silence is how long the engine may say nothing.
	silence = 30 * time.Second
)

// apiError is how the engine refuses.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return e.Description }

// What the engine refuses with: a stream of that name is there, or it could not be restored.
const streamExists, restoreFailed = 10130, 10062

// request asks the engine's API.
func request[Out any](ctx context.Context, nc *nats.Conn, subject string, in any) (out Out, err error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	msg, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return out, err
	}
	return decode[Out](msg.Data)
}

func decode[Out any](data []byte) (out Out, err error) {
	var refused struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(data, &refused); err != nil {
		return out, fmt.Errorf("reading the engine's answer: %w", err)
	}
	if refused.Error != nil {
		return out, refused.Error
	}
	return out, json.Unmarshal(data, &out)
}

// snapshot reads a stream: begin is called with what it is, and chunk with its data.
func snapshot(ctx context.Context, nc *nats.Conn, stream string, bare bool, begin func(config, state json.RawMessage) error, chunk func([]byte) error) error {
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	type opened struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	o, err := request[opened](ctx, nc, "$JS.API.STREAM.SNAPSHOT."+stream, map[string]any{
		"deliver_subject": inbox, "no_consumers": bare, "chunk_size": chunkSize, "window_size": chunkSize * chunksWaiting, "jsck": true,
	})
	if err != nil {
		return err
	}
	if err := begin(o.Config, o.State); err != nil {
		return err
	}
	for {
		msg, err := next(ctx, sub)
		if err != nil {
			return err
		}
		if len(msg.Data) == 0 {
			if status := msg.Header.Get("Status"); status != "" && status != "204" {
				return fmt.Errorf("the engine ended it: %s %s", status, msg.Header.Get("Description"))
			}
			return nil
		}
		if err := chunk(msg.Data); err != nil {
			return err
		}
		if msg.Reply != "" {
			if err := msg.Respond(nil); err != nil {
				return err
			}
		}
	}
}

func next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

// restore makes a stream of what snapshot read.
func restore(ctx context.Context, nc *nats.Conn, d Stream, data io.Reader) error {
	type opened struct {
		DeliverSubject string `json:"deliver_subject"`
	}
	ask := map[string]any{"config": d.Config, "state": d.State}
	o, err := request[opened](ctx, nc, "$JS.API.STREAM.RESTORE."+d.Name, ask)
	var refused *apiError
	if errors.As(err, &refused) && refused.ErrCode == streamExists {
		// An attempt before this one was cut off: nobody has used it.
		if _, err := request[struct{}](ctx, nc, "$JS.API.STREAM.DELETE."+d.Name, struct{}{}); err != nil {
			return fmt.Errorf("removing what an earlier attempt left: %w", err)
		}
		o, err = request[opened](ctx, nc, "$JS.API.STREAM.RESTORE."+d.Name, ask)
	}
	if err != nil {
		return err
	}
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(data, buf)
		if n > 0 {
			msg, e := part(ctx, nc, o.DeliverSubject, buf[:n])
			if e != nil {
				return e
			}
			if len(msg.Data) > 0 {
				if _, e := decode[struct{}](msg.Data); e != nil {
					return e
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	msg, err := part(ctx, nc, o.DeliverSubject, nil)
	if err != nil {
		return err
	}
	type made struct {
		State state `json:"state"`
	}
	m, err := decode[made](msg.Data)
	if err != nil {
		return err
	}
	return d.same(m.State)
}

// part sends a part of a stream, and waits for the engine to have it.
func part(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	return nc.RequestWithContext(ctx, subject, data)
}

// state is how far a stream is, as the engine says.
type state struct {
	Messages uint64 `json:"messages"`
	Last     uint64 `json:"last_seq"`
}

// same says in its error what a stream that was made of d lacks. What is too old by now the
// engine has removed: a backup lies longer than its messages live.
func (d Stream) same(made state) error {
	var was state
	if err := json.Unmarshal(d.State, &was); err != nil {
		return fmt.Errorf("reading the state of a stream: %w", err)
	}
	var ends struct {
		MaxAge int64 `json:"max_age"`
		TTL    bool  `json:"allow_msg_ttl"`
	}
	if err := json.Unmarshal(d.Config, &ends); err != nil {
		return fmt.Errorf("reading the configuration of a stream: %w", err)
	}
	if made.Messages > d.Messages || made.Messages < d.Messages && ends.MaxAge == 0 && !ends.TTL {
		return fmt.Errorf("it has %d messages, and the backup has %d", made.Messages, d.Messages)
	}
	if made.Last < was.Last {
		return fmt.Errorf("it ends at message %d, and in the backup at %d", made.Last, was.Last)
	}
	return nil
}
