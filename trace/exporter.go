package trace

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// waiting is how many spans may wait to be told, and batch how many are told at once.
	waiting, batch = 4096, 512
	// every is how long a span waits for others, and timeout how long it takes to tell.
	every, timeout = 2 * time.Second, 10 * time.Second
)

// Kind is a kind of span, by OTLP's number.
type Kind int

// The kinds of spans that nodes have.
const (
	Producer Kind = 4
	Consumer Kind = 5
)

// A Span is something that was done with a message.
type Span struct {
	Context
	// Parent is the span that caused it.
	Parent [8]byte
	// State is the tracestate that came with the context.
	State      string
	Name       string
	Kind       Kind
	Began      time.Time
	Ended      time.Time
	Attributes map[string]string
	// Failed is why it failed; empty: it did not.
	Failed string
}

// Options are the settings of an Exporter.
type Options struct {
	// Endpoint is the URL that spans are posted to, such as
	// http://localhost:4318/v1/traces. Required.
	Endpoint string
	// Headers are sent along, and may be secret.
	Headers map[string]string
	// Service and Attributes are of the resource. Default: "fleetbus".
	Service    string
	Attributes map[string]string
	// Client posts. Default: one with a time limit.
	Client *http.Client
	// Logger is told, once in a while, that spans are lost. Default: silent.
	Logger *slog.Logger
}

// FromEnv are Options of the standard variables, of which lookup gives the values:
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or OTEL_EXPORTER_OTLP_ENDPOINT,
// OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and
// OTEL_SDK_DISABLED. It is false if nothing is to be told.
func FromEnv(lookup func(string) string) (o Options, wanted bool, err error) {
	o.Endpoint = lookup("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
	if base := lookup("OTEL_EXPORTER_OTLP_ENDPOINT"); o.Endpoint == "" && base != "" {
		o.Endpoint = strings.TrimSuffix(base, "/") + "/v1/traces"
	}
	if o.Endpoint == "" || strings.EqualFold(lookup("OTEL_SDK_DISABLED"), "true") {
		return Options{}, false, nil
	}
	if o.Headers, err = pairs(lookup("OTEL_EXPORTER_OTLP_HEADERS")); err != nil {
		return Options{}, false, errors.New("reading OTEL_EXPORTER_OTLP_HEADERS: it is not NAME=VALUE,…") // its text may be secret
	}
	if o.Attributes, err = pairs(lookup("OTEL_RESOURCE_ATTRIBUTES")); err != nil {
		return Options{}, false, fmt.Errorf("reading OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	o.Service = lookup("OTEL_SERVICE_NAME")
	return o, true, nil
}

// pairs reads NAME=VALUE,… whose values are escaped as in URLs.
func pairs(text string) (map[string]string, error) {
	all := map[string]string{}
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		name, value, ok := strings.Cut(one, "=")
		plain, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || err != nil || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("%q is not NAME=VALUE", one)
		}
		all[strings.TrimSpace(name)] = plain
	}
	return all, nil
}

// An Exporter tells spans to a collector. Make it with New, and Run it. It is safe for
// concurrent use.
type Exporter struct {
	o     Options
	queue chan Span
	lost  atomic.Uint64
}

// NewExporter makes an Exporter, and connects nothing.
func NewExporter(o Options) (*Exporter, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("making an exporter of traces: its endpoint is no http or https URL")
	}
	if o.Service == "" {
		o.Service = "fleetbus"
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: timeout}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Exporter{o: o, queue: make(chan Span, waiting)}, nil
}

// Record has s told. It never waits: a span for which there is no room is lost, and
// counted.
func (e *Exporter) Record(s Span) {
	select {
	case e.queue <- s:
	default:
		e.lost.Add(1)
	}
}

// Lost counts the spans that were not told.
func (e *Exporter) Lost() uint64 { return e.lost.Load() }

