// Package collector has the metrics of a node for programs that have a registry of
// Prometheus:
//
//	registry.MustRegister(collector.New(ctx, srv))
package collector

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleetbus/fleetbus/metrics"
)

// gatherTimeout bounds what one scrape may take.
const gatherTimeout = 10 * time.Second

// New returns a Collector of what source tells; a *fleetbus.Server is one. It is safe
// for concurrent use, and asks source anew at each scrape. ctx ends with source.
func New(ctx context.Context, source metrics.Source) prometheus.Collector {
	c := &collector{ctx: ctx, source: source, descs: map[string]*prometheus.Desc{}, types: map[string]prometheus.ValueType{}}
	for _, f := range metrics.Families() {
		c.descs[f.Name] = prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)
		c.types[f.Name] = prometheus.GaugeValue
		if f.Kind == metrics.Counter {
			c.types[f.Name] = prometheus.CounterValue
		}
	}
	return c
}

type collector struct {
	ctx    context.Context
	source metrics.Source
	descs  map[string]*prometheus.Desc
	types  map[string]prometheus.ValueType
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.ctx, gatherTimeout)
	defer cancel()
	for _, s := range c.source.Metrics(ctx) {
		desc, ok := c.descs[s.Name]
		if !ok {
			continue // it is of no family, which a test of the source would say
		}
		m, err := prometheus.NewConstMetric(desc, c.types[s.Name], s.Value, s.Labels...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		out <- m
	}
}
