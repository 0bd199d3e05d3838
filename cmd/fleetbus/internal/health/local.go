package health

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/config"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/internal/localcheck"
)

// Loaded is what loaded.json in the data directory holds: the configuration that the
// running server read last.
type Loaded struct {
	// File is its absolute path, empty if there is none, and Sum the file's SHA-256.
	File string `json:"file"`
	Sum  string `json:"sum"`
	// Restart are the keys that were changed and need a restart.
	Restart []string `json:"restart"`
}

// loadedFile is the name of the file of a Loaded.
const loadedFile = "loaded.json"

// Remember writes down what the server of dir has read, for the doctor.
func Remember(dir, file string, restart []string) error {
	if _, err := os.Stat(filepath.Join(dir, "run.json")); err != nil {
		return nil // it has no directory of its own
	}
	l := Loaded{Sum: sum(file), Restart: append([]string{}, restart...)}
	if file != "" {
		var err error
		if l.File, err = filepath.Abs(file); err != nil {
			return fmt.Errorf("remembering the configuration: %w", err)
		}
	}
	return home.WriteJSON(filepath.Join(dir, loadedFile), l)
}

func sum(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// A here is the node on this machine, as far as it can be seen without asking it.
type here struct {
	dir string
	// running is its server, if it runs: PID is 0 otherwise.
	running home.Running
	env     []string
	file    string
	config  *config.Config
	err     error
	loaded  *Loaded
}

// lookHere finds the node on this machine and its configuration.
func lookHere(a *command.App, dir string) here {
	h := here{dir: dir, env: a.Env}
	if err := home.ReadJSON(filepath.Join(dir, "run.json"), &h.running); err != nil || !alive(h.running.PID) {
		h.running = home.Running{}
	}
	if h.running.PID != 0 {
		// What the server was started with is what it has, if this user may see it.
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", h.running.PID)); err == nil && len(data) > 0 {
			h.env = strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		}
		var l Loaded
		if err := home.ReadJSON(filepath.Join(dir, loadedFile), &l); err == nil {
			h.loaded = &l
		}
	}
	getenv := (&command.App{Env: h.env}).Getenv
	h.file = config.FindFile("", getenv("FLEETBUS_CONFIG"), dir)
	if h.loaded != nil {
		h.file = h.loaded.File
	}
	h.config, h.err = config.Load(config.Sources{File: h.file, Env: h.env})
	return h
}

// alive reports whether there is a process of that number.
func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// node reports whether there is one, or is to be one, on this machine.
func (h here) node() bool {
	there, err := fleetbus.Initialized(h.dir)
	return err != nil || there || h.file != ""
}

// machine looks at the machine, without the node's help.
func (h here) machine(ctx context.Context) []doctor.Result {
	m := localcheck.Machine{Dir: h.dir, Env: h.env, Server: h.running.PID}
	if h.config != nil {
		o := boot.Standard(h.config.Options())
		host, _ := os.Hostname() // without a name nothing is advertised
		m.Advertise = cmp.Or(o.Advertise, host)
		m.MaxFile, m.MaxMemory, m.Reserve, m.Connections = o.Store.MaxFile, o.Store.MaxMemory, o.Store.Reserve, cmp.Or(o.Limits.Connections, 65536)
		m.Cert, m.Key = o.TLS.Cert, o.TLS.Key
		for _, l := range o.Listeners {
			m.Ports = append(m.Ports, localcheck.Port{Name: "listeners." + l.Name, Addr: l.Addr})
		}
		if o.Mode == fleetbus.Mesh || o.Mode == "" && len(o.Listeners) > 0 {
			m.Ports = append(m.Ports, localcheck.Port{Name: "cluster", Addr: cmp.Or(o.Cluster.Addr, ":6222")})
		}
	}
	if h.running.PID != 0 { // flags may have set others
		m.Ports = nil
		for name, addr := range h.running.Listeners {
			m.Ports = append(m.Ports, localcheck.Port{Name: "listeners." + name, Addr: addr})
		}
		if h.running.Cluster != "" {
			m.Ports = append(m.Ports, localcheck.Port{Name: "cluster", Addr: h.running.Cluster})
		}
	}
	return m.Look(ctx)
}

// settings are the results about the configuration.
func (h here) settings() (all []doctor.Result) {
	add := func(check, code string, state doctor.State, subject, fix, format string, args ...any) {
		c, ok := explain.Of(code)
		if ok {
			check = c.Check
		}
		all = append(all, doctor.Result{Group: "config", Check: check, State: state, Code: code, Node: h.running.Node, Subject: subject, Fix: fix, Evidence: fmt.Sprintf(format, args...)})
	}
	where := cmp.Or(h.file, "no file, the defaults")
	var problems *config.ProblemList
	switch {
	case errors.As(h.err, &problems):
		for _, p := range problems.Problems {
			if strings.HasPrefix(p.Text, "unknown key") {
				add("", "CONFIG-UNKNOWN-KEY", doctor.Fail, p.Place.String(), cmp.Or(p.Fix, "fleetbus config defaults"), "%s: %s", p.Key, p.Text)
				continue
			}
			add("", "CONFIG-INVALID", doctor.Fail, p.Place.String(), cmp.Or(p.Fix, "fleetbus config check"), "%s", strings.TrimPrefix(p.String(), p.Place.String()+": "))
		}
	case h.err != nil:
		add("", "CONFIG-INVALID", doctor.Fail, where, "fleetbus config check", "%v", h.err)
	default:
		add("settings", "", doctor.OK, where, "", "%d settings are not the default", len(slices.DeleteFunc(h.config.Show(), func(s config.Setting) bool { return s.Source == "default" })))
	}
	switch {
	case h.config == nil:
		add("variables", "NOT-MEASURED", doctor.Unknown, "environment", "", "the configuration has problems, so that variables were not compared")
	case len(h.config.Warnings()) == 0:
		add("variables", "", doctor.OK, "environment", "", "every variable that begins with FLEETBUS_ is known")
	default:
		for _, w := range h.config.Warnings() {
			name, text, _ := strings.Cut(w, ": ")
			add("", "VARIABLE-UNKNOWN", doctor.Warn, name, "correct its name, or remove it", "%s", text)
		}
	}
	switch {
	case h.running.PID == 0:
		add("reload", "", doctor.Skipped, "server", "", "no server runs on this machine")
	case h.loaded == nil:
		add("reload", "NOT-MEASURED", doctor.Unknown, "server", "", "the server did not say which configuration it read, or this user may not see it")
	default:
		now, read := sum(h.loaded.File), h.loaded.Sum
		if now != read {
			add("", "CONFIG-UNRELOADED", doctor.Warn, h.loaded.File, fmt.Sprintf("fleetbus config check, and then kill -HUP %d", h.running.PID), "it was changed after the server read it")
		}
		if len(h.loaded.Restart) > 0 {
			add("", "CONFIG-RESTART", doctor.Warn, where, "restart the node", "changed, and in force after a restart: %s", strings.Join(h.loaded.Restart, ", "))
		}
		if now == read && len(h.loaded.Restart) == 0 {
			add("reload", "", doctor.OK, where, "", "the server has read it as it is")
		}
	}
	return all
}
