package enroll

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/iface"
	"github.com/fleetbus/fleetbus/internal/portowner"
)

// A Check is one thing that must be right before a node joins.
type Check struct {
	// Name of the check: "token", "host", "port", "authority", "nodes", "clock",
	// "version", "name", "routes", "clients address" or "cluster address".
	Name string `json:"name"`
	// OK is false if the node cannot join like this.
	OK bool `json:"ok"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Fix is one command or setting; empty if there is nothing to do. A check that
	// is OK and has one is a warning.
	Fix string `json:"fix,omitempty"`

	err error // why it is not OK
}

const (
	// skewWarn and skewFail are how far the clocks of two nodes may be apart.
	skewWarn = 2 * time.Second
	skewFail = 30 * time.Second
)

// Preflight checks everything that a new node needs, in the order of Check.Name,
// and changes nothing: the token is as good as before. It returns all checks
// that could be made; what depends on one that failed is left out. If one
// failed, the error joins an *Error for each of those and may wrap what Dial's
// does.
//
// While it runs it listens on j.Clients and j.Cluster, so that the nodes can try
// to reach them.
func (j Join) Preflight(ctx context.Context) ([]Check, error) {
	p := &preflight{join: j, echo: rand.Text()}
	defer p.close()
	p.listen(ctx)
	if nc := p.reach(ctx); nc != nil {
		defer nc.Close()
		p.ask(ctx, nc)
	}
	p.addresses()
	return p.checks, errors.Join(p.errs...)
}

// A preflight is the state of one run.
type preflight struct {
	join    Join
	echo    string
	wanted  []*wanted
	replies []PreflightReply
	checks  []Check
	errs    []error
}

// A wanted address is where the node is going to listen.
type wanted struct {
	name string // of the check
	addr string // as it was asked for
	dial string // what the nodes dial; empty if they do not
	ln   net.Listener
	err  error
}

func (p *preflight) add(c Check) {
	c.OK = c.err == nil
	if !c.OK {
		c.Detail = c.err.Error()
		p.errs = append(p.errs, &Error{Err: fmt.Errorf("checking the %s: %w", c.Name, c.err), Fix: c.Fix})
	}
	p.checks = append(p.checks, c)
	if p.join.Progress != nil {
		p.join.Progress(c)
	}
}

// pass and fail add a check; the first adds a warning if there is a fix.
func (p *preflight) pass(name, fix, format string, args ...any) {
	p.add(Check{Name: name, Detail: fmt.Sprintf(format, args...), Fix: fix})
}

func (p *preflight) fail(name, fix string, err error) {
	p.add(Check{Name: name, Fix: fix, err: err})
}

// listen opens the addresses that the node wants, each of which says the echo
// to whoever connects.
func (p *preflight) listen(ctx context.Context) {
	for _, w := range []*wanted{{name: "clients address", addr: p.join.Clients}, {name: "cluster address", addr: p.join.Cluster}} {
		if w.addr == "" {
			continue
		}
		p.wanted = append(p.wanted, w)
		var config net.ListenConfig
		addr, err := iface.Resolve(w.addr)
		if err != nil {
			w.err = err
			continue
		}
		if w.ln, w.err = config.Listen(ctx, "tcp", addr); w.err != nil {
			continue
		}
		if p.join.Advertise != "" {
			_, port, _ := net.SplitHostPort(w.ln.Addr().String())
			w.dial = net.JoinHostPort(p.join.Advertise, port)
		}
		go serveEcho(w.ln, p.echo+"\n")
	}
}

// serveEcho ends when ln is closed.
func serveEcho(ln net.Listener, line string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		// A line fits the buffer of a new connection: nobody can hold this up, and
		// an error is seen by the one who reads.
		_, _ = conn.Write([]byte(line))
		_ = conn.Close()
	}
}

func (p *preflight) close() {
	for _, w := range p.wanted {
		if w.ln != nil {
			_ = w.ln.Close()
		}
	}
}

// reach goes as far as a connection that the token is good for; nil if it does
// not get there.
func (p *preflight) reach(ctx context.Context) *nats.Conn {
	token, tokenErr := identity.ParseToken(p.join.Token)
	if tokenErr != nil {
		p.fail("token", "copy it once more, or make another on a node: fleetbus token add", tokenErr)
	} else {
		p.pass("token", "", "%s can be read", token)
	}
	host, port, err := p.join.address()
	if err != nil {
		p.fail("host", "give the name or address of a node", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*p.join.timeout())
	defer cancel()
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		p.fail("host", "check the name, or give an address", fmt.Errorf("resolving %q: %w", host, err))
		return nil
	}
	p.pass("host", "", "%s is %s", host, strings.Join(ips, ", "))

	addr := net.JoinHostPort(host, port)
	if err := p.knock(ctx, addr); err != nil {
		p.fail("port", "check that the node runs, and the firewall between", fmt.Errorf("reaching %q: %w", addr, err))
		return nil
	}
	p.pass("port", "", "%s is open", addr)
	if tokenErr != nil {
		return nil
	}
	nc, err := p.join.connect(ctx)
	var why *Error
	if errors.As(err, &why) {
		name := "authority"
		if errors.Is(err, ErrRefused) {
			p.pass(name, "", "%s is the token's", addr)
			name = "token"
		}
		p.fail(name, why.Fix, why.Err)
		return nil
	}
	p.pass("authority", "", "%s is the token's", addr)
	return nc
}

// knock opens a connection and closes it.
func (p *preflight) knock(ctx context.Context, addr string) error {
	d := net.Dialer{Timeout: p.join.timeout()}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// ask has every node say what it sees, and checks that.
func (p *preflight) ask(ctx context.Context, nc *nats.Conn) {
	question := Preflight{
		Name: p.join.Name, Replace: p.join.Replace, Version: p.join.Version, Echo: p.echo, Time: time.Now(),
	}
	for _, w := range p.wanted {
		if w.dial != "" {
			question.Dial = append(question.Dial, w.dial)
		}
	}
	const fix = "look at the fleet from a node: fleetbus status"
	expected, err := p.scatter(ctx, nc, question)
	switch missing := expected - len(p.replies); {
	case len(p.replies) == 0:
		p.fail("nodes", fix, err)
		return
	case err != nil:
		p.fail("nodes", fix, err)
	case missing > 0:
		p.pass("nodes", fix, "%s answered; %d more did not within %s", p.names(), missing, p.join.timeout())
	default:
		p.pass("nodes", "", "%s answered", p.names())
	}
	p.token()
	p.clocks(question.Time)
	p.version()
	p.name()
	p.routes(ctx)
}

// scatter asks and gathers p.replies, sorted by node, until all have answered or
// the time is up. It returns how many should have, and an error if none did or
// one cannot be understood.
func (p *preflight) scatter(ctx context.Context, nc *nats.Conn, question Preflight) (expected int, err error) {
	body, err := json.Marshal(question)
	if err != nil {
		return 0, fmt.Errorf("encoding the question: %w", err)
	}
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return 0, fmt.Errorf("asking the nodes: %w", err)
	}
	subject, err := p.join.subject(PreflightSubject)
	if err != nil {
		return 0, err
	}
	if err := nc.PublishRequest(subject, inbox, body); err != nil {
		return 0, fmt.Errorf("asking the nodes: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.join.timeout())
	defer cancel()
	byNode := map[string]PreflightReply{}
	for expected = 1; len(byNode) < expected; {
		msg, waitErr := sub.NextMsgWithContext(ctx)
		if waitErr != nil {
			if len(byNode) == 0 {
				err = fmt.Errorf("asking the nodes: %w", inOneLine([]error{waitErr, nc.LastError()}))
			}
			break
		}
		var reply PreflightReply
		if readErr := json.Unmarshal(msg.Data, &reply); readErr != nil {
			err = fmt.Errorf("reading a node's answer: %w", readErr)
			break
		}
		byNode[reply.Node] = reply
		expected = max(expected, reply.Nodes)
	}
	for _, r := range byNode {
		p.replies = append(p.replies, r)
	}
	slices.SortFunc(p.replies, func(a, b PreflightReply) int { return strings.Compare(a.Node, b.Node) })
	return expected, err
}

// names lists the nodes that answered.
func (p *preflight) names() string {
	var names []string
	for _, r := range p.replies {
		names = append(names, r.Node)
	}
	return strings.Join(names, ", ")
}

// token adds a check only if the token is good for something else than this.
func (p *preflight) token() {
	for _, r := range p.replies {
		if r.Token != nil {
			p.fail("token", r.Token.Fix, r.Token)
			return
		}
	}
}

func (p *preflight) clocks(asked time.Time) {
	var worst time.Duration
	var off []string
	for _, r := range p.replies {
		ahead := r.Time.Sub(asked).Round(100 * time.Millisecond)
		worst = max(worst, ahead.Abs())
		if ahead > skewWarn {
			off = append(off, fmt.Sprintf("that of %s is %s ahead of this one", r.Node, ahead))
		} else if -ahead > skewWarn {
			off = append(off, fmt.Sprintf("that of %s is %s behind this one", r.Node, -ahead))
		}
	}
	const fix = "set the clocks: turn on NTP on every node"
	switch detail := strings.Join(off, "; "); {
	case worst > skewFail:
		p.fail("clock", fix, errors.New(detail))
	case worst > skewWarn:
		p.pass("clock", fix, "%s", detail)
	default:
		p.pass("clock", "", "within %s of every node", max(worst, 100*time.Millisecond))
	}
}

func (p *preflight) version() {
	for _, r := range p.replies {
		if r.Refused != "" {
			p.fail("version", fmt.Sprintf("install fleetbus %s here", r.Version), fmt.Errorf("node %q: %s", r.Node, r.Refused))
			return
		}
	}
	p.pass("version", "", "%s may join", p.join.Version)
}

func (p *preflight) name() {
	if err := identity.CheckName(p.join.Name); err != nil {
		p.fail("name", "choose another: --name", err)
		return
	}
	i := slices.IndexFunc(p.replies, func(r PreflightReply) bool { return r.NameTaken != "" })
	switch {
	case i < 0:
		p.pass("name", "", "%s is free", p.join.Name)
	case p.join.Replace:
		p.pass("name", "", "%s is replaced: %s", p.join.Name, p.replies[i].NameTaken)
	default:
		p.fail("name", "choose another with --name, or take its place with --replace", fmt.Errorf("%q is taken: %s", p.join.Name, p.replies[i].NameTaken))
	}
}

// routes checks that every node's cluster port can be reached from here.
func (p *preflight) routes(ctx context.Context) {
	errs := make([]error, len(p.replies))
	var wg sync.WaitGroup
	for i, r := range p.replies {
		wg.Go(func() {
			if err := p.knock(ctx, r.Cluster); err != nil {
				errs[i] = fmt.Errorf("reaching node %q at %q: %w", r.Node, r.Cluster, err)
			}
		})
	}
	wg.Wait()
	if err := inOneLine(errs); err != nil {
		p.fail("routes", "let this machine reach the cluster port of every node", err)
		return
	}
	p.pass("routes", "", "the cluster ports of %s are open", p.names())
}

// addresses checks that the wanted addresses were free and, if the nodes were
// asked, that all of them got through.
func (p *preflight) addresses() {
	for _, w := range p.wanted {
		if w.err != nil {
			p.occupied(w)
			continue
		}
		var errs []error
		for _, r := range p.replies {
			if why := r.Unreachable[w.dial]; w.dial != "" && why != "" {
				errs = append(errs, fmt.Errorf("node %q does not reach %q: %s", r.Node, w.dial, why))
			}
		}
		switch err := inOneLine(errs); {
		case err != nil:
			p.fail(w.name, "let every node reach this machine there, or set another --advertise", err)
		case w.dial == "" || len(p.replies) == 0:
			p.pass(w.name, "", "%s is free", w.addr)
		default:
			p.pass(w.name, "", "%s is free, and reached from %s as %s", w.addr, p.names(), w.dial)
		}
	}
}

func (p *preflight) occupied(w *wanted) {
	err, fix := w.err, "set another address"
	if errors.Is(err, syscall.EADDRINUSE) {
		fix = "stop what listens there, or set another address"
		if owner := portowner.Of(w.addr); owner != "" {
			err = fmt.Errorf("%s holds it: %w", owner, err)
		}
	}
	p.fail(w.name, fix, err)
}

// inOneLine joins errors with semicolons; nil if there are none.
func inOneLine(errs []error) error {
	var all error
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}
