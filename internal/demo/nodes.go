package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// poll is how often something is looked at that cannot be waited for.
	poll = 20 * time.Millisecond
	// tryTimeout bounds one look: whoever was asked may have been killed.
	tryTimeout = 5 * time.Second
)

// fleet is a fleet of three nodes on loopback in a temporary directory.
type fleet struct {
	given Options
	dir   string
	// ctx ends with the demonstration, or when a node ends by itself.
	ctx     context.Context
	fail    context.CancelCauseFunc
	founded *fleetbus.Founded
	nodes   []*Node
	// embedded is the node inside this process; running waits for its end.
	embedded     *fleetbus.Server
	options      fleetbus.Options // of that node
	stopEmbedded func()
	running      sync.WaitGroup
}

// A Node is a node of the demonstration: a process, or embedded in this one.
type Node struct {
	// Dir is its data directory.
	Name, Dir string
	// Clients and Cluster are where it listens, host:port.
	Clients, Cluster string
	// process is nil for the embedded node.
	process *process
}

// Log is the file that the node logs to.
func (n *Node) Log() string { return n.Dir + ".log" }

// A process is a child process. ended is closed when it is gone.
type process struct {
	*os.Process
	expected chan struct{} // closed before it is killed
	ended    chan struct{}
}

// embeddedNode is the index of the node inside this process.
const embeddedNode = 1

func newFleet(ctx context.Context, o Options) (*fleet, error) {
	dir, err := os.MkdirTemp("", "fleetbus-demo-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the demonstration: %w", err)
	}
	f := &fleet{given: o, dir: dir}
	f.ctx, f.fail = context.WithCancelCause(ctx)
	return f, nil
}

// close ends every node and removes every file.
func (f *fleet) close() error {
	f.fail(context.Canceled)
	for _, n := range f.nodes {
		n.kill()
	}
	f.running.Wait()
	if err := os.RemoveAll(f.dir); err != nil {
		return fmt.Errorf("removing the demonstration's directory: %w", err)
	}
	return nil
}

// start makes the authority and starts the nodes.
func (f *fleet) start() error {
	addrs, err := freeAddrs(6)
	if err != nil {
		return err
	}
	options := make([]fleetbus.Options, 3)
	for i := range options {
		n := &Node{Name: fmt.Sprintf("n%d", i+1), Clients: addrs[2*i], Cluster: addrs[2*i+1]}
		n.Dir = filepath.Join(f.dir, n.Name)
		f.nodes = append(f.nodes, n)
		options[i] = fleetbus.Options{
			Name: n.Name, Fleet: "demo", Dir: n.Dir, Advertise: "127.0.0.1",
			Listeners: []fleetbus.Listener{{Name: "nats", Addr: n.Clients, Protocol: fleetbus.NATS()}},
			Cluster:   fleetbus.Cluster{Addr: n.Cluster},
			Store:     fleetbus.Store{MaxFile: 1 << 30, MaxMemory: 64 << 20, Reserve: 1 << 20},
			Mode:      fleetbus.Mesh, Grace: time.Second, SourceTypes: f.given.SourceTypes, CertManager: f.given.CertManager,
		}
	}
	if f.founded, err = fleetbus.InitCluster(options); err != nil {
		return fmt.Errorf("making the fleet: %w", err)
	}
	for i, n := range f.nodes {
		if i == embeddedNode {
			if c := f.given.Console; c != nil {
				options[i].Listeners = append(options[i].Listeners, fleetbus.Listener{Name: "console", Addr: "127.0.0.1:0", Protocol: c})
			}
			f.options = options[i]
			err = f.embed(n, f.options)
		} else if err = n.configure(); err == nil {
			err = f.launch(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// freeAddrs finds ports of loopback that are free. They are below those that the
// system gives to outgoing connections, one of which would otherwise get the port
// of a node that is away.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	for range 1000 {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000))))
		if err != nil {
			continue
		}
		defer ln.Close()
		if addrs = append(addrs, ln.Addr().String()); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, errors.New("looking for free ports on 127.0.0.1: there are none between 20000 and 32000")
}

// embed runs a node inside this process.
func (f *fleet) embed(n *Node, o fleetbus.Options) error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("logging node %q: %w", n.Name, err)
	}
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	if f.embedded, err = fleetbus.New(o); err != nil {
		log.Close()
		return fmt.Errorf("embedding node %q: %w", n.Name, err)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	ended := make(chan struct{})
	f.stopEmbedded = func() {
		cancel()
		<-ended
	}
	f.running.Go(func() {
		defer close(ended)
		defer log.Close()
		defer cancel()
		if err := f.embedded.Run(ctx); err != nil {
			f.fail(fmt.Errorf("running node %q: %w", n.Name, err))
		}
	})
	return nil
}

// configure writes the file that the node's process reads.
func (n *Node) configure() error {
	file := fmt.Sprintf(`name: %s
advertise: 127.0.0.1
grace: 1s
listeners: {nats: {addr: "%s"}}
cluster: {addr: "%s"}
store: {max_file: 1GiB, max_memory: 64MiB, reserve: 1MiB}
`, n.Name, n.Clients, n.Cluster)
	if err := os.WriteFile(n.config(), []byte(file), 0o600); err != nil {
		return fmt.Errorf("configuring node %q: %w", n.Name, err)
	}
	return nil
}

func (n *Node) config() string { return filepath.Join(n.Dir, "fleetbus.yaml") }

// launch starts the process of a node.
func (f *fleet) launch(n *Node) (err error) {
	n.process, err = f.spawn(fmt.Sprintf("node %q", n.Name), n.Log(), "serve", "--config", n.config(), "--data-dir", n.Dir)
	return err
}

// spawn starts a process of this program, which logs to a file. If it ends before it is
// killed, the demonstration fails.
func (f *fleet) spawn(what, path string, args ...string) (*process, error) {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("logging %s: %w", what, err)
	}
	// The process has its own handle of the file.
	defer log.Close()
	cmd, err := f.command(context.WithoutCancel(f.ctx), args...)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", what, err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", what, err)
	}
	p := &process{Process: cmd.Process, expected: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		err := cmd.Wait()
		select {
		case <-p.expected:
		default:
			f.fail(fmt.Errorf("running %s: it ended: %w: %s", what, err, lastLine(path)))
		}
	}()
	return p, nil
}

