package change

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

func TestCache(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Window: -1})
	nc := connect(t, s.ClientURL())
	w, err := NewWatcher(within(t), nc, "orders", "", WatcherOptions{Jitter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var loads atomic.Int64
	var during func()
	c := NewCache(3, func(_ context.Context, key Key) (string, error) {
		if during != nil {
			during()
		}
		if key[0] == "bad" {
			return "", errors.New("bad")
		}
		return fmt.Sprint(key, loads.Add(1)), nil
	})
	get := func(want int64, key ...string) {
		t.Helper()
		v, err := c.Get(within(t), key)
		if err != nil || v != fmt.Sprint(Key(key), want) {
			t.Errorf("%s is %q: %v", key, v, err)
		}
	}
	get(1, "a")
	get(2, "a") // nothing is kept before it follows
	told := make(chan Notice, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Follow(ctx, w, func(n Notice) { told <- n }) }()
	<-told
	get(3, "a")
	get(3, "a")
	announce(t, p, Update, 1, "a")
	<-told
	get(4, "a")
	get(5, "t", "1")
	announce(t, p, Resync, 2, "t")
	<-told
	get(4, "a")
	get(6, "t", "1")
	// A load that began before the notice is not kept.
	during = func() {
		during = nil
		announce(t, p, Update, 3, "b")
		<-told
	}
	get(7, "b")
	get(8, "b")
	if _, err := c.Get(within(t), Key{"bad"}); err == nil {
		t.Error("a bad value was loaded")
	}
	for i := range 10 {
		get(int64(9+i), "many", fmt.Sprint(i))
	}
	if len(c.loads) > 3 {
		t.Errorf("%d are held", len(c.loads))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	get(19, "a")
	get(20, "a")
}
