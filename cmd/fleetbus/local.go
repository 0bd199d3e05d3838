package main

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

// dataDir is the data directory of the node on this machine: the flag, else
// FLEETBUS_DATA_DIR, else where one is by default.
func (a *app) dataDir() (string, error) {
	if a.fleet.dataDir != "" {
		return a.fleet.dataDir, nil
	}
	if dir := a.getenv("FLEETBUS_DATA_DIR"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/fleetbus", nil
	}
	if dir := a.getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "fleetbus"), nil
	}
	if home := a.getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "fleetbus"), nil
	}
	return "", fail(exitUsage, "--data-dir DIR", "looking for the data directory: there is no home directory")
}

// localServer returns the host:port of the NATS listener of the server that runs
// on this machine, as the server wrote it down.
func localServer(dir string) (string, error) {
	path := filepath.Join(dir, "run.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", localProblem("looking for a server on this machine", dir, err)
	}
	var running struct {
		Listeners map[string]string `json:"listeners"`
	}
	if err := json.Unmarshal(data, &running); err != nil {
		return "", fmt.Errorf("reading %q: %w", path, err)
	}
	addr, ok := running.Listeners["nats"]
	if !ok {
		return "", fail(exitUnavailable, "set listeners.nats, or name another server with --server",
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

// localProblem explains why a file of the data directory cannot be had.
func localProblem(what, dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(exitUnavailable, "fleetbus serve, or name another server with --server", "%s: no server is running in %q", what, dir)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitDenied, "run it as the user that the server runs as, or pass --server, --creds and --ca",
			"%s: this user may not read %q", what, dir)
	}
	return fmt.Errorf("%s: %w", what, err)
}
