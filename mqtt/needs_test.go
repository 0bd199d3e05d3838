package mqtt

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// takes reports whether a filter of the engine takes a subject.
func takes(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		switch {
		case token == ">":
			return len(s) > i
		case i >= len(s) || token != "*" && token != s[i]:
			return false
		}
	}
	return len(f) == len(s)
}

// TestPlan plans for trees of many shapes: nothing is removed that is needed, and
// little stays that is not.
func TestPlan(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		const floor, most = 100, 1100
		p := &plan{floor: floor, most: most}
		root, places := &twig{}, map[string]uint64{}
		wide := 1 + random.IntN(40)
		for range 1 + random.IntN(200) {
			var tokens []string
			for range 1 + random.IntN(4) {
				tokens = append(tokens, fmt.Sprint(random.IntN(wide)))
			}
			place := uint64(most)
			if len(tokens) > 2 && random.IntN(3) == 0 {
				place = uint64(floor + random.IntN(most-floor+1))
			}
			subject := strings.Join(tokens, ".")
			if _, ok := places[subject]; !ok {
				places[subject] = place
				root.add(subject, place, 1)
			}
		}
		p.add(root, "msg", nil)
		for subject, place := range places {
			upTo := uint64(0)
			for _, one := range p.purges {
				if takes(one.filter, "msg."+subject) {
					upTo = max(upTo, one.upTo)
				}
			}
			if upTo > place {
				t.Fatalf("%q is needed after %d, and removed up to %d", subject, place, upTo)
			}
			if min(p.part(place), siftMost) > p.part(upTo) {
				t.Fatalf("%q is not needed up to %d, and removed up to %d", subject, place, upTo)
			}
		}
	}
}

// TestPlanTogether takes together what is alike, also if it is not in one subtree.
func TestPlanTogether(t *testing.T) {
	p, root := &plan{floor: 0, most: 1000}, &twig{}
	for i := range 1000 {
		root.add(fmt.Sprintf("device.%d.heat", i), 1000, 9)
		root.add(fmt.Sprintf("device.%d.log.x", i), 1000, 9)
		root.add(fmt.Sprintf("device.%d.order", i), uint64(i), 1)
	}
	for i := range 1000 {
		root.add(fmt.Sprintf("device.only%d.heat", i), 1000, 9)
	}
	root.add("plant.x", 1000, 5)
	p.add(root, "msg", nil)
	got := map[string]uint64{}
	for _, one := range p.purges {
		got[one.filter] = one.upTo
	}
	for _, filter := range []string{"msg.device.*.heat", "msg.device.*.log.>", "msg.plant.>"} {
		if got[filter] != 1000 {
			t.Errorf("%q is removed up to %d: %v", filter, got[filter], got)
		}
	}
	if len(got) > 1010 { // each device's own
		t.Errorf("there are %d purges", len(got))
	}
}
