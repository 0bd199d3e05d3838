// Package traces tells a collector of OpenTelemetry what a node does with messages that
// have a trace context.
package traces

import (
	"context"
	"log/slog"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/trace"
)

// Tell has the spans of o's listeners told as the standard variables say, until ctx is
// done; wait returns when all are.
func Tell(ctx context.Context, o fleetbus.Options, getenv func(string) string, log *slog.Logger) (wait func(), err error) {
	to, wanted, err := trace.FromEnv(getenv)
	if err != nil || !wanted {
		return func() {}, err
	}
	to.Logger = log
	exporter, err := trace.NewExporter(to)
	if err != nil {
		return func() {}, err
	}
	for _, l := range o.Listeners {
		if p, ok := l.Protocol.(*mqtt.Protocol); ok {
			p.Passed = func(passed mqtt.Passage) {
				if span, ok := spanOf(passed); ok {
					exporter.Record(span)
				}
			}
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		exporter.Run(ctx)
	}()
	return func() { <-ended }, nil
}

// spanOf is a passage as a span beside those of clients.
func spanOf(p mqtt.Passage) (trace.Span, bool) {
	parent, ok := trace.Parse(p.Parent)
	if !ok || !parent.Sampled {
		return trace.Span{}, false
	}
	s := trace.Span{
		Context: parent.Next(), Parent: parent.Span, State: p.State, Name: "receive " + p.Account, Kind: trace.Consumer, Began: p.Began, Ended: p.Ended,
		Attributes: map[string]string{
			"messaging.system": "fleetbus", "messaging.operation.name": "receive", "messaging.destination.name": p.Topic,
			"network.protocol.name": "mqtt", "fleetbus.account": p.Account,
		},
	}
	if p.Out {
		s.Name, s.Kind, s.Attributes["messaging.operation.name"] = "send "+p.Account, trace.Producer, "send"
	}
	if p.Refused {
		s.Failed = "the client may not publish it"
	}
	return s, true
}
