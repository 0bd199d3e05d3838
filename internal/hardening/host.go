package hardening

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/internal/hardening/conf"
)

// A unit is one of systemd's, with its drop-ins.
type unit struct {
	name    string
	main    *file
	entries []unitEntry
}

type unitEntry struct {
	conf.Entry
	file *file
}

// setting is the last value of a key of the section Service.
func (u unit) setting(key string) (v setting, ok bool) {
	for _, e := range u.entries {
		if e.Section == "Service" && e.Key == key {
			v, ok = setting{key, e.Value, place{e.file.Path, e.Line, e.Key + "=" + e.Value}}, true
		}
	}
	return v, ok
}

// all are the values of a key; an empty one takes back those before.
func (u unit) all(key string) (all []setting) {
	for _, e := range u.entries {
		if e.Section != "Service" || e.Key != key {
			continue
		}
		if e.Value == "" {
			all = nil
			continue
		}
		all = append(all, setting{key, e.Value, place{e.file.Path, e.Line, e.Key + "=" + e.Value}})
	}
	return all
}

// isUnit reports whether a file is a unit, or a drop-in of one.
func isUnit(f *file) bool {
	dir := filepath.Base(filepath.Dir(f.Path))
	return strings.HasSuffix(f.Path, ".service") || strings.HasSuffix(dir, ".service.d") && strings.HasSuffix(f.Path, ".conf") ||
		bytes.Contains(f.Data, []byte("\n[Service]")) || bytes.HasPrefix(f.Data, []byte("[Service]")) || bytes.HasPrefix(f.Data, []byte("[Unit]"))
}

// unitName is that of the unit that a file is of.
func unitName(f *file) string {
	name := filepath.Base(f.Path)
	if dir := filepath.Base(filepath.Dir(f.Path)); strings.HasSuffix(dir, ".service.d") {
		name = strings.TrimSuffix(dir, ".d")
	}
	return strings.TrimSuffix(name, ".service")
}

// allUnits are the units that were found, each machine's for itself.
func (a *audit) allUnits() (all []unit) {
	files := slices.Clone(a.disk.files)
	// What is in /etc comes after what a package brought, and drop-ins come last.
	weight := func(f *file) int {
		w := 0
		if strings.Contains(f.Path, ".service.d") {
			w += 2
		}
		if strings.Contains(f.Path, "etc/systemd") {
			w++
		}
		return w
	}
	slices.SortStableFunc(files, func(x, y *file) int {
		if d := weight(x) - weight(y); d != 0 {
			return d
		}
		return strings.Compare(filepath.Base(x.Path), filepath.Base(y.Path))
	})
	byName := map[string]int{}
	for _, f := range files {
		if !isUnit(f) {
			continue
		}
		key := a.disk.rootOf(f.Path) + "\x00" + unitName(f)
		i, ok := byName[key]
		if !ok {
			i = len(all)
			byName[key] = i
			all = append(all, unit{name: unitName(f), main: f})
		}
		entries, problems := conf.Unit(f.Data)
		if !f.used {
			a.problems(f, problems)
		}
		f.used = true
		if !strings.Contains(f.Path, ".service.d") {
			// A whole unit in /etc takes the place of the package's.
			all[i].entries, all[i].main = nil, f
		}
		for _, e := range entries {
			all[i].entries = append(all[i].entries, unitEntry{e, f})
		}
	}
	return all
}

// unitsOf are the units with that name, or all that begin with it.
func (a *audit) unitsOf(prefix string) []unit {
	return slices.DeleteFunc(a.allUnits(), func(u unit) bool { return !strings.HasPrefix(u.name, prefix) })
}

// units judges rule 23.
func (a *audit) units() {
	for _, u := range a.allUnits() {
		a.unit(u)
	}
}

