package collector_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/fleetbus/fleetbus/metrics"
	"github.com/fleetbus/fleetbus/metrics/collector"
)

// everything has a sample of each family.
type everything struct{}

func (everything) Metrics(context.Context) (all []metrics.Sample) {
	for i, f := range metrics.Families() {
		labels := make([]string, len(f.Labels))
		for j := range labels {
			labels[j] = fmt.Sprintf("a\"\\\n%d", j)
		}
		all = append(all, metrics.Of(f.Name, float64(i)+0.5, labels...))
	}
	return all
}

func TestText(t *testing.T) {
	var text bytes.Buffer
	if err := metrics.Write(&text, everything{}.Metrics(t.Context())); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text.Bytes())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}

	// The library reads what is written as it gathers it from the Collector.
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector.New(t.Context(), everything{}))
	gathered, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(&text)
	if err != nil {
		t.Fatal(err)
	}
	if len(gathered) != len(metrics.Families()) || len(parsed) != len(gathered) {
		t.Errorf("the registry has %d families, the text %d, the table %d", len(gathered), len(parsed), len(metrics.Families()))
	}
	for _, want := range gathered {
		got := parsed[want.GetName()]
		if got == nil || got.GetType() != want.GetType() || got.GetHelp() != want.GetHelp() {
			t.Errorf("family %q is %v", want.GetName(), got)
			continue
		}
		value := want.Metric[0].GetGauge().GetValue() + want.Metric[0].GetCounter().GetValue()
		if v := got.Metric[0].GetGauge().GetValue() + got.Metric[0].GetCounter().GetValue(); math.Abs(v-value) > 1e-9 || len(got.Metric[0].Label) != len(want.Metric[0].Label) {
			t.Errorf("family %q has %v, and the registry %v", want.GetName(), got.Metric[0], want.Metric[0])
		}
	}
}

// wrong has samples that are of no family, or not as their family is.
type wrong struct{}

func (wrong) Metrics(context.Context) []metrics.Sample {
	return []metrics.Sample{metrics.Of("fleetbus_nothing", 1), metrics.Of("fleetbus_connections", 1)}
}

func TestWrong(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector.New(t.Context(), wrong{}))
	if _, err := registry.Gather(); err == nil {
		t.Error("a sample without labels was taken")
	}
}
