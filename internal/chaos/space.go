//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnable says that a machine cannot do this: it is not run by root, or has no namespaces
// or disks in files.
var ErrUnable = errors.New("this machine cannot be used")

// ErrBusy says that another run is under way.
var ErrBusy = errors.New("another run is under way")

// leaveTimeout is how long a run that was interrupted may clean up before it is killed.
const leaveTimeout = 20 * time.Second

// Able says why this machine cannot be used, with disks in memory or not; nil if it can.
func Able(ctx context.Context, memory bool) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("%w: network namespaces and mounts take root", ErrUnable)
	}
	programs := []string{"ip", "nsenter", "true"}
	if !memory {
		programs = append(programs, "mkfs.ext4", "mount")
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			return fmt.Errorf("%w: no disks in files: %w", ErrUnable, err)
		}
	}
	for _, program := range programs {
		if _, err := lookPath(program); err != nil {
			return fmt.Errorf("%w: %w", ErrUnable, err)
		}
	}
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: spaces}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: no namespaces: %w", ErrUnable, err)
	}
	return nil
}

const spaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID

// lookPath finds a program also where only root looks.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, e := os.Stat(filepath.Join(dir, name)); e == nil {
			return filepath.Join(dir, name), nil
		}
	}
	return "", err
}

// lockFile has the process of the run that is under way, and its directory.
func lockFile() string { return filepath.Join(os.TempDir(), "fleetbus-chaos.lock") }

// lock makes this the only run. It writes who has it and where; unlock gives it back.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrBusy, lockFile())
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("%d %s\n", os.Getpid(), dir))); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking: %w", err)
	}
	return func() {
		_ = f.Truncate(0)
		f.Close()
	}, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// Down ends the run that is under way, if there is one, and removes what one that was killed
// left: its directory. Nothing else outlives its processes.
func Down(ctx context.Context) error {
	data, err := os.ReadFile(lockFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for a run: %w", err)
	}
	text, dir, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	for began := time.Now(); ; {
		unlock, err := lock("")
		if err == nil {
			unlock()
			break
		}
		if !errors.Is(err, ErrBusy) {
			return err
		}
		pid, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("looking for a run: %w", err)
		}
		signal := syscall.SIGTERM
		if time.Since(began) > 2*leaveTimeout {
			signal = syscall.SIGKILL
		}
		// It may have ended meanwhile.
		_ = syscall.Kill(pid, signal)
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	if dir == "" || !strings.Contains(filepath.Base(dir), dirPrefix) {
		return nil
	}
	return os.RemoveAll(dir)
}

// dirPrefix begins the name of a run's directory.
const dirPrefix = "fleetbus-chaos-"

// enter runs args, a command line of this program, in namespaces of its own, and returns
// when all that it started is gone.
func enter(ctx context.Context, args ...string) error {
	// The kernel ends the process with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: spaces, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = leaveTimeout
	return cmd.Run()
}

// furnish makes the namespaces a place of their own: what is mounted here is seen by nobody
// else, and names of networks are not those of the machine.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts apart: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting the list of processes: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting a place for networks: %w", err)
	}
	return nil
}

// command runs a program of the system to its end.
func command(ctx context.Context, name string, args ...string) error {
	path, err := lookPath(name)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// pause waits for d; it returns ctx's error if ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// until tries again and again; each try is given up after a while, because who was asked may
// have been killed. The error has the last one's.
func until(ctx context.Context, limit time.Duration, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		once, end := context.WithTimeout(ctx, tryTimeout)
		err := try(once)
		end()
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("waiting until %s: not in %v: %w", what, limit, err)
		}
	}
}

const tryTimeout = 5 * time.Second
