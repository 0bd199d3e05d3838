// Package ask is how nodes ask one another: one request that all of them hear, and the
// answers of those who do.
package ask

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// All asks whoever hears subject and collects answers until enough says so, or d has
// passed. It is safe for concurrent use.
func All[Out any](ctx context.Context, nc *nats.Conn, subject string, in any, d time.Duration, enough func(Out) bool) ([]Out, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encoding a request for %q: %w", subject, err)
	}
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("asking the nodes: %w", err)
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest(subject, inbox, body); err != nil {
		return nil, fmt.Errorf("asking the nodes: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var all []Out
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return all, nil
		}
		var out Out
		if err := json.Unmarshal(msg.Data, &out); err != nil {
			return all, fmt.Errorf("reading a node's answer: %w", err)
		}
		all = append(all, out)
		if enough(out) {
			return all, nil
		}
	}
}

// Answer sends v back, as JSON.
func Answer(msg *nats.Msg, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	if err := msg.Respond(body); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

// Fitting is how many of all go into so many bytes of an answer.
func Fitting[T any](all []T, bytes int) int {
	size := 0
	for i := range all {
		text, err := json.Marshal(all[i])
		if size += len(text) + 1; err != nil || size > bytes {
			return i
		}
	}
	return len(all)
}