// command is this program, without the variables of a node of the user's own, which
// would win over what it is given.
func (f *fleet) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = "fleetbus"
	cmd.Env = slices.DeleteFunc(slices.Clone(f.given.Env), func(v string) bool { return strings.HasPrefix(v, "FLEETBUS_") })
	cmd.SysProcAttr = tied()
	return cmd, nil
}

// kill ends the node's process as kill -9 does, and returns when it is gone.
func (n *Node) kill() {
	n.process.end()
	n.process = nil
}

// end kills a process, if there is one, and returns when it is gone.
func (p *process) end() {
	if p == nil {
		return
	}
	close(p.expected)
	// An error says that it is gone already.
	_ = p.Kill()
	<-p.ended
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

// ready returns when the node accepts clients.
func (f *fleet) ready(ctx context.Context, n *Node) error {
	if n.process == nil {
		select {
		case <-f.embedded.Ready():
			return nil
		case <-ctx.Done():
			return fmt.Errorf("waiting for node %q: %w", n.Name, context.Cause(ctx))
		}
	}
	// A node writes this file when it is ready; one that was killed left it behind.
	return retry(ctx, fmt.Sprintf("waiting for node %q", n.Name), func(context.Context) error {
		data, err := os.ReadFile(filepath.Join(n.Dir, "run.json"))
		if err != nil {
			return err
		}
		var running struct {
			PID int `json:"pid"`
		}
		if err := json.Unmarshal(data, &running); err != nil {
			return err
		}
		if running.PID != n.process.Pid {
			return errors.New("it is starting")
		}
		return nil
	})
}

// retry tries again and again until try succeeds or ctx is done; the error then
// gives the last of try's.
func retry(ctx context.Context, what string, try func(context.Context) error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, tryTimeout)
		err := try(once)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; last: %w", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// connect connects to a node over TLS with a creds file. The connection is closed
// by the caller.
func (f *fleet) connect(n *Node, creds string, opts ...nats.Option) (*nats.Conn, error) {
	return f.given.Connect(f.ctx, n.Clients, creds, f.founded.CA, opts...)
}

// addUser makes account/name and returns the path of its creds file.
func (f *fleet) addUser(ctx context.Context, api *admin.Client, name string) (string, error) {
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return "", err
	}
	reply, err := api.AddUser(ctx, admin.UserRequest{Name: name, Key: public})
	if err != nil {
		return "", fmt.Errorf("adding user %q: %w", name, err)
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		return "", err
	}
	path := filepath.Join(f.dir, strings.ReplaceAll(name, "/", "-")+".creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		return "", fmt.Errorf("writing credentials: %w", err)
	}
	return path, nil
}
