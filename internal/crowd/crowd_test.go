package crowd_test

import (
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/crowd"
)

// TestSurplus keeps the oldest connections, whatever the order they are told in.
func TestSurplus(t *testing.T) {
	now := time.Now()
	all := []admin.Connection{{Node: "b", ID: 1, Started: now}, {Node: "a", ID: 2, Started: now}, {Node: "c", ID: 3, Started: now.Add(-time.Hour)}}
	if some := crowd.Surplus(all, 0); some != nil {
		t.Errorf("any number is allowed, and %v are too many", some)
	}
	if some := crowd.Surplus(all, 2); len(some) != 1 || some[0].Node != "b" {
		t.Errorf("%v are too many", some)
	}
}

// TestCrowd counts who comes and goes, and looks again when it may have missed some.
func TestCrowd(t *testing.T) {
	var c crowd.Crowd
	here := func() int {
		counts := map[string]int{}
		c.Count("acme", []string{"app"}, counts)
		return counts["app"]
	}
	c.Enter("acme", "app", 1)
	c.Enter("acme", "app", 1)
	c.Enter("acme", "app", 2)
	c.Leave(3)
	if n := here(); n != 2 {
		t.Errorf("%d are here after two came", n)
	}
	c.Leave(1)
	if n := here(); n != 1 {
		t.Errorf("%d are here after one left", n)
	}
	looked := 0
	look := func() (map[uint64]string, error) {
		looked++
		return map[uint64]string{4: "acme/app", 5: "acme/app", 6: "acme/other"}, nil
	}
	c.Limit(true)
	for range 2 {
		if err := c.Recount(look); err != nil {
			t.Fatal(err)
		}
	}
	if n := here(); n != 2 || looked != 1 || !c.Limited() {
		t.Errorf("%d are here after %d looks, limited %v", n, looked, c.Limited())
	}
	if !c.Add("acme", "app") || c.Add("acme", "other") {
		t.Error("two look at one account")
	}
	if n := len(c.Next("acme")); n != 2 {
		t.Errorf("%d came", n)
	}
	if n := len(c.Next("acme")); n != 0 || !c.Add("acme", "app") {
		t.Errorf("%d came since, or somebody still looks", n)
	}
}