// confined says of a directive of systemd whether a value of it confines.
func confined(key, value string) bool {
	v := strings.ToLower(strings.TrimSpace(value))
	switch key {
	case "ProtectSystem":
		return v == "strict" || v == "full"
	case "CapabilityBoundingSet":
		for word := range strings.FieldsSeq(strings.ToUpper(value)) {
			if slices.Contains([]string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_SETUID", "CAP_SYS_MODULE", "CAP_DAC_READ_SEARCH"}, word) || strings.HasPrefix(word, "~") && len(strings.Fields(value)) < 4 {
				return false
			}
		}
		return true
	case "RestrictAddressFamilies":
		return v != "" && v != "none"
	case "PrivateTmp":
		return yes(v) || v == "disconnected"
	}
	return yes(v)
}

func (a *audit) unit(u unit) {
	at := in(u.main)
	who, ok := u.setting("User")
	switch {
	case !ok || who.value == "":
		if v, dynamic := u.setting("DynamicUser"); dynamic && yes(v.value) {
			break
		}
		a.fail("23", at, "[Service] User=, a user of its own", "%s runs as root: User= is not set", u.name)
	case who.value == "root" || who.value == "0":
		a.fail("23", who.at, "User=, a user of its own", "%s runs as root", u.name)
	case who.value == "nobody":
		a.warn("23", who.at, "User=, a user of its own", "%s shares the user nobody with others", u.name)
	}
	fix := map[string]string{"NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateTmp": "yes", "PrivateDevices": "yes", "CapabilityBoundingSet": "", "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6", "MemoryDenyWriteExecute": "yes"}
	for _, key := range []string{"NoNewPrivileges", "ProtectSystem", "PrivateTmp", "PrivateDevices", "CapabilityBoundingSet", "RestrictAddressFamilies", "MemoryDenyWriteExecute"} {
		set := "[Service] " + key + "=" + fix[key]
		switch v, ok := u.setting(key); {
		case !ok:
			a.warn("23", at, set, "%s is not confined: %s= is not set", u.name, key)
		case !confined(key, v.value):
			a.fail("23", v.at, set, "%s is not confined by %s=", u.name, key)
		}
	}
	if !slices.ContainsFunc(a.r.Findings, func(f Finding) bool {
		return f.Rule == "23" && f.Verdict != Pass && strings.HasPrefix(f.Text, u.name+" ")
	}) {
		a.add("23", Pass, at, "", "%s has its own user, and is confined by systemd", u.name)
	}
}

// isFilter reports whether a file has rules of nftables or iptables.
func isFilter(f *file) bool {
	text := string(f.Data)
	return strings.HasSuffix(f.Path, ".nft") || strings.HasSuffix(f.Path, "nftables.conf") || strings.HasPrefix(text, "*filter") || strings.Contains(text, "\n*filter") ||
		strings.Contains(text, "\ntable inet ") || strings.Contains(text, "\ntable ip ") || strings.HasPrefix(text, "table ") || strings.HasPrefix(text, "#!/usr/sbin/nft")
}

