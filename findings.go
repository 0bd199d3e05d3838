package fleetbus

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/fleetbus/fleetbus/doctor"
)

// failures remembers which services fail, and why.
type failures struct {
	mu  sync.Mutex
	all map[string]error
}

func (f *failures) set(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.all, name)
		return
	}
	if f.all == nil {
		f.all = map[string]error{}
	}
	f.all[name] = err
}

func (f *failures) findings() (all []doctor.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, err := range f.all {
		all = append(all, doctor.Finding{Code: "SERVICE-FAILED", Severity: doctor.Problem, Subject: name, Text: err.Error(), Fix: "it is tried again by itself; mend what it says"})
	}
	return all
}

// findings are what is wrong with this node.
func (s *Server) findings(ctx context.Context) []doctor.Finding {
	var all []doctor.Finding
	add := func(code string, severity doctor.Severity, text, fix string) {
		all = append(all, doctor.Finding{Code: code, Severity: severity, Subject: s.opts.Name, Text: text, Fix: fix})
	}
	for _, l := range s.opts.Listeners {
		if l.Plaintext {
			add("PLAINTEXT-LISTENER", doctor.Warning, fmt.Sprintf("listener %s speaks without TLS on %s", l.Name, l.Addr), "remove plaintext from it")
		}
	}
	for _, l := range s.opts.Listeners {
		if l.Role != "" {
			text := fmt.Sprintf("whoever reaches listener %s, on %s, is let in without credentials, as %s in account %s", l.Name, l.Addr, l.Role, l.Account)
			add("OPEN-LISTENER", doctor.Warning, text, "remove it, and have clients show credentials at another listener")
		}
		if c, ok := l.Protocol.(doctor.Checker); ok {
			all = append(all, c.Check(ctx)...)
		}
	}
	if s.opts.TLS.SkipHostnameVerification {
		add("HOSTNAMES-UNVERIFIED", doctor.Warning, "host names in certificates are not verified", "remove tls.skip_hostname_verification")
	}
	if s.opts.Store.LazySync {
		add("LAZY-SYNC", doctor.Warning, "messages are acknowledged before they are on disk", "remove store.lazy_sync")
	}
	all = append(all, s.failures.findings()...)
	all = append(all, s.managers.findings(ctx)...)
	for _, b := range s.opts.Services {
		if c, ok := b.Service.(doctor.Checker); ok {
			all = append(all, c.Check(ctx)...)
		}
	}
	if s.home == nil {
		return all
	}
	if _, err := os.Stat(s.home.Path("offline", "operator.nk")); err == nil && s.opts.Mode != Local {
		add("OFFLINE-KEYS-HERE", doctor.Info, "the operator's offline keys are still in "+s.home.Path("offline"), "move the directory to safe storage")
	}
	if s.life.Stale.Load() {
		add("STALE-STATE", doctor.Problem, "this node serves from its snapshot, and may not know of the newest denials", "start more of the nodes")
	}
	if s.fleet == nil {
		return all
	}
	all = append(all, s.fleet.sites.findings()...)
	all = append(all, s.fleet.keys.Lacking()...)
	if f := s.uplinkFinding(); f != nil {
		all = append(all, *f)
	}
	if f := s.disk.Finding(s.opts.Name); f != nil {
		all = append(all, *f)
	}
	return all
}

// version is the release; development builds say so.
const version = "0.1.0"

// Version is the version of this module as it was built, such as "0.1.0" or
// "0.1.0+1a2b3c4d5e6f".
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return version + "+" + s.Value[:12]
		}
	}
	return version
}

// refuseVersion says why a joiner of that version may not join; "" if it may. A
// newer major version may write what this one does not understand.
func refuseVersion(theirs string) string {
	mine, _, _ := strings.Cut(version, ".")
	other, _, _ := strings.Cut(theirs, ".")
	if len(other) > len(mine) || len(other) == len(mine) && other > mine {
		return fmt.Sprintf("its version %s is newer than this node's, %s", theirs, Version())
	}
	return ""
}
