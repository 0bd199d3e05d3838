// Package disk keeps a node from filling the disk of its data directory.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
)

const (
	// diskCheck is how often the free disk is measured: a fast disk takes a third
	// of the default reserve in that time.
	diskCheck = 100 * time.Millisecond
	// reviveTimeout bounds the opening of streams that a full disk closed.
	reviveTimeout = time.Minute
	// unmeasuredMemory is what streams in memory may have where the machine's is not known.
	unmeasuredMemory = 256 << 20
)

// An Engine keeps streams on the disk.
type Engine interface {
	// Hold has it store nothing more, or go on.
	Hold(hold bool) error
	// Full reports whether it found the disk full and closed streams, and Revive
	// opens them again.
	Full() bool
	Revive(ctx context.Context) error
}

// A Guard watches one disk. Its fields are set before Keep; it is safe for concurrent
// use.
type Guard struct {
	// Dir is on the disk, of which Reserve bytes are to stay free.
	Dir     string
	Reserve int64
	Engine  Engine
	Logger  *slog.Logger
	held    atomic.Bool
}

// Held reports whether nothing more is stored on this node.
func (g *Guard) Held() bool { return g.held.Load() }

// Free is what is left of the disk, in bytes; false if it cannot be measured.
func (g *Guard) Free() (int64, bool) {
	free, err := freeDisk(g.Dir)
	return free, err == nil
}

// Keep has the node store nothing more while less than the reserve is free, whoever
// took the rest, until ctx is done. A quarter of the reserve more has to be free
// before it goes on, or it would do so and stop with every message. An error is of a
// node that is better started anew.
func (g *Guard) Keep(ctx context.Context) error {
	tick := time.NewTicker(diskCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		free, err := freeDisk(g.Dir)
		if err != nil {
			continue // it is measured again at once
		}
		held := g.Held()
		switch {
		case !held && free < g.Reserve:
			err = g.hold(true, free)
		case held && free >= g.Reserve+g.Reserve/4:
			err = g.hold(false, free)
		}
		if err == nil && !g.Held() && g.Engine.Full() {
			err = g.revive(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// hold has the node store nothing more, or go on, and says so.
func (g *Guard) hold(hold bool, free int64) error {
	if err := g.Engine.Hold(hold); err != nil {
		return err
	}
	g.held.Store(hold)
	if hold {
		g.Logger.Warn("the disk is short: nothing more is stored on this node", "free", free, "reserve", g.Reserve)
	} else {
		g.Logger.Info("the disk has room again: this node stores", "free", free)
	}
	return nil
}

// revive opens the streams that the engine closed when the disk was full.
func (g *Guard) revive(ctx context.Context) error {
	g.Logger.Warn("the disk was full: streams are opened anew")
	try, cancel := context.WithTimeoutCause(ctx, reviveTimeout, fmt.Errorf("not done in %v", reviveTimeout))
	defer cancel()
	err := g.Engine.Revive(try)
	switch {
	case err == nil:
		g.Logger.Info("streams are open again")
	case ctx.Err() == nil:
		return fmt.Errorf("after a full disk: %w", err)
	}
	return nil
}

// Finding judges the free disk of the node of that name; nil if there is nothing to
// say.
func (g *Guard) Finding(node string) *doctor.Finding {
	free, err := freeDisk(g.Dir)
	if err != nil {
		return nil
	}
	f := &doctor.Finding{Severity: doctor.Problem, Subject: node}
	switch {
	case g.Held():
		f.Code, f.Fix = "DISK-FULL", "free space, or lower store.reserve"
		f.Text = fmt.Sprintf("%d MiB of disk are left, and %d MiB are the reserve: nothing more is stored on this node", free>>20, g.Reserve>>20)
	case free < 2*g.Reserve:
		f.Code, f.Text, f.Fix = "DISK-LOW", fmt.Sprintf("%d MiB of disk are left", free>>20), "free space, or lower store.max_file"
	default:
		return nil
	}
	return f
}

// A FullError is a disk that has no room for a node to start.
type FullError struct {
	Dir           string
	Free, Reserve int64 // bytes
}

// Error says how much is missing.
func (e *FullError) Error() string {
	return fmt.Sprintf("the disk of %q is full: %d MiB are free, %d MiB are the reserve", e.Dir, e.Free>>20, e.Reserve>>20)
}

// Bounds are how many bytes streams in store, on the disk of dir, may have on disk and
// in memory: file and memory, or, for each that is 0, what there is room for beside
// the reserve. Less free than that is a *FullError.
func Bounds(dir, store string, reserve, file, memory int64) (int64, int64, error) {
	free, err := freeDisk(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("measuring the disk of %q: %w", dir, err)
	}
	if free < reserve {
		return 0, 0, &FullError{dir, free, reserve}
	}
	if file == 0 {
		// What is stored already would else count against itself.
		if file, err = size(store); err != nil {
			return 0, 0, fmt.Errorf("measuring the streams: %w", err)
		}
		file += (free - reserve) / 4 * 3
	}
	if memory == 0 {
		total, err := totalMemory()
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			memory = unmeasuredMemory
		case err != nil:
			return 0, 0, fmt.Errorf("measuring the memory: %w", err)
		default:
			memory = total / 4
		}
	}
	return file, memory, nil
}

// freeDisk is what is left in bytes to who runs this.
func freeDisk(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// size is how many bytes the files under dir have, 0 if there is no dir.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return n, err
}
