//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A disk is an ext4 file system in a file, which can run full and lose its power. Without a
// file it is in memory, and cannot lose its power.
type disk struct {
	image string
	// dir is where it is mounted.
	dir string
}

// make makes it, which takes only as much as is written, and mounts it.
func (d *disk) make(ctx context.Context) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	if d.image == "" {
		if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprintf("size=%d", memorySize)); err != nil {
			return fmt.Errorf("mounting memory: %w", err)
		}
		return nil
	}
	f, err := os.Create(d.image)
	if err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", d.image); err != nil {
		return err
	}
	return d.mount(ctx)
}

// remove unmounts it, and gives back what it took.
func (d *disk) remove(ctx context.Context) error {
	err := d.unmount(ctx)
	if d.image != "" {
		err = errors.Join(err, os.Remove(d.image))
	}
	return err
}

func (d *disk) mount(ctx context.Context) error {
	return command(ctx, "mount", "-o", "loop", d.image, d.dir)
}

// unmount waits for the last file to be closed.
func (d *disk) unmount(ctx context.Context) error {
	return until(ctx, 20*time.Second, "a disk is free", func(context.Context) error { return unix.Unmount(d.dir, 0) })
}

const (
	shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	noFlush  = 2          // what is in its log and was not written is lost
)

// cut is the end of the disk's power: nothing is written any more, also not what programs
// wrote and did not sync.
func (d *disk) cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("cutting the power: %w", err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noFlush); err != nil {
		return fmt.Errorf("cutting the power: %w", err)
	}
	return nil
}

// fill leaves no room.
func (d *disk) fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return fmt.Errorf("filling a disk: %w", err)
	}
	defer f.Close()
	var at int64
	for size := int64(1 << 30); size >= 4096; {
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
			return fmt.Errorf("filling a disk: %w", err)
		}
		size = min(size, int64(s.Bavail)*int64(s.Bsize))
		if size < 4096 {
			break
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, at, size); {
		case err == nil:
			at += size
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		default:
			return fmt.Errorf("filling a disk: %w", err)
		}
	}
	return nil
}

// drain makes room again.
func (d *disk) drain() error { return os.Remove(d.ballast()) }

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// flip changes a byte in the middle of a file that holds messages, chosen by rng, and says
// where.
func (d *disk) flip(rng *rand.Rand) (where string, err error) {
	var files []string
	err = filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasSuffix(path, ".blk") {
			if info, err := e.Info(); err == nil && info.Size() > 64 {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("looking for a file to damage among %d: %w", len(files), err)
	}
	slices.Sort(files)
	path := files[rng.IntN(len(files))]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("damaging a file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("damaging a file: %w", err)
	}
	at := rng.Int64N(info.Size())
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, at); err == nil {
		b[0] ^= 1 << rng.IntN(8)
		_, err = f.WriteAt(b, at)
	}
	if err != nil {
		return "", fmt.Errorf("damaging a file: %w", err)
	}
	rel, err := filepath.Rel(d.dir, path)
	return fmt.Sprintf("%s, byte %d of %d", rel, at, info.Size()), err
}
