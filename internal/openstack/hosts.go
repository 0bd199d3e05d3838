package openstack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/identity"
)

// A Host is a machine of the deployment.
type Host struct {
	// Name is what the machine calls itself, which its queues are named after.
	Name string `json:"name"`
	// Roles are what it is for.
	Roles []HostRole `json:"roles"`
}

// Short is the name of the host's users: a user's name has no dot.
func (h Host) Short() string {
	short, _, _ := strings.Cut(h.Name, ".")
	return short
}

// A HostRole is what a host is for.
type HostRole string

// The roles of hosts.
const (
	Controller HostRole = "controller" // the services' interfaces, and what they are led by
	Compute    HostRole = "compute"    // hypervisors, with the agents there
	Network    HostRole = "network"    // routers, DHCP and metadata
	Storage    HostRole = "storage"    // volumes and their backups
	Baremetal  HostRole = "baremetal"  // conductors of bare metal
)

// HostRoles are all there are.
func HostRoles() []HostRole { return []HostRole{Controller, Compute, Network, Storage, Baremetal} }

// What a file of hosts may have. A cloud whose messages one cluster carries has less.
const (
	maxHosts     = 10_000
	maxHostsFile = 4 << 20
	maxHostName  = 253
	// maxProblems is how many are told of: a file of another sort has one in each line.
	maxProblems = 100
)

// ParseHosts reads a table of hosts: a line for each, with its name and then its roles, parted
// by blanks or commas; # begins a comment. The error joins every problem, each with the file's
// name and its line.
func ParseHosts(file string, data []byte) ([]Host, error) {
	if len(data) > maxHostsFile {
		return nil, fmt.Errorf("%s: it has %d bytes and %d are allowed", file, len(data), maxHostsFile)
	}
	var hosts []Host
	var errs []error
	first := map[string]int{} // by short name
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxHostsFile+1)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' || r == '\r' })
		if len(words) == 0 {
			continue
		}
		h, err := parseHost(words)
		if before, twice := first[h.Short()]; err == nil && twice {
			err = fmt.Errorf("host %q: line %d has one whose name begins with %s, and their users would be the same", h.Name, before, h.Short())
		}
		switch {
		case err != nil && len(errs) == maxProblems:
			return nil, errors.Join(append(errs, fmt.Errorf("%s:%d: there are more than %d problems", file, n, maxProblems))...)
		case err != nil:
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
		case len(hosts) == maxHosts:
			return nil, errors.Join(append(errs, fmt.Errorf("%s:%d: there are more than %d hosts", file, n, maxHosts))...)
		default:
			first[h.Short()] = n
			hosts = append(hosts, h)
		}
	}
	if err := lines.Err(); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", file, err))
	}
	if len(hosts) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("%s: it has no hosts", file))
	}
	return hosts, errors.Join(errs...)
}

func parseHost(words []string) (Host, error) {
	h := Host{Name: words[0]}
	if err := checkHost(h.Name); err != nil {
		return h, err
	}
	for _, word := range words[1:] {
		r := HostRole(word)
		switch {
		case !slices.Contains(HostRoles(), r):
			return h, fmt.Errorf("host %q: %.40q is no role; there are %s", h.Name, word, strings.Join(texts(HostRoles()), ", "))
		case !slices.Contains(h.Roles, r):
			h.Roles = append(h.Roles, r)
		}
	}
	if len(h.Roles) == 0 {
		return h, fmt.Errorf("host %q has no role; there are %s", h.Name, strings.Join(texts(HostRoles()), ", "))
	}
	return h, nil
}

// checkHost lets through what is a directory's name and a host's.
func checkHost(name string) error {
	if len(name) > maxHostName {
		return fmt.Errorf("host %.40q... has a name of %d bytes, and %d are allowed", name, len(name), maxHostName)
	}
	for _, label := range strings.Split(name, ".") {
		if err := identity.CheckName(label); err != nil || strings.Contains(label, "_") {
			return fmt.Errorf("host %.253q: a name has letters, digits and -, in words that dots part", name)
		}
	}
	return nil
}

func texts[T ~string](list []T) []string {
	var all []string
	for _, v := range list {
		all = append(all, string(v))
	}
	return all
}
