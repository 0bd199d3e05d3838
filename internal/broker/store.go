package broker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Hold has this server store nothing more on disk, or go on. Whoever publishes to
// a stream that it leads is refused with "insufficient resources", and then meets
// another leader, if there is a quorum without this server; what others lead goes
// on without its copy, which catches up later. Reading goes on, and so does all
// that is not stored.
//
// The engine does all of that for a server whose streams have outgrown
// JetStreamMaxStore, and looks at that limit each time anew, but lets nobody lower
// it: a reload of its options may only raise it, and checks the credentials of
// every client again besides. So the limit is set where the engine keeps it.
func (b *Broker) Hold(hold bool) error {
	limit, err := b.fileLimit()
	if err != nil {
		return fmt.Errorf("holding the store: %w", err)
	}
	b.log.held.Store(hold)
	switch {
	case limit == nil:
		// There is nothing to hold: the engine gave up, see Full.
	case hold:
		atomic.StoreInt64(limit, -1)
	default:
		atomic.StoreInt64(limit, b.opts.MaxFile)
	}
	return nil
}

// errEngine says that the engine is not the one that this package knows.
var errEngine = errors.New("this version of the engine keeps its limits elsewhere")

// fileLimit is where the engine keeps what its streams may have on disk, which it
// reads and writes atomically; nil while it has no streams.
func (b *Broker) fileLimit() (*int64, error) {
	held := reflect.ValueOf(b.srv).Elem().FieldByName("js") // an atomic.Pointer
	if !held.IsValid() {
		return nil, errEngine
	}
	load, ok := reflect.PointerTo(held.Type()).MethodByName("Load")
	if !ok || held.Type().Size() != unsafe.Sizeof(unsafe.Pointer(nil)) || load.Type.Out(0).Kind() != reflect.Pointer {
		return nil, errEngine
	}
	limit, ok := load.Type.Out(0).Elem().FieldByName("storeMax")
	if !ok || limit.Type.Kind() != reflect.Int64 {
		return nil, errEngine
	}
	streams := atomic.LoadPointer((*unsafe.Pointer)(held.Addr().UnsafePointer()))
	if streams == nil {
		return nil, nil
	}
	return (*int64)(unsafe.Add(streams, limit.Offset)), nil
}

// Full reports whether the disk was full when the engine wrote. It then gives up
// the stream, or all of them, until Revive.
func (b *Broker) Full() bool { return b.log.full.Load() }

// errNoSpace is how the engine says that a disk is full.
var errNoSpace = syscall.ENOSPC.Error()

// closingSlack is more than the engine takes to close what is left after its streams.
const closingSlack = 500 * time.Millisecond

// Revive closes all streams of this server, and opens them anew from what is on
// disk. Clients stay connected, and have to show again that they may.
func (b *Broker) Revive(ctx context.Context) error {
	b.log.full.Store(false)
	// The engine may have begun to by itself, and then this does not wait for it.
	if err := b.srv.ShutdownJetStream(); err != nil {
		return fmt.Errorf("closing the streams: %w", err)
	}
	if err := b.poll(ctx, "closing the streams", func() bool { return b.srv.JetStreamConfig() == nil && !b.srv.JetStreamIsClustered() }); err != nil {
		return err
	}
	// While it opens them, the engine does not expect requests about streams.
	b.inside.pause(true)
	defer b.inside.pause(false)
	select {
	case <-ctx.Done():
		return fmt.Errorf("closing the streams: %w", context.Cause(ctx))
	case <-time.After(closingSlack):
	}
	so, err := b.opts.server()
	if err != nil {
		return err
	}
	so.AccountResolver = b.resolver
	b.inside.pause(true)
	// A reload opens streams that should be there and are not.
	if err := b.srv.ReloadOptions(so); err != nil {
		return fmt.Errorf("opening the streams: %w", err)
	}
	if !b.srv.JetStreamEnabled() {
		return errors.New("opening the streams: the engine did not")
	}
	if b.opts.Cluster != nil {
		b.accompany()
	}
	return nil
}
