package links

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
)

// say has one node hear what another asks, as it travels.
func say(t *testing.T, to *Links, from string, views []admin.LinkView, now time.Time) {
	t.Helper()
	text, err := json.Marshal(canary{Node: from, Views: views})
	if err != nil {
		t.Fatal(err)
	}
	var q canary
	if err := json.Unmarshal(text, &q); err != nil {
		t.Fatal(err)
	}
	to.heard(q, now)
	to.mu.Lock()
	defer to.mu.Unlock()
	to.peer(from).answered = now
}

// TestViews has the third of three nodes tell the others what they cannot tell one another.
func TestViews(t *testing.T) {
	var one, two, three Links
	others := map[string][]string{"n1": {"n2", "n3"}, "n2": {"n1", "n3"}, "n3": {"n1", "n2"}}
	now := time.Now()
	step := func(cut bool) {
		now = now.Add(canaryInterval)
		all := map[string]*Links{"n1": &one, "n2": &two, "n3": &three}
		for from, l := range all {
			said := l.amiss(from, others[from], now)
			for to, other := range all {
				if from == to || cut && from != "n3" && to != "n3" {
					continue
				}
				say(t, other, from, said, now)
			}
		}
	}
	step(false)
	step(false)
	for _, v := range one.Views("n1", others["n1"], now) {
		if len(v.Unheard)+len(v.Unanswered) > 0 || v.Told {
			t.Errorf("all is well, and a view is %+v", v)
		}
	}
	if said := one.amiss("n1", others["n1"], now); len(said) > 0 {
		t.Errorf("all is well, and n1 says %+v", said)
	}
	for range 8 {
		step(true)
	}
	views := one.Views("n1", others["n1"], now)
	if len(views) != 3 || views[0].Node != "n1" || !slices.Equal(views[0].Unheard, []string{"n2"}) || !slices.Equal(views[0].Unanswered, []string{"n2"}) {
		t.Fatalf("n1 does not hear n2: %+v", views)
	}
	if v := views[1]; v.Node != "n2" || !v.Told || !slices.Equal(v.Unheard, []string{"n1"}) {
		t.Errorf("n3 tells that n2 does not hear n1: %+v", v)
	}
	if v := views[2]; v.Node != "n3" || v.Told || len(v.Unheard) > 0 {
		t.Errorf("n3 hears both: %+v", v)
	}
	if views := three.Views("n3", others["n3"], now); len(views) != 3 || len(views[0].Unheard) > 0 || !slices.Equal(views[1].Unheard, []string{"n2"}) {
		t.Errorf("n3 knows of the link between the others: %+v", views)
	}
	for range 2 {
		step(false)
	}
	if v := one.Views("n1", others["n1"], now)[1]; v.Told || len(v.Unheard) > 0 {
		t.Errorf("the link is there again: %+v", v)
	}
	// Nobody hears of n2 any more.
	later := now.Add(linkLost)
	if views := one.Views("n1", others["n1"], later); len(views) != 1 || len(views[0].Unheard) != 2 {
		t.Errorf("n1 hears nobody: %+v", views)
	}
}

// TestExcuse has a node that was held up call nobody lost for it.
func TestExcuse(t *testing.T) {
	var l Links
	now := time.Now()
	say(t, &l, "n2", nil, now)
	l.at = now
	now = now.Add(2 * linkLost)
	l.excuse(now)
	if v := l.Views("n1", []string{"n2"}, now)[0]; len(v.Unheard)+len(v.Unanswered) > 0 {
		t.Errorf("the node did nothing for %v, and says %+v", 2*linkLost, v)
	}
	l.at = now
	now = now.Add(canaryInterval)
	l.excuse(now)
	if v := l.Views("n1", []string{"n2"}, now.Add(linkLost))[0]; len(v.Unheard) != 1 {
		t.Errorf("n2 is silent: %+v", v)
	}
}

// TestLost has nobody be lost who was never there.
func TestLost(t *testing.T) {
	var l Links
	l.Views("n1", []string{"n2"}, time.Now())
	if l.Lost("n2") || l.Lost("n3") {
		t.Error("a node that may be about to come is lost")
	}
	say(t, &l, "n2", nil, time.Now().Add(-linkLost))
	if !l.Lost("n2") {
		t.Error("a node that fell silent is not lost")
	}
}
