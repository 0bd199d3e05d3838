package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
)

// DataDir is the data directory of the node on this machine: the flag, else
// FLEETBUS_DATA_DIR, else where one is by default.
func (a *App) DataDir() (string, error) {
	if a.Fleet.dataDir != "" {
		return a.Fleet.dataDir, nil
	}
	if dir := a.Getenv("FLEETBUS_DATA_DIR"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/fleetbus", nil
	}
	if dir := a.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "fleetbus"), nil
	}
	if home := a.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "fleetbus"), nil
	}
	return "", Fail(ExitUsage, "--data-dir DIR", "looking for the data directory: there is no home directory")
}

// localServer returns the host:port of the NATS listener of the server that runs
// on this machine, as the server wrote it down.
func localServer(dir string) (string, error) {
	path := filepath.Join(dir, "run.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", LocalProblem("looking for a server on this machine", dir, err)
	}
	var running struct {
		Listeners map[string]string `json:"listeners"`
	}
	if err := json.Unmarshal(data, &running); err != nil {
		return "", fmt.Errorf("reading %q: %w", path, err)
	}
	addr, ok := running.Listeners["nats"]
	if !ok {
		return "", Fail(ExitUnavailable, "set listeners.nats, or name another server with --server",
			"looking for a server on this machine: the one in %q has no NATS listener", dir)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("reading %q: %w", path, err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// LocalProblem explains why a file of the data directory cannot be had.
func LocalProblem(what, dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Fail(ExitUnavailable, "fleetbus serve, or name another server with --server", "%s: no server is running in %q", what, dir)
	case errors.Is(err, fs.ErrPermission):
		return Fail(ExitDenied, "run it as the user that the server runs as, or pass --server, --creds and --ca",
			"%s: this user may not read %q", what, dir)
	}
	return fmt.Errorf("%s: %w", what, err)
}
