//go:build linux

package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// A network is one in which each node has a namespace and an address, and all packets go
// through a namespace between them. The clients are in that of this process.
type network struct {
	names []string // of the nodes' namespaces
}

// hub is the namespace in the middle. The addresses are those that are set aside for
// trying networks.
const hub = "hub"

func address(i int) string { return fmt.Sprintf("198.18.%d.2", i+1) }

const clients = 99 // the clients' place among the addresses

// newNetwork makes the namespaces of n nodes and joins them.
func newNetwork(ctx context.Context, n int) (*network, error) {
	w := &network{}
	do := func(args ...string) error { return command(ctx, "ip", args...) }
	all := [][]string{{"link", "set", "lo", "up"}, {"netns", "add", hub}, {"-n", hub, "link", "set", "lo", "up"}}
	// join makes the link between a namespace and the hub; "" is this one.
	join := func(i int, name string) {
		near, far := fmt.Sprintf("v%d", i), fmt.Sprintf("h%d", i)
		gate := fmt.Sprintf("198.18.%d.1", i+1)
		in := []string{}
		if name != "" {
			in = []string{"-n", name}
			all = append(all, []string{"netns", "add", name}, []string{"-n", name, "link", "set", "lo", "up"})
		}
		all = append(all, []string{"link", "add", near, "type", "veth", "peer", "name", far}, []string{"link", "set", far, "netns", hub})
		if name != "" {
			all = append(all, []string{"link", "set", near, "netns", name})
		}
		all = append(all,
			append(in, "addr", "add", address(i)+"/24", "dev", near), append(in, "link", "set", near, "up"),
			[]string{"-n", hub, "addr", "add", gate + "/24", "dev", far}, []string{"-n", hub, "link", "set", far, "up"},
			append(in, "route", "add", "default", "via", gate))
	}
	for i := range n {
		w.names = append(w.names, fmt.Sprintf("n%d", i+1))
		join(i, w.names[i])
	}
	join(clients, "")
	for _, args := range all {
		if err := do(args...); err != nil {
			return nil, err
		}
	}
	return w, command(ctx, "ip", "netns", "exec", hub, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
}

// wrap is the command line that runs one in the namespace of a node. The process is the
// same: it may be killed as itself.
func (w *network) wrap(i int, line ...string) []string {
	return append([]string{"nsenter", "--net=" + filepath.Join("/run/netns", w.names[i])}, line...)
}

// drop loses what goes from one address to another; "" is any. pass ends that.
func (w *network) drop(ctx context.Context, from, to string) error {
	return command(ctx, "ip", rule("add", from, to)...)
}

func (w *network) pass(ctx context.Context, from, to string) error {
	return command(ctx, "ip", rule("del", from, to)...)
}

func rule(verb, from, to string) []string {
	args := []string{"-n", hub, "rule", verb}
	if from != "" {
		args = append(args, "from", from)
	}
	if to != "" {
		args = append(args, "to", to)
	}
	return append(args, "blackhole")
}

// slow lets no more than a trickle through to and from a node, and hurry ends that. What is
// more waits in a queue, so that packets are late, too.
func (w *network) slow(ctx context.Context, i int) error {
	limit := []string{"root", "tbf", "rate", "2mbit", "burst", "16kb", "latency", "500ms"}
	if err := command(ctx, "tc", append([]string{"-n", hub, "qdisc", "add", "dev", fmt.Sprintf("h%d", i)}, limit...)...); err != nil {
		return err
	}
	return command(ctx, "tc", append([]string{"-n", w.names[i], "qdisc", "add", "dev", fmt.Sprintf("v%d", i)}, limit...)...)
}

func (w *network) hurry(ctx context.Context, i int) error {
	if err := command(ctx, "tc", "-n", hub, "qdisc", "del", "dev", fmt.Sprintf("h%d", i), "root"); err != nil {
		return err
	}
	return command(ctx, "tc", "-n", w.names[i], "qdisc", "del", "dev", fmt.Sprintf("v%d", i), "root")
}

// slows reports whether this kernel can slow a link.
func (w *network) slows(ctx context.Context) error {
	if err := w.slow(ctx, 0); err != nil {
		return err
	}
	return w.hurry(ctx, 0)
}

// exists reports whether there is such a file.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
