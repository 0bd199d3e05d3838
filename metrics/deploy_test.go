package metrics_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/fleetbus/fleetbus/metrics"
)

// The language of Prometheus, as far as it is needed to find the names in a query.
var (
	quoted    = regexp.MustCompile(`"(\\.|[^"\\])*"`)
	selector  = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}`)
	matcher   = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	word      = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	duration  = regexp.MustCompile(`\[[^\]]*\]|\boffset\s+\S+`)
	counted   = regexp.MustCompile(`\b(rate|increase|irate)\s*\(\s*([a-zA-Z_:][a-zA-Z0-9_:]*)`)
	templated = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?([a-zA-Z_][a-zA-Z0-9_]*)\s*\}\}`)
)

// known are words of the language.
func known() []string {
	return []string{"sum", "max", "min", "count", "topk", "rate", "increase", "irate", "abs", "deriv", "time", "vector", "and", "or", "unless", "up", "label_values"}
}

// given are the labels that Prometheus adds.
func given() []string { return []string{"job", "instance"} }

// problems says what is wrong with a query, and which labels its metrics have.
func problems(query string) (all []string, labels []string) {
	table := map[string]metrics.Family{}
	for _, f := range metrics.Families() {
		table[f.Name] = f
	}
	labels = given()
	bare := quoted.ReplaceAllString(query, `""`)
	for _, m := range selector.FindAllStringSubmatch(bare, -1) {
		f, ok := table[m[1]]
		if !ok && m[1] != "up" {
			all = append(all, "there is no metric "+m[1])
		}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(f.Labels, l[1]) && !slices.Contains(given(), l[1]) {
				all = append(all, m[1]+" has no label "+l[1])
			}
		}
	}
	rest := duration.ReplaceAllString(selector.ReplaceAllString(bare, "$1"), "")
	names := word.FindAllString(grouping.ReplaceAllString(rest, ""), -1)
	for _, name := range names {
		if f, ok := table[name]; ok {
			labels = append(labels, f.Labels...)
			if f.Kind == metrics.Counter && !slices.ContainsFunc(counted.FindAllStringSubmatch(bare, -1), func(m []string) bool { return m[2] == name }) {
				all = append(all, name+" is a counter, and only its growth says something")
			}
		} else if !slices.Contains(known(), name) && !slices.Contains(given(), name) {
			all = append(all, "there is no metric or function "+name)
		}
	}
	for _, m := range counted.FindAllStringSubmatch(bare, -1) {
		if table[m[2]].Kind != metrics.Counter {
			all = append(all, m[2]+" is no counter, and has no rate")
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(bare, -1) {
		for _, l := range word.FindAllString(m[2], -1) {
			if !slices.Contains(labels, l) {
				all = append(all, "no metric here has label "+l)
			}
		}
	}
	return all, labels
}

// labelled says which labels a text names that no metric of the query has.
func labelled(text string, labels []string) (all []string) {
	for _, m := range templated.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(labels, m[1]) {
			all = append(all, "label "+m[1]+" of "+text)
		}
	}
	return all
}

func TestProblems(t *testing.T) {
	for query, want := range map[string]int{
		`sum by (job, account) (rate(fleetbus_messages_sent_total{account=~"a|b{"}[5m])) > 1`: 0,
		`fleetbus_nothing > 1`: 1, `fleetbus_nothing{job="x"}`: 2, `fleetbus_nodes{account="x"}`: 1, `sum by (account) (fleetbus_nodes)`: 1,
		`rate(fleetbus_nodes[5m])`: 1, `fleetbus_slow_consumers_total > 0`: 1, `summe(fleetbus_nodes)`: 1,
	} {
		if got, _ := problems(query); len(got) != want {
			t.Errorf("%s has the problems %q", query, got)
		}
	}
}

// TestAlerts holds the rules of alerts to the table.
func TestAlerts(t *testing.T) {
	path := filepath.Join("..", "deploy", "prometheus", "alerts.yml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			found, labels := problems(r.Expr)
			for _, text := range r.Annotations {
				found = append(found, labelled(text, labels)...)
			}
			if len(found) > 0 || seen[r.Alert] || r.Annotations["summary"] == "" || r.Annotations["action"] == "" || r.Labels["severity"] == "" {
				t.Errorf("alert %q has problems, is there twice, or says too little: %q", r.Alert, found)
			}
			seen[r.Alert] = true
		}
	}
	if len(seen) < 30 {
		t.Errorf("there are %d alerts", len(seen))
	}
}

// TestPromtool has Prometheus itself read them.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is missing: .ci/test installs it")
	}
	out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", filepath.Join("..", "deploy", "prometheus", "alerts.yml")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDashboards holds the dashboards to the table, and the table to the dashboards:
// what nobody looks at need not be told.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "deploy", "grafana", "*.json"))
	if err != nil || len(files) < 5 {
		t.Fatalf("there are %d dashboards: %v", len(files), err)
	}
	var everything strings.Builder
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			UID, Title string
			Templating struct {
				List []struct{ Name, Query string }
			}
			Panels []struct {
				ID      int
				Title   string
				GridPos struct{ H, W, X, Y int }
				Targets []struct{ RefID, Expr, LegendFormat string }
			}
		}
		if err := json.Unmarshal(data, &board); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if board.UID != "fleetbus-"+strings.TrimSuffix(filepath.Base(path), ".json") || board.Title == "" {
			t.Errorf("%s is called %q", path, board.UID)
		}
		ids := map[int]bool{}
		for _, p := range board.Panels {
			if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
				t.Errorf("%s: panel %q has another's id, no place, or nothing to show", path, p.Title)
			}
			ids[p.ID] = true
			for _, target := range p.Targets {
				found, labels := problems(target.Expr)
				if found = append(found, labelled(target.LegendFormat, labels)...); len(found) > 0 {
					t.Errorf("%s: panel %q: %q", path, p.Title, found)
				}
				everything.WriteString(target.Expr + "\n")
			}
		}
	}
	alerts, err := os.ReadFile(filepath.Join("..", "deploy", "prometheus", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	everything.Write(alerts)
	rest := []string{"fleetbus_node_info", "fleetbus_start_time_seconds", "fleetbus_meta_leader", "fleetbus_metrics_folded", "fleetbus_process_goroutines", "fleetbus_config_last_reload_success_timestamp_seconds"}
	for _, f := range metrics.Families() {
		if !regexp.MustCompile(`\b`+f.Name+`\b`).MatchString(everything.String()) && !slices.Contains(rest, f.Name) {
			t.Errorf("nobody looks at %s", f.Name)
		}
	}
}
