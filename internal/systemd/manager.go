// Package systemd tells the service manager that started this process how it is
// doing, in the protocol of sd_notify(3): ready, reloading, stopping, alive.
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	// pace is how often a start that is not over asks for more time, and extension
	// how much it asks for.
	pace      = 10 * time.Second
	extension = time.Minute
)

// A Manager is told how this process is doing. A nil one is nobody: its methods do
// nothing, so that a process need not know who started it. It is not safe for
// concurrent use: the goroutine that says that the process is alive has to be the
// one whose work would stand still if it were not.
type Manager struct {
	conn     *net.UnixConn
	watchdog time.Duration // zero if the manager waits for no sign of life
	ready    bool
	ticker   *time.Ticker
}

// Dial finds the manager by the variables that it gave to this process. It is nil
// if there is none, which is no error.
func Dial(getenv func(string) string) (*Manager, error) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	// A name that begins with @ is one of Linux's abstract names; net knows them.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("finding the service manager: %w", err)
	}
	m := &Manager{conn: conn}
	every := pace
	// The limit may be meant for a process that started this one.
	if pid := getenv("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		if limit, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && limit > 0 {
			m.watchdog = time.Duration(limit) * time.Microsecond
			every = min(every, m.watchdog/3)
		}
	}
	m.ticker = time.NewTicker(max(every, time.Millisecond))
	return m, nil
}

// Close gives up the manager; it is told nothing.
func (m *Manager) Close() error {
	if m == nil {
		return nil
	}
	m.ticker.Stop()
	return m.conn.Close()
}

// Ready says that the process does its work: for the first time, or again after
// Reloading. status is one line for people.
func (m *Manager) Ready(status string) error {
	if m == nil {
		return nil
	}
	m.ready = true
	return m.tell("READY=1\nSTATUS=" + status)
}

// Reloading says that the process reads its settings again; Ready follows. The time
// is in the same message, or a manager could take an older Ready for the end of it.
func (m *Manager) Reloading() error {
	if m == nil {
		return nil
	}
	now, err := monotonic()
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return m.tell(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Microseconds()))
}

// Stopping says that the process has begun to stop.
func (m *Manager) Stopping() error {
	if m == nil {
		return nil
	}
	return m.tell("STOPPING=1\nSTATUS=draining")
}

// Beats has a value whenever Alive is due.
func (m *Manager) Beats() <-chan time.Time {
	if m == nil {
		return nil
	}
	return m.ticker.C
}

// Alive says that the process goes on. One that is not ready yet asks for more time:
// how long a start takes depends on how much is stored.
func (m *Manager) Alive() error {
	switch {
	case m == nil:
		return nil
	case !m.ready:
		return m.tell(fmt.Sprintf("WATCHDOG=1\nEXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	case m.watchdog > 0:
		return m.tell("WATCHDOG=1")
	}
	return nil
}

// tell sends one message, which arrives whole or not at all.
func (m *Manager) tell(state string) error {
	if _, err := m.conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}
