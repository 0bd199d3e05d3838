package adapter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// pause is between tries to make a stream.
const pause = 100 * time.Millisecond

// The engine's codes of refusals that have a 5xx and will not pass, and of one that has
// a 4xx and may: https://github.com/nats-io/nats-server/blob/main/server/errors.json.
const (
	noResources jetstream.ErrorCode = 10023
	noStorage   jetstream.ErrorCode = 10047
	noPeers     jetstream.ErrorCode = 10005
)

// Ensure makes the stream of an adapter if it is missing, or says why the one that is
// there does not do. in opens the stream's account; it is called again where the engine
// may not be ready for an account that is new, for as long as Timeout. input is
// Host.Input's, and metadata the new stream's. Errors that no later try would mend are
// an *admin.Error, and so is the last one.
func Ensure(ctx context.Context, in func(func(jetstream.JetStream) error) error, a identity.Adapter, input string, replicas int, metadata map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	config := jetstream.StreamConfig{
		Name: a.Stream, Subjects: []string{input + a.Name + ".>"}, Replicas: replicas, Storage: jetstream.FileStorage, Metadata: metadata,
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: input + a.Name + ".>", Destination: admin.AdapterPrefix + a.Name + ".>"},
	}
	for {
		err := in(func(js jetstream.JetStream) error { return ensure(ctx, js, a, config) })
		if err == nil || errors.As(err, new(*admin.Error)) {
			return err
		}
		select {
		case <-ctx.Done():
			return admin.Errorf(admin.Unavailable, "try again; fleetbus doctor", "stream %q of account %q cannot be made yet: %v", a.Stream, a.To.Account, err)
		case <-time.After(pause):
		}
	}
}

// ensure tries once.
func ensure(ctx context.Context, js jetstream.JetStream, a identity.Adapter, config jetstream.StreamConfig) error {
	stream, err := js.Stream(ctx, a.Stream)
	if err == nil {
		c := stream.CachedInfo().Config
		if t := c.SubjectTransform; !slices.Equal(c.Subjects, config.Subjects) || t == nil || t.Destination != config.SubjectTransform.Destination {
			return admin.Errorf(admin.Conflict, "name a stream that is not there yet: the adapter makes it", "stream %q of account %q keeps something else", a.Stream, a.To.Account)
		}
		return nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("looking for it: %w", err)
	}
	_, err = js.CreateStream(ctx, config)
	var refusal *jetstream.APIError
	if errors.As(err, &refusal) && final(refusal) {
		return admin.Errorf(admin.Conflict, "name another stream, or raise the limits of the account", "stream %q of account %q cannot be made: %v", a.Stream, a.To.Account, err)
	}
	return err
}

// final reports whether no later try will do.
func final(refusal *jetstream.APIError) bool {
	switch refusal.ErrorCode {
	case noResources, noStorage:
		return true
	case noPeers:
		return false
	}
	return refusal.Code < 500
}
