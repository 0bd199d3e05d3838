package command

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/internal/document"
	"github.com/fleetbus/fleetbus/internal/human"
)

// sample has every sort of value that commands print.
type sample struct {
	Name   string              `json:"name"`
	List   []string            `json:"list"`
	Nested []sample            `json:"nested"`
	Map    map[string][]string `json:"map,omitempty"`
	Big    uint64              `json:"big"`
	Rate   float64             `json:"rate"`
	On     bool                `json:"on"`
	At     time.Time           `json:"at"`
	Raw    json.RawMessage     `json:"raw,omitempty"`
	None   *sample             `json:"none"`
}

func show(t *testing.T, format string, r Report) string {
	t.Helper()
	a, stdout, _ := testApp("")
	a.Format = format
	if err := a.Show(r); err != nil {
		t.Fatal(err)
	}
	return stdout.String()
}

func TestFormats(t *testing.T) {
	rows := []sample{
		{Name: "a\x1b[31m", Big: 1<<64 - 1, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Raw: json.RawMessage(`{"x":null}`)},
		{Name: "true", List: []string{"1", "no"}, Nested: []sample{{}}, Map: map[string][]string{"k": {"v"}}},
	}
	r := List(rows,
		Col("NAME", func(s sample) string { return s.Name }),
		Col("LIST", func(s sample) string { return strings.Join(s.List, ",") }),
		Col("ON", func(s sample) string { return human.YesNo(s.On) }))
	if got, want := show(t, FormatTable, r), "NAME       LIST  ON\na\\x1b[31m  -     no\ntrue       1,no  no\n"; got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
	text := show(t, FormatJSON, r)
	if strings.Contains(text, `"list": null`) || strings.Contains(text, `"nested": null`) {
		t.Errorf("a list is null: %s", text)
	}
	if !strings.Contains(text, "18446744073709551615") {
		t.Errorf("a number lost digits: %s", text)
	}
	lines := strings.Split(strings.TrimSpace(show(t, FormatJSONL, r)), "\n")
	if len(lines) != 2 {
		t.Errorf("%d lines of jsonl", len(lines))
	}
	if got := show(t, FormatJSONL, Report{Value: rows[0]}); strings.Count(got, "\n") != 1 {
		t.Errorf("one thing on %q", got)
	}
	if got := show(t, FormatJSON, List[sample](nil)); got != "[]\n" {
		t.Errorf("no rows: %q", got)
	}
	if got := show(t, FormatYAML, List[sample](nil)); got != "[]\n" {
		t.Errorf("no rows: %q", got)
	}
}

// TestYAMLEqualsJSON checks that both say the same of any text.
func TestYAMLEqualsJSON(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		value := sample{
			Name: rapid.String().Draw(r, "name"),
			List: rapid.SliceOf(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"true", "null", "~", "1", "0x1", "1e3", "2026-01-02", "- a", "a: b", "\x7f\u0085\u009b", "\r\n"}))).Draw(r, "list"),
			Rate: rapid.Float64Range(-1e9, 1e9).Draw(r, "rate"),
			Big:  rapid.Uint64Range(0, 1<<53).Draw(r, "big"),
		}
		var j, y bytes.Buffer
		if err := document.JSON(&j, value, "  "); err != nil {
			r.Fatal(err)
		}
		if err := document.YAML(&y, value); err != nil {
			r.Fatal(err)
		}
		var fromJSON, fromYAML any
		if err := json.Unmarshal(j.Bytes(), &fromJSON); err != nil {
			r.Fatal(err)
		}
		if err := yaml.Unmarshal(y.Bytes(), &fromYAML); err != nil {
			r.Fatalf("%v in:\n%s", err, y.String())
		}
		// One form for the numbers of both.
		again, err := json.Marshal(fromYAML)
		if err != nil {
			r.Fatal(err)
		}
		var normal any
		if err := json.Unmarshal(again, &normal); err != nil {
			r.Fatal(err)
		}
		if !reflect.DeepEqual(fromJSON, normal) {
			r.Fatalf("JSON %s\nYAML %s", j.String(), y.String())
		}
	})
}
