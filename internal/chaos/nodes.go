//go:build linux

package chaos

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// diskSize is each node's; reserve is what a node leaves free of it.
	diskSize, reserve = 3 << 30, "128MiB"
	// memorySize is that of a disk in memory, all of which is taken when it is full.
	memorySize  = 384 << 20
	natsPort    = "4222"
	mqttPort    = "8883"
	amqpPort    = "5671"
	clusterPort = "6222"
)

// A cluster is the nodes of the network, ours or bare servers of the engine's make.
type cluster struct {
	what    string
	network *network
	nodes   []*node
	env     []string
	trust   *tls.Config
}

// A node is a process on a disk and in a namespace of its own.
type node struct {
	i          int
	name, addr string
	disk       *disk
	log        string
	line       func() []string // its command line
	skew       time.Duration   // of its wall clock, in a program that is built for it

	cmd   *exec.Cmd
	ended chan struct{}
}

// url is where NATS clients connect.
func (n *node) url() string { return "tls://" + net.JoinHostPort(n.addr, natsPort) }

// urls are those of all nodes, beginning with the i-th.
func (c *cluster) urls(i int) (all []string) {
	for k := range c.nodes {
		all = append(all, c.nodes[(i+k)%len(c.nodes)].url())
	}
	return all
}

// newCluster makes disks for nodes in the network, in memory or not. The disks are below dir.
func newCluster(ctx context.Context, what, dir string, w *network, env []string, memory bool) (*cluster, error) {
	c := &cluster{what: what, network: w}
	// The settings of a node of the user's own are not for these.
	c.env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "FLEETBUS_") })
	for i, name := range w.names {
		base := filepath.Join(dir, what+"-"+name)
		d := &disk{image: base + ".img", dir: base}
		if memory {
			d.image = ""
		}
		err := d.make(ctx)
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, &node{i: i, name: name, addr: address(i), disk: d, log: base + ".log"})
	}
	return c, nil
}

// data is the directory of the node's own on its disk.
func (n *node) data() string { return filepath.Join(n.disk.dir, "data") }

// start starts the process of a node, which has to be stopped.
func (c *cluster) start(ctx context.Context, n *node) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("logging node %q: %w", n.name, err)
	}
	defer log.Close()
	line := c.network.wrap(n.i, n.line()...)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(slices.Clone(c.env), fmt.Sprintf("%s=%d", skewVariable, int64(n.skew/time.Second)))
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting node %q: %w", n.name, err)
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	go func() {
		// How it ended is in its log.
		_ = cmd.Wait()
		close(ended)
	}()
	return nil
}

// startAll starts the nodes that do not run.
func (c *cluster) startAll(ctx context.Context) error {
	for _, n := range c.nodes {
		if n.cmd == nil {
			if err := c.start(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// signal sends a signal to the node's own process.
func (n *node) signal(s syscall.Signal) error {
	if n.cmd == nil {
		return fmt.Errorf("node %q does not run", n.name)
	}
	return n.cmd.Process.Signal(s)
}

// kill ends the process as kill -9 does.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	// It may be gone already.
	_ = n.cmd.Process.Kill()
	<-n.ended
	n.cmd = nil
}

// stop asks the process to stop, and waits.
func (n *node) stop(ctx context.Context) error {
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	select {
	case <-n.ended:
		n.cmd = nil
		return nil
	case <-timer.C:
		return fmt.Errorf("stopping node %q: not in a minute", n.name)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gone is the error of a node that ended by itself.
func (c *cluster) gone() error {
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		select {
		case <-n.ended:
			return fmt.Errorf("node %q ended by itself: %s", n.name, lastLine(n.log))
		default:
		}
	}
	return nil
}

// accepts waits until the node takes connections of NATS clients.
func (n *node) accepts(ctx context.Context) error {
	var d net.Dialer
	return until(ctx, patience, n.name+" takes clients", func(ctx context.Context) error {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(n.addr, natsPort))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// close ends the nodes and gives back their disks.
func (c *cluster) close(ctx context.Context) error {
	var errs []error
	for _, n := range c.nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Signal(syscall.SIGCONT) // for one that is stopped
		}
		n.kill()
		errs = append(errs, n.disk.remove(ctx))
	}
	return errors.Join(errs...)
}

// lastLine is the last line of a file, empty if it cannot be read.
func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(data))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
