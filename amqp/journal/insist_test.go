package journal

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestInsist asks an engine that does not answer the first question, as one whose stream has
// no leader then: what is answered fast is asked again soon.
func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, began := 0, time.Now()
		err := insistAfter(t.Context(), firstTry, func(ctx context.Context) error {
			if asked++; asked == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		if took := time.Since(began); err != nil || took > 2*firstTry {
			t.Errorf("%v after %v", err, took)
		}
		// It is patient with one that is slow, and no more so than anybody is.
		asked = 0
		var longest time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = insistAfter(ctx, firstTry, func(ctx context.Context) error {
			asked++
			began := time.Now()
			<-ctx.Done()
			longest = max(longest, time.Since(began))
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || longest != requestTimeout {
			t.Errorf("%v after %d questions, the longest for %v", err, asked, longest)
		}
	})
}
