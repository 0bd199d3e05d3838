package mqtt

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestAgain asks an engine that does not answer at first, as one does whose stream has no
// leader: it is asked again soon, and not only when the patience of a client is over.
func TestAgain(t *testing.T) {
	silent := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, c := range map[string]struct {
		answers []func(context.Context) error
		want    error
		within  time.Duration
	}{
		"answered": {answers: []func(context.Context) error{func(context.Context) error { return nil }}},
		"silent at first": {
			answers: []func(context.Context) error{silent, func(context.Context) error { return nil }}, within: time.Second,
		},
		"no leader yet": {
			answers: []func(context.Context) error{
				func(context.Context) error { return &jetstream.APIError{Code: 503, ErrorCode: notAvailable} }, func(context.Context) error { return nil },
			},
			within: time.Second,
		},
		"refused": {
			answers: []func(context.Context) error{func(context.Context) error { return jetstream.ErrMsgNotFound }}, want: jetstream.ErrMsgNotFound,
		},
		"silent": {answers: []func(context.Context) error{silent}, want: context.DeadlineExceeded, within: requestTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
				defer cancel()
				began, asked := time.Now(), 0
				err := again(ctx, func(ctx context.Context) error {
					answer := c.answers[min(asked, len(c.answers)-1)]
					asked++
					return answer(ctx)
				})
				if !errors.Is(err, c.want) || c.want == nil && err != nil {
					t.Errorf("%v, want %v", err, c.want)
				}
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %v and may take %v", took, c.within)
				}
			})
		})
	}
}
