// Package diagnose is the doctor of a fleet: it gathers what nodes tell of themselves and
// of one another, and judges it. What nobody told it does not guess.
package diagnose

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/audit"
)

// Facts are what a fleet told. An error says why something is not known.
type Facts struct {
	Now time.Time

	Status    admin.Status
	StatusErr error
	// Behind are the nodes that twice had not applied what the fleet had agreed on.
	Behind []string

	// Exams are of the nodes that answered, Silent those that did not.
	Exams   []admin.Examination
	Silent  []string
	ExamErr error

	Accounts    []admin.AccountInfo
	AccountsErr error
	Users       []identity.User
	UsersErr    error

	Streams    admin.Streams
	StreamsErr error
	// Unled counts, by account, the streams that twice no node said that it leads.
	Unled map[string]int

	Audit    audit.Report
	AuditErr error
	// Backup is when the newest backup was made that the audit has; AuditSince is how far
	// back it goes.
	Backup, AuditSince time.Time
	BackupErr          error
}

const (
	// examinedAtOnce is how many nodes are asked together: what they say has to fit into
	// a message.
	examinedAtOnce = 50
	// settling is how many times more it is asked which streams have a leader: of an
	// account only their number is known, and others come while some go.
	settling = 2
	// auditMost is how large an audit is verified in passing.
	auditMost = 16 << 20
)

// errTooLarge is an audit that takes too long to verify in passing.
var errTooLarge = errors.New("it is larger than 16 MiB: fleetbus audit verify")

// Gather asks the fleet, as the user of c. It needs no right: what it may not ask is not
// known.
func Gather(ctx context.Context, c *admin.Client) Facts {
	f := Facts{Now: time.Now()}
	if f.Status, f.StatusErr = c.Status(ctx); f.StatusErr != nil {
		return f
	}
	var asked sync.WaitGroup
	asked.Go(func() {
		f.examine(ctx, c)
		// Whoever is without a leader now may have had one yet when it was asked before.
		f.led(ctx, c)
	})
	asked.Go(func() { f.Users, f.UsersErr = c.Users(ctx, "") })
	asked.Go(func() { f.verify(ctx, c) })
	asked.Go(func() { f.backups(ctx, c) })
	asked.Wait()
	f.Behind = behind(f.Status, f.Status.Sequence)
	if len(f.Behind) > 0 {
		if again, err := c.Status(ctx); err == nil {
			still := behind(again, f.Status.Sequence)
			f.Behind = slices.DeleteFunc(f.Behind, func(name string) bool { return !slices.Contains(still, name) })
		}
	}
	return f
}

func (f *Facts) examine(ctx context.Context, c *admin.Client) {
	var names []string
	for _, n := range f.Status.Nodes {
		if n.State == "up" {
			names = append(names, n.Name)
		}
	}
	for some := range slices.Chunk(names, examinedAtOnce) {
		e, err := c.Examine(ctx, admin.ExamineRequest{Nodes: some})
		if err != nil {
			f.ExamErr = err
			return
		}
		f.Exams, f.Silent = append(f.Exams, e.Nodes...), append(f.Silent, e.Missing...)
	}
}

// led asks for accounts and their streams, and again a second later if not all of them have
// a leader, or a copy lacks something: that comes and goes, most of all with streams that
// are made and removed all the time.
func (f *Facts) led(ctx context.Context, c *admin.Client) {
	ask := func() {
		f.Accounts, f.AccountsErr = c.Accounts(ctx)
		f.Streams, f.StreamsErr = c.Streams(ctx, admin.StreamsRequest{})
		f.Unled = f.unled()
	}
	ask()
	first, least := f.Streams, f.Unled
	behind, leaderless := settle(first, &first) > 0, f.leaderless()
	for n := 0; n < settling && (len(least) > 0 || n == 0 && (behind || len(leaderless) > 0)); n++ {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		ask()
		settle(first, &f.Streams)
		least = fewest(least, f.Unled)
		f.Unled = least
		if n == 0 {
			f.still(ctx, c)
		}
	}
}