// firewall judges rule 21: a line each of rules of nftables or iptables.
func (a *audit) firewall() {
	fix := "take port 5671 from the management network alone: tcp dport 5671 ip saddr CIDR accept, with policy drop"
	for _, f := range a.disk.files {
		if !isFilter(f) {
			continue
		}
		f.used = true
		filtered, named, hook := false, false, false
		for i, line := range strings.Split(string(f.Data), "\n") {
			text := strings.TrimSpace(line)
			if text == "" || strings.HasPrefix(text, "#") {
				continue
			}
			at := place{f.Path, i + 1, text}
			lower := strings.ToLower(text)
			if strings.Contains(lower, "hook input") && strings.Contains(lower, "policy drop") || strings.HasPrefix(lower, ":input drop") || strings.HasPrefix(lower, "-p input drop") ||
				strings.HasPrefix(lower, "-a input") && (strings.HasSuffix(lower, "-j drop") || strings.Contains(lower, "-j reject")) && !strings.Contains(lower, "dport") || lower == "drop" || strings.HasPrefix(lower, "reject") && !strings.Contains(lower, "dport") {
				filtered = true
			}
			hook = hook && !strings.HasPrefix(lower, "chain ") || strings.Contains(lower, "hook input")
			filtered = filtered || hook && strings.Contains(lower, "policy drop")
			port := ""
			for _, p := range []string{"5671", "5672", "amqps", "amqp", "5671-5672", "5671:5672"} {
				if slices.Contains(strings.FieldsFunc(lower, func(r rune) bool { return strings.ContainsRune(" ,{}", r) }), p) {
					port = p
				}
			}
			if port != "" && (strings.Contains(lower, "drop") || strings.Contains(lower, "reject")) {
				// What was not taken before is refused for this port.
				filtered, named = true, true
				continue
			}
			if port == "" || !strings.Contains(lower, "accept") {
				continue
			}
			named = true
			source := strings.Contains(lower, "saddr") || strings.Contains(lower, " -s ") || strings.Contains(lower, "--source ") || strings.Contains(lower, "--match-set") || strings.Contains(lower, "--src-range")
			open := strings.Contains(lower, "0.0.0.0/0") || strings.Contains(lower, "::/0")
			loopback := strings.Contains(lower, "iif lo") || strings.Contains(lower, `iifname "lo"`) || strings.Contains(lower, "-i lo ")
			inside := strings.Contains(lower, "iif") || strings.Contains(lower, " -i ")
			switch {
			case loopback:
			case open || !source && !inside:
				a.fail("21", at, fix, "port %s takes connections from everywhere", port)
			case port != "5671" && port != "amqps":
				a.warn("21", at, "remove it: 5672 is without TLS", "the port without TLS, %s, is let through", port)
			case !source:
				a.warn("21", at, fix, "port %s is bound to an interface, and to no source", port)
			}
		}
		switch {
		case !filtered && strings.Contains(string(f.Data), "ufw-"):
			a.unknown("21", in(f), "give the output of iptables-save", "what no rule takes is judged by other files of ufw")
		case !filtered:
			a.fail("21", in(f), fix, "what no rule takes is let in: no policy drop, and no last rule that refuses")
		case !named:
			a.unknown("21", in(f), fix, "no rule names port 5671; what is refused by default reaches nobody")
		default:
			a.pass("21", in(f), "port 5671 takes connections from named sources, and the rest is dropped")
		}
	}
}

// isConfinement reports whether a file is of SELinux or AppArmor.
func isConfinement(f *file) bool {
	return strings.HasSuffix(filepath.ToSlash(f.Path), "selinux/config") || bytes.Contains(f.Data, []byte("\nSELINUX=")) || strings.Contains(filepath.ToSlash(f.Path), "apparmor.d/")
}

// confinement judges rule 24.
func (a *audit) confinement() {
	for _, f := range a.disk.files {
		if !isConfinement(f) {
			continue
		}
		if strings.Contains(filepath.ToSlash(f.Path), "apparmor.d/") {
			a.appArmor(f)
			continue
		}
		f.used = true
		entries, _ := conf.Variables(f.Data)
		for _, e := range entries {
			if e.Key != "SELINUX" {
				continue
			}
			at := place{f.Path, e.Line, e.Key + "=" + e.Value}
			if strings.EqualFold(e.Value, "enforcing") {
				a.pass("24", at, "SELinux is enforcing")
			} else {
				a.fail("24", at, "SELINUX=enforcing", "SELinux is %s", e.Value)
			}
		}
	}
}

func (a *audit) appArmor(f *file) {
	text := string(f.Data)
	about := map[Kind][]string{RabbitMQ: {"rabbit", "beam"}, Qpid: {"qpid"}, OpenStack: {"nova", "neutron", "cinder", "glance", "keystone"}}[a.kind]
	if !slices.ContainsFunc(about, func(w string) bool { return strings.Contains(text, w) || strings.Contains(filepath.Base(f.Path), w) }) {
		return
	}
	f.used = true
	for i, line := range strings.Split(text, "\n") {
		if strings.Contains(line, "flags=") && (strings.Contains(line, "complain") || strings.Contains(line, "unconfined")) {
			a.fail("24", place{f.Path, i + 1, strings.TrimSpace(line)}, "aa-enforce "+f.Abs, "the profile is not enforced")
			return
		}
	}
	a.pass("24", in(f), "the profile %s is enforced", filepath.Base(f.Path))
}
