package fleetbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
)

// disk is what the guard knows of the disk of the data directory.
type disk struct {
	// held says that nothing more is stored on this node.
	held atomic.Bool
}

// guardDisk has the node store nothing more while less than the reserve is free,
// whoever took the rest, until ctx is done. A quarter of the reserve more has to
// be free before it goes on, or it would do so and stop with every message.
func (s *Server) guardDisk(ctx context.Context) {
	tick := time.NewTicker(diskCheck)
	defer tick.Stop()
	reserve := s.opts.Store.Reserve
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		free, err := freeDisk(s.home.dir)
		if err != nil {
			continue // it is measured again at once
		}
		held := s.disk.held.Load()
		switch {
		case !held && free < reserve:
			s.hold(true, free)
		case held && free >= reserve+reserve/4:
			s.hold(false, free)
		}
		if !s.disk.held.Load() && s.broker.Full() {
			s.revive(ctx)
		}
	}
}

// hold has the node store nothing more, or go on, and says so.
func (s *Server) hold(hold bool, free int64) {
	if err := s.broker.Hold(hold); err != nil {
		s.fail(err)
		return
	}
	s.disk.held.Store(hold)
	if hold {
		s.log.Warn("the disk is short: nothing more is stored on this node", "free", free, "reserve", s.opts.Store.Reserve)
	} else {
		s.log.Info("the disk has room again: this node stores", "free", free)
	}
}

// revive opens the streams that the engine closed when the disk was full. A node
// that cannot is better started anew.
func (s *Server) revive(ctx context.Context) {
	s.log.Warn("the disk was full: streams are opened anew")
	try, cancel := context.WithTimeoutCause(ctx, reviveTimeout, fmt.Errorf("not done in %v", reviveTimeout))
	defer cancel()
	err := s.broker.Revive(try)
	switch {
	case err == nil:
		s.log.Info("streams are open again")
	case ctx.Err() == nil:
		s.fail(fmt.Errorf("after a full disk: %w", err))
	}
}

// diskFinding judges the free disk of the node; nil if there is nothing to say.
func (s *Server) diskFinding() *doctor.Finding {
	free, err := freeDisk(s.home.dir)
	if err != nil {
		return nil
	}
	f := &doctor.Finding{Severity: doctor.Problem, Subject: s.opts.Name}
	switch reserve := s.opts.Store.Reserve; {
	case s.disk.held.Load():
		f.Code, f.Fix = "DISK-FULL", "free space, or lower store.reserve"
		f.Text = fmt.Sprintf("%d MiB of disk are left, and %d MiB are the reserve: nothing more is stored on this node", free>>20, reserve>>20)
	case free < 2*reserve:
		f.Code, f.Text, f.Fix = "DISK-LOW", fmt.Sprintf("%d MiB of disk are left", free>>20), "free space, or lower store.max_file"
	default:
		return nil
	}
	return f
}

// bounds fills in what MaxFile and MaxMemory leave open, for streams in store.
func (o Store) bounds(dir, store string) (file, memory int64, err error) {
	free, err := freeDisk(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("measuring the disk of %q: %w", dir, err)
	}
	if free < o.Reserve {
		return 0, 0, &OptionError{
			Field:   "data_dir",
			Problem: fmt.Sprintf("the disk of %q is full: %d MiB are free, %d MiB are the reserve", dir, free>>20, o.Reserve>>20),
			Hint:    "free space, or lower store.reserve",
		}
	}
	file, memory = o.MaxFile, o.MaxMemory
	if file == 0 {
		// What is stored already would else count against itself.
		if file, err = size(store); err != nil {
			return 0, 0, fmt.Errorf("measuring the streams: %w", err)
		}
		file += (free - o.Reserve) / 4 * 3
	}
	if memory == 0 {
		var info syscall.Sysinfo_t
		if err := syscall.Sysinfo(&info); err != nil {
			return 0, 0, fmt.Errorf("measuring the memory: %w", err)
		}
		memory = int64(info.Totalram) * int64(info.Unit) / 4
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
