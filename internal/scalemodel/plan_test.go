package scalemodel

import (
	"os"
	"strings"
	"testing"
)

// TestDocument has the tables of docs/scale.md be those that the model computes.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/scale.md")
	if err != nil {
		t.Fatal(err)
	}
	tables := []string{Table(Measured(), 50_000, 1_000_000, 10_000_000)}
	storms := Storms(Measured())
	if os.Getenv("FLEETBUS_STORMS") == "" {
		storms = storms[1:2] // the others take minutes with the race detector
	}
	for _, s := range storms {
		tables = append(tables, s.Row())
	}
	for _, table := range tables {
		if !strings.Contains(string(text), table) {
			t.Errorf("docs/scale.md does not have this:\n%s", table)
		}
	}
}

// TestOf has more devices take more, and a site know only its own.
func TestOf(t *testing.T) {
	c := Measured()
	for _, s := range Shapes() {
		small, large := c.Of(1_000_000, s), c.Of(10_000_000, s)
		if large.Total < 8*small.Total || large.Memory < small.Memory-0.001 {
			t.Errorf("%s: %+v, and ten times as many %+v", s.Name, small, large)
		}
		if s.Shared != (small.Users < large.Users) {
			t.Errorf("%s: users take %.2f and %.2f GiB", s.Name, small.Users, large.Users)
		}
	}
}
