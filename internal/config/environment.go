package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// envPrefix starts the name of every variable of fleetbus.
const envPrefix = "FLEETBUS_"

// commandLine reports whether a variable belongs to the command line rather than
// to the configuration.
func commandLine(name string) bool {
	switch strings.TrimPrefix(name, envPrefix) {
	case "CONFIG", "CONTEXT", "OUTPUT", "CREDS", "SERVER", "CA":
		return true
	}
	return false
}

// kubernetes reports whether a variable is one of those that Kubernetes sets in
// every pod for each Service of the namespace, among them one called fleetbus.
func kubernetes(name, value string) bool {
	rest := strings.TrimPrefix(name, envPrefix)
	return strings.HasPrefix(rest, "PORT") || strings.HasPrefix(rest, "SERVICE_") ||
		strings.Contains(rest, "_SERVICE_HOST") || strings.Contains(rest, "_SERVICE_PORT") ||
		strings.Contains(rest, "_PORT_") || strings.HasSuffix(rest, "_PORT") && strings.Contains(value, "://")
}

// putEnv writes the variables of fleetbus into the tree and returns a warning
// for each that is none of ours.
func putEnv(root *node, env []string) (warnings []string) {
	values := map[string]string{}
	for _, line := range env {
		name, text, _ := strings.Cut(line, "=")
		if strings.HasPrefix(name, envPrefix) && !commandLine(name) {
			values[name] = text
		}
	}
	keys := map[string]Key{}
	for _, k := range settings(listenerNames(root)) {
		keys[k.Env()] = k
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		k, ok := keys[name]
		if !ok && kubernetes(name, values[name]) {
			continue
		}
		if !ok {
			k, ok = newListenerKey(name)
		}
		if !ok {
			warnings = append(warnings, unknownVariable(name, slices.Sorted(maps.Keys(keys))))
			continue
		}
		if values[name] != "" {
			root.put(strings.Split(k.Path, "."), value(k, values[name], Place{Source: name}))
		}
	}
	return warnings
}

func unknownVariable(name string, known []string) string {
	if near := nearest(strings.ToLower(name), lower(known)); near != "" {
		return fmt.Sprintf("%s: unknown variable; did you mean %s?", name, strings.ToUpper(near))
	}
	return name + ": unknown variable"
}

func lower(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strings.ToLower(w)
	}
	return out
}

// newListenerKey returns the key that a variable sets on a listener which the
// file does not have, such as FLEETBUS_LISTENERS_EDGE_ADDR.
func newListenerKey(variable string) (Key, bool) {
	rest, ok := strings.CutPrefix(variable, envPrefix+"LISTENERS_")
	if !ok {
		return Key{}, false
	}
	for _, k := range listenerKeys("") {
		if name, ok := strings.CutSuffix(rest, "_"+envName(k.name())); ok && name != "" {
			k.Path = "listeners." + strings.ToLower(name) + "." + k.name()
			return k, true
		}
	}
	return Key{}, false
}

// listenerNames returns the listeners of the tree, and those that a protocol is
// named after.
func listenerNames(root *node) []string {
	names := protocolNames()
	if l := root.field("listeners"); l != nil {
		for _, c := range l.children {
			if c.name != "" && !strings.Contains(c.name, ".") && !slices.Contains(names, c.name) {
				names = append(names, c.name)
			}
		}
	}
	return names
}

// AddFlags adds a flag for every key to flags: --cluster-routes for
// cluster.routes. Listeners have flags if they are named after their protocol.
// Values are checked by Load, together with all others.
func AddFlags(flags *pflag.FlagSet) {
	for _, k := range settings(protocolNames()) {
		usage := strings.TrimSuffix(k.Doc, ".")
		switch {
		case k.Default != "":
			usage += " (default " + k.Default + ")"
		case k.Otherwise != "":
			usage += " (default: " + k.Otherwise + ")"
		}
		f := flags.VarPF(&flagValue{key: k}, k.Flag(), "", usage)
		if k.Type == Bool {
			f.NoOptDefVal = "true"
		}
	}
}

// A flagValue keeps the text of a flag until Load.
type flagValue struct {
	key  Key
	text string
}

// String is the text as it was given.
func (f *flagValue) String() string { return f.text }

// Type names the kind of value in a usage message.
func (f *flagValue) Type() string { return string(f.key.Type) }

// Set keeps text; a list grows by each use of its flag.
func (f *flagValue) Set(text string) error {
	if f.key.Type == List && f.text != "" && text != "" {
		text = f.text + "," + text
	}
	f.text = text
	return nil
}

// putFlags writes the flags that were given into the tree.
func putFlags(root *node, flags *pflag.FlagSet) {
	if flags == nil {
		return
	}
	for _, k := range settings(protocolNames()) {
		if f := flags.Lookup(k.Flag()); f != nil && f.Changed {
			root.put(strings.Split(k.Path, "."), value(k, f.Value.String(), Place{Source: "--" + k.Flag()}))
		}
	}
}