// Run tells spans until ctx is done, and then those that wait.
func (e *Exporter) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var spans []Span
	for {
		select {
		case s := <-e.queue:
			if spans = append(spans, s); len(spans) < batch {
				continue
			}
		case <-tick.C:
		case <-ctx.Done():
			for len(e.queue) > 0 {
				spans = append(spans, <-e.queue)
			}
			e.tell(ctx, spans)
			return
		}
		e.tell(ctx, spans)
		spans = spans[:0]
	}
}

func (e *Exporter) tell(ctx context.Context, spans []Span) {
	if len(spans) == 0 {
		return
	}
	// What is on its way when ctx ends gets there.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := e.Export(ctx, spans); err != nil {
		e.lost.Add(uint64(len(spans)))
		e.o.Logger.Warn("spans are lost", "count", len(spans), "error", err)
	}
}

// Export tells spans at once. Its errors hold none of the headers.
func (e *Exporter) Export(ctx context.Context, spans []Span) error {
	body, err := json.Marshal(e.request(spans))
	if err != nil {
		return fmt.Errorf("encoding spans: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.o.Endpoint, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("telling spans: %w", err)
	}
	for name, value := range e.o.Headers {
		r.Header.Set(name, value)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := e.o.Client.Do(r)
	if err != nil {
		return fmt.Errorf("telling spans: %w", err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // so that the connection is used again
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("telling spans: the collector answered %s", answer.Status)
	}
	return nil
}

// What follows is ExportTraceServiceRequest as OTLP has it in JSON: identifiers are hex,
// and 64-bit numbers are strings.
type (
	otlpRequest struct {
		ResourceSpans []otlpResource `json:"resourceSpans"`
	}
	otlpResource struct {
		Resource struct {
			Attributes []otlpAttribute `json:"attributes"`
		} `json:"resource"`
		ScopeSpans []otlpScope `json:"scopeSpans"`
	}
	otlpScope struct {
		Scope struct {
			Name string `json:"name"`
		} `json:"scope"`
		Spans []otlpSpan `json:"spans"`
	}
	otlpAttribute struct {
		Key   string            `json:"key"`
		Value map[string]string `json:"value"`
	}
	otlpSpan struct {
		TraceID    string          `json:"traceId"`
		SpanID     string          `json:"spanId"`
		State      string          `json:"traceState,omitempty"`
		Parent     string          `json:"parentSpanId,omitempty"`
		Name       string          `json:"name"`
		Kind       Kind            `json:"kind"`
		Start      string          `json:"startTimeUnixNano"`
		End        string          `json:"endTimeUnixNano"`
		Attributes []otlpAttribute `json:"attributes"`
		Status     map[string]any  `json:"status"`
	}
)

func attributes(m map[string]string) []otlpAttribute {
	all := []otlpAttribute{}
	for key, value := range m {
		all = append(all, otlpAttribute{key, map[string]string{"stringValue": strings.ToValidUTF8(value, "\uFFFD")}})
	}
	return all
}

func (e *Exporter) request(spans []Span) otlpRequest {
	var resource otlpResource
	resource.Resource.Attributes = append(attributes(e.o.Attributes), attributes(map[string]string{"service.name": e.o.Service})...)
	var scope otlpScope
	scope.Scope.Name = "github.com/fleetbus/fleetbus"
	for _, s := range spans {
		one := otlpSpan{
			TraceID: hex.EncodeToString(s.Trace[:]), SpanID: hex.EncodeToString(s.Context.Span[:]), State: s.State, Name: s.Name, Kind: s.Kind,
			Start: strconv.FormatInt(s.Began.UnixNano(), 10), End: strconv.FormatInt(s.Ended.UnixNano(), 10),
			Attributes: attributes(s.Attributes), Status: map[string]any{},
		}
		if s.Parent != [8]byte{} {
			one.Parent = hex.EncodeToString(s.Parent[:])
		}
		if s.Failed != "" {
			one.Status = map[string]any{"code": 2, "message": s.Failed}
		}
		scope.Spans = append(scope.Spans, one)
	}
	resource.ScopeSpans = []otlpScope{scope}
	return otlpRequest{[]otlpResource{resource}}
}
