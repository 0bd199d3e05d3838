package target

import (
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/fleetbus/fleetbus/cert/proxy"
)

// Choose returns those of what was found on this machine that said, in which every
// field may be empty, can mean. Whoever runs a program gets the keys that are put into
// it: those of other users are strangers, unless their configuration is named.
func Choose(said proxy.Options, found []proxy.Found) (own, strangers []proxy.Found) {
	for _, f := range found {
		switch {
		case f.PID == 0 && said.Kind != f.Kind, said.Kind != "" && said.Kind != f.Kind: // what only is installed has to be named
		case said.Config != "" && f.PID != 0 && f.Config != said.Config && f.Config != "":
		case f.PID != 0 && said.Config == "" && !trusted(f):
			strangers = append(strangers, f)
		default:
			own = append(own, f)
		}
	}
	// The one whose configuration was named is meant, and not one with that of its kind.
	if named := func(f proxy.Found) bool { return f.Config == said.Config }; said.Config != "" && slices.ContainsFunc(own, named) {
		own = slices.DeleteFunc(own, func(f proxy.Found) bool { return !named(f) })
	}
	return own, strangers
}

// trusted reports whether root or who runs this process runs a program, or has systemd
// run it, in a unit of its name.
func trusted(f proxy.Found) bool {
	if f.User == "root" || strings.HasPrefix(f.Reload.Unit, f.Kind) {
		return true
	}
	me, err := user.Current()
	return err == nil && (f.User == me.Username || f.User == me.Uid)
}

// Describe is one line about a program that was found.
func Describe(f proxy.Found) string {
	if f.PID == 0 {
		return f.Kind + ", which does not run"
	}
	text := f.Kind + " of user " + f.User + " (process " + strconv.Itoa(f.PID)
	if f.Config != "" {
		text += ", " + f.Config
	}
	if len(f.Addrs) > 0 {
		text += ", TLS at " + strings.Join(f.Addrs, " and ")
	}
	return text + ")"
}
