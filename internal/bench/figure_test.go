package bench

import "testing"

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		q    float64
		want int
	}{{0.01, 1}, {0.5, 5}, {0.51, 6}, {0.9, 9}, {0.99, 10}, {1, 10}} {
		if got := percentile([]int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, c.q); got != c.want {
			t.Errorf("percentile %v is %d, not %d", c.q, got, c.want)
		}
	}
	if got := percentile([]int{7}, 0.5); got != 7 {
		t.Errorf("the percentile of one is %d", got)
	}
}

func TestVersus(t *testing.T) {
	f := versus("x", "ms", []float64{2, 4, 6, 8}, []float64{1, 4, 3, 8})
	if f.Ours != 4 || f.Peer != 3 || f.Spread[0] != 1 || f.Spread[1] != 2 {
		t.Errorf("%+v", f)
	}
	if f = f.atMost(4); f.Target != "4 ms or less" || f.Verdict != "met" {
		t.Errorf("%+v", f)
	}
	if f = f.atMost(3.9); f.Verdict != "not met" {
		t.Errorf("%+v", f)
	}
	for value, want := range map[float64]string{0: "0", 0.99312: "0.993", 29.92: "29.9", 167410.4: "167410", 100: "100"} {
		if got := Significant(value); got != want {
			t.Errorf("Significant(%v) is %q, not %q", value, got, want)
		}
	}
}
