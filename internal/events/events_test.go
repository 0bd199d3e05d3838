package events

import (
	"testing"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// TestGaps tells of more than may wait, and of more refusals than are told of: none
// waits, and each account learns how much it was not told.
func TestGaps(t *testing.T) {
	e := New("n1")
	accounts := func() []identity.Account { return []identity.Account{{Name: "acme"}, {Name: "other"}} }
	if all := e.gaps(accounts); len(all) != 0 {
		t.Errorf("there are gaps before anything is dropped: %+v", all)
	}
	for range eventsWaiting + 7 {
		e.Tell(admin.Event{Kind: admin.EventConnect, Account: "acme"})
	}
	if n := len(e.queue); n != eventsWaiting {
		t.Errorf("%d events wait", n)
	}
	for len(e.queue) > 0 {
		<-e.queue
	}
	for range 3 * refusalBurst {
		e.Tell(admin.Event{Kind: admin.EventRefused})
	}
	e.Tell(admin.Event{Kind: admin.EventDisconnect, Account: "acme"})
	refused := len(e.queue) - 1
	if refused < refusalBurst || refused >= 2*refusalBurst {
		t.Errorf("%d of %d refusals are told of", refused, 3*refusalBurst)
	}
	dropped := map[string]int{}
	for _, ev := range e.gaps(accounts) {
		dropped[ev.Account] = ev.Count
		if ev.Kind != admin.EventDropped || ev.Node != "n1" || ev.Reason == "" {
			t.Errorf("a gap is %+v", ev)
		}
	}
	if len(dropped) != 2 || dropped["acme"] != 7 || dropped[""] != 3*refusalBurst-refused {
		t.Errorf("%v were dropped", dropped)
	}
	// What was lost unread may have been anybody's.
	e.Miss(5)
	dropped = map[string]int{}
	for _, ev := range e.gaps(accounts) {
		dropped[ev.Account] = ev.Count
	}
	if len(dropped) != 3 || dropped["acme"] != 5 || dropped["other"] != 5 || dropped[""] != 5 {
		t.Errorf("%v were missed", dropped)
	}
}