// fewest are the smaller numbers of two counts.
func fewest(a, b map[string]int) map[string]int {
	least := map[string]int{}
	for key, n := range a {
		if n = min(n, b[key]); n > 0 {
			least[key] = n
		}
	}
	return least
}

// leaderless are the nodes that have copies of streams whose leader they do not know, and
// nobody says that it leads.
func (f *Facts) leaderless() (nodes []string) {
	led := map[string]bool{}
	for _, s := range f.Streams.Streams {
		led[s.Account+"/"+s.Name] = true
	}
	for _, e := range f.Exams {
		if slices.ContainsFunc(e.Leaderless, func(name string) bool { return !led[name] }) {
			nodes = append(nodes, e.Node)
		}
	}
	return nodes
}

// still asks those nodes again, and keeps what they say once more.
func (f *Facts) still(ctx context.Context, c *admin.Client) {
	nodes := f.leaderless()
	if len(nodes) == 0 {
		return
	}
	now, err := c.Examine(ctx, admin.ExamineRequest{Nodes: nodes[:min(len(nodes), examinedAtOnce)]})
	if err != nil {
		return
	}
	for _, e := range now.Nodes {
		for i := range f.Exams {
			if f.Exams[i].Node == e.Node {
				f.Exams[i].Leaderless = slices.DeleteFunc(f.Exams[i].Leaderless, func(name string) bool { return !slices.Contains(e.Leaderless, name) })
			}
		}
	}
}

// settle counts the copies that are behind, and takes those for current that were not so
// before, or that follow a stream which moves: only what stands still is behind for sure,
// or what lacks very much.
func settle(before admin.Streams, now *admin.Streams) (behind int) {
	type key struct{ account, stream, node string }
	was := map[key]uint64{}
	for _, s := range before.Streams {
		for _, c := range s.Copies {
			if !c.Current && !c.Offline || c.Lag > copyLag {
				was[key{s.Account, s.Name, c.Node}] = s.LastSeq
			}
		}
	}
	for i, s := range now.Streams {
		for k, c := range s.Copies {
			if c.Offline || c.Current && c.Lag <= copyLag {
				continue
			}
			if last, ok := was[key{s.Account, s.Name, c.Node}]; ok && (c.Lag > copyLag || last == s.LastSeq) {
				behind++
				continue
			}
			now.Streams[i].Copies[k].Current, now.Streams[i].Copies[k].Lag = true, 0
		}
	}
	return behind
}

// unled counts the streams that accounts have and nobody leads.
func (f *Facts) unled() map[string]int {
	all := map[string]int{}
	if f.AccountsErr != nil || f.StreamsErr != nil || f.Streams.More > 0 || len(f.Streams.Missing) > 0 {
		return all
	}
	for _, a := range f.Accounts {
		n := a.Streams
		for _, s := range f.Streams.Streams {
			if s.Account == a.Name {
				n--
			}
		}
		if n > 0 {
			all[a.Name] = n
		}
	}
	return all
}

func (f *Facts) verify(ctx context.Context, c *admin.Client) {
	var v *audit.Verifier
	_, f.AuditErr = audit.Fetch(ctx, c, func(s admin.AuditState) error {
		if s.Bytes > auditMost {
			return errTooLarge
		}
		v = audit.NewVerifier(s)
		return nil
	}, func(b admin.AuditBlock) error { v.Add(b); return nil })
	if f.AuditErr == nil {
		f.Audit = v.Finish()
	}
}

func (f *Facts) backups(ctx context.Context, c *admin.Client) {
	var last []admin.AuditEntry
	if last, f.BackupErr = audit.List(ctx, c, admin.AuditQuery{What: "backup.begin", Limit: 1}); len(last) > 0 {
		f.Backup = last[0].Time
	}
}

// behind are the nodes that have not applied that event.
func behind(s admin.Status, sequence uint64) (names []string) {
	for _, n := range s.Nodes {
		if n.State == "up" && n.Applied < sequence {
			names = append(names, n.Name)
		}
	}
	return names
}

// refused reports whether somebody may not ask.
func refused(err error) bool {
	return errors.Is(err, &admin.Error{Code: admin.Denied}) || errors.Is(err, nats.ErrPermissionViolation)
}
