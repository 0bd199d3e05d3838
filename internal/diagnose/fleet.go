package diagnose

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

const (
	// certificateSoon is how long before its end the certificate of a node, which lives
	// for a day, is a finding.
	certificateSoon = 4 * time.Hour
	// backupOld is when a backup is old, and how old a fleet is that needs one.
	backupOld, backupNeeded = 30 * 24 * time.Hour, 7 * 24 * time.Hour
	// idle is for how long a consumer may be given nothing while messages wait.
	idle = 24 * time.Hour
	// stuck is how many messages are given again and again.
	stuck = 100
	// copyLag is how many entries a copy may lack, distinct how many subjects a stream
	// may hold.
	copyLag, distinct = 1000, 1_000_000
	// sourceLag, sourceSilent and sourceRetained are what a source may be behind.
	sourceLag, sourceSilent, sourceRetained = 10 * time.Second, time.Minute, 1 << 30
)

// cluster is about nodes together.
func (j *judge) cluster() {
	s := j.Status
	versions := map[string][]string{}
	voters, up := 0, 0
	var rtt time.Duration
	first := time.Time{}
	for _, n := range s.Nodes {
		if n.Voter {
			voters++
		}
		if n.State != "up" {
			continue
		}
		up++
		versions[n.Version] = append(versions[n.Version], n.Name)
		for _, l := range n.Links {
			rtt = max(rtt, l.RoundTrip)
		}
		switch left := n.NotAfter.Sub(j.Now); {
		case n.NotAfter.IsZero():
		case left <= 0:
			j.found("CERTIFICATE-EXPIRED", doctor.Fail, n.Name, n.Name, "fleetbus node renew "+n.Name, "a certificate of node %s ended at %s", n.Name, human.Time(n.NotAfter))
		case left < certificateSoon:
			j.found("CERTIFICATE-ENDS", doctor.Warn, n.Name, n.Name, "fleetbus node renew "+n.Name, "a certificate of node %s ends at %s, in %s", n.Name, human.Time(n.NotAfter), human.Duration(left))
		case first.IsZero() || n.NotAfter.Before(first):
			first = n.NotAfter
		}
	}
	j.sum("certificate", "nodes", "the first certificate of a node ends at %s", human.Time(first))
	if len(versions) > 1 {
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(versions)) {
			parts = append(parts, fmt.Sprintf("%s: %s", cmp.Or(v, "unknown"), strings.Join(versions[v], ", ")))
		}
		j.found("VERSIONS-DIFFER", doctor.Warn, "", s.Fleet, "install the newest on all of them, one after another", "%s", strings.Join(parts, "; "))
	}
	if voters >= 4 && voters%2 == 0 {
		j.found("VOTERS-EVEN", doctor.OK, "", s.Fleet, "", "%d voters survive as many failures as %d", voters, voters-1)
	}
	for _, name := range j.Behind {
		j.found("NODE-BEHIND", doctor.Warn, name, name, "look at the log and the disk of "+name, "node %s has not applied event %d of the ledger", name, s.Sequence).Because = []string{"NODE-DOWN", "STALE-STATE"}
	}
	j.sum("versions", s.Fleet, "all that answer run %s", strings.Join(slices.Collect(maps.Keys(versions)), ", "))
	j.sum("nodes", s.Fleet, "%d of %s answer", up, human.Count(len(s.Nodes), "node"))
	j.sum("leader", s.Fleet, "node %s leads", s.Leader)
	j.sum("voters", s.Fleet, "%s, which survive %s", human.Count(voters, "voter"), human.Count(s.Survives, "failure"))
	j.sum("state", s.Fleet, "event %d of the ledger is applied on all", s.Sequence)
	if len(s.Nodes) < 2 {
		j.state("links", doctor.Skipped, "", s.Fleet, "there is no other node")
	}
	j.sum("links", s.Fleet, "every node hears every other; the slowest answer took %v", rtt.Round(10*time.Microsecond))
	some := func(check, noun string, n int) {
		if n == 0 {
			j.state(check, doctor.Skipped, "", s.Fleet, "there are none")
		}
		j.sum(check, s.Fleet, "%s, all linked", human.Count(n, noun))
	}
	some("regions", "region", len(s.Regions))
	some("sites", "site", len(s.Sites))
}

// audit is whether what was done can be proved, and brought back.
func (j *judge) audit() {
	switch {
	case errors.Is(j.AuditErr, errTooLarge):
		j.state("audit", doctor.Skipped, "", "audit", "%v", j.AuditErr)
	case j.AuditErr != nil:
		j.unasked(j.AuditErr, "audit")
	default:
		for _, p := range j.Audit.Problems {
			j.found("AUDIT-BROKEN", doctor.Fail, "", "audit of "+cmp.Or(p.Node, p.Journal), "fleetbus audit verify", "%s", p)
		}
		j.sum("audit", "audit", "%d entries are as they were written", j.Audit.Entries)
	}
	if j.BackupErr != nil {
		j.unasked(j.BackupErr, "backup")
		return
	}
	var made time.Time
	for _, n := range j.Status.Nodes {
		if !n.Joined.IsZero() && (made.IsZero() || n.Joined.Before(made)) {
			made = n.Joined
		}
	}
	switch age := j.Now.Sub(j.Backup); {
	case j.Backup.IsZero() && !made.IsZero() && j.Now.Sub(made) > backupNeeded:
		j.found("BACKUP-OLD", doctor.Warn, "", j.Status.Fleet, "fleetbus backup FILE", "the audit knows of no backup, and the fleet is %s old", human.Duration(j.Now.Sub(made)))
	case j.Backup.IsZero():
		j.sum("backup", j.Status.Fleet, "there is none yet, and the fleet is new")
	case age > backupOld:
		j.found("BACKUP-OLD", doctor.Warn, "", j.Status.Fleet, "fleetbus backup FILE", "the newest backup was made %s ago", human.Duration(age))
	default:
		j.sum("backup", j.Status.Fleet, "the newest was made %s ago", human.Duration(age))
	}
}

// accounts holds what accounts use against what they may.
func (j *judge) accounts() {
	if j.AccountsErr != nil {
		j.unasked(j.AccountsErr, "limits")
		return
	}
	for _, a := range j.Accounts {
		if len(a.Errors) > 0 {
			j.found("ACCOUNT-UNREADABLE", doctor.Unknown, "", a.Name, "fleetbus account info "+a.Name, "%s", a.Errors[0]).Because = []string{"NO-QUORUM", "NODE-DOWN"}
		}
		for _, l := range []struct {
			what      string
			used, may int64
			show      func(int64) string
		}{
			{"connections", int64(a.Connections), a.Limits.Connections, human.Int},
			{"streams", int64(a.Streams), a.Limits.Streams, human.Int},
			{"storage", int64(a.Bytes), a.Limits.Storage, human.Size},
		} {
			code, state := "LIMIT-NEAR", doctor.Warn
			switch {
			case l.may <= 0 || l.used < l.may-l.may/10:
				continue
			case l.used >= l.may:
				code, state = "LIMIT-REACHED", doctor.Fail
			}
			j.found(code, state, "", a.Name, "raise the limit: fleetbus account add "+a.Name, "%s of account %s: %s of %s", l.what, a.Name, l.show(l.used), l.show(l.may))
		}
	}
	j.sum("limits", "accounts", "%s, none near a limit", human.Count(len(j.Accounts), "account"))
}

// users is about credentials that end.
func (j *judge) users() {
	if j.UsersErr != nil {
		j.unasked(j.UsersErr, "users", "credentials")
		return
	}
	for _, u := range j.Users {
		if u.Denied || u.Removed {
			continue
		}
		begin, end, has := credentials(u)
		switch left := end.Sub(j.Now); {
		case !has:
			j.found("USER-UNUSED", doctor.Warn, "", u.String(), "fleetbus user rm "+u.String(), "user %s has no credential", u)
		case end.IsZero(): // never
		case left <= 0:
			j.found("USER-UNUSED", doctor.Warn, "", u.String(), "fleetbus user rm "+u.String()+", or fleetbus user renew "+u.String(), "the last credential of user %s ended at %s", u, human.Time(end))
		case left < end.Sub(begin)/10:
			j.found("CREDENTIAL-ENDS", doctor.Warn, "", u.String(), "fleetbus user renew "+u.String(), "the last credential of user %s ends at %s, in %s", u, human.Time(end), human.Duration(left))
		}
	}
	for _, check := range []string{"users", "credentials"} {
		j.sum(check, "users", "%s", human.Count(len(j.Users), "user"))
	}
}

// credentials is when the last one of a user ends, zero if never, and when that began.
// Certificates do not say when they began: a day before is what ours live.
func credentials(u identity.User) (begin, end time.Time, has bool) {
	later := func(from, to time.Time) {
		switch {
		case has && end.IsZero():
		case to.IsZero():
			begin, end = from, to
		case !has || to.After(end):
			begin, end = from, to
		}
		has = true
	}
	for _, k := range u.Keys {
		later(k.Issued, k.Expires)
	}
	for _, c := range u.Certificates {
		later(c.NotAfter.Add(-24*time.Hour), c.NotAfter)
	}
	if u.Bearer != nil {
		later(u.Bearer.Created, u.Bearer.Expires)
	}
	if u.Password != "" {
		later(u.Created, time.Time{})
	}
	return begin, end, has
}

// streams is about streams and who reads them.
func (j *judge) streams() {
	checks := []string{"leaders", "copies", "stream-limits", "cardinality", "consumers"}
	if j.StreamsErr != nil {
		j.unasked(j.StreamsErr, checks...)
		return
	}
	led := map[string]bool{}
	single := map[string][]string{}
	readers := 0
	for _, s := range j.Streams.Streams {
		name := s.Account + "/" + s.Name
		led[name] = true
		if s.Replicas == 1 && len(j.Status.Nodes) >= 3 {
			single[s.Account] = append(single[s.Account], s.Name)
		}
		j.copies(name, s)
		switch {
		case !s.Refuses:
		case s.MaxBytes > 0 && s.Bytes >= uint64(s.MaxBytes-s.MaxBytes/10):
			j.found("STREAM-NEAR-FULL", doctor.Warn, "", name, "read what waits, or raise the stream's limit", "stream %s holds %s of %s, and refuses more", name, human.Size(int64(s.Bytes)), human.Size(s.MaxBytes))
		case s.MaxMessages > 0 && s.Messages >= uint64(s.MaxMessages-s.MaxMessages/10):
			j.found("STREAM-NEAR-FULL", doctor.Warn, "", name, "read what waits, or raise the stream's limit", "stream %s holds %d of %d messages, and refuses more", name, s.Messages, s.MaxMessages)
		}
		if s.Distinct > distinct {
			j.found("STREAM-SUBJECTS", doctor.Warn, "", name, "let subjects end by age, or put what tells messages apart into them", "stream %s holds %d subjects", name, s.Distinct)
		}
		for _, c := range s.Readers {
			readers++
			since := c.Active
			if c.Created.After(since) {
				since = c.Created
			}
			switch {
			case c.Pending > 0 && !c.Temporary && !since.IsZero() && j.Now.Sub(since) > idle:
				j.found("CONSUMER-IDLE", doctor.Warn, "", name+" "+c.Name, "remove it if nobody needs it: fleetbus stream info "+s.Name, "%d messages wait for consumer %s, which was given none for %s", c.Pending, c.Name, human.Duration(j.Now.Sub(since)))
			case c.Redelivered >= stuck:
				j.found("CONSUMER-STUCK", doctor.Warn, "", name+" "+c.Name, "look at the log of who reads", "%d messages were given to consumer %s again, and are not acknowledged", c.Redelivered, c.Name)
			}
		}
	}
	for _, account := range slices.Sorted(maps.Keys(single)) {
		names := single[account]
		text := strings.Join(names[:min(len(names), 5)], ", ")
		if n := len(names) - 5; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		j.found("STREAM-ONE-COPY", doctor.OK, "", account, "", "streams with one copy: %s", text)
	}
	for _, e := range j.Exams {
		for _, name := range e.Leaderless {
			if !led[name] {
				led[name] = true // once
				j.found("STREAM-NO-LEADER", doctor.Fail, "", name, "start the nodes that have its other copies: fleetbus status", "node %s has a copy of stream %s, and knows no leader", e.Node, name).Because = []string{"NO-QUORUM"}
			}
		}
	}
	for _, account := range slices.Sorted(maps.Keys(j.Unled)) {
		n := j.Unled[account]
		for _, e := range j.Exams { // those that are told of by name
			n -= len(slices.DeleteFunc(slices.Clone(e.Leaderless), func(name string) bool { return !strings.HasPrefix(name, account+"/") }))
		}
		if n > 0 {
			j.found("STREAM-NO-LEADER", doctor.Fail, "", account, "start the nodes that have their copies: fleetbus status", "account %s has %s that no node leads which answers", account, human.Count(n, "stream")).Because = []string{"NODE-DOWN", "NO-QUORUM"}
		}
	}
	for _, name := range j.Streams.Missing {
		j.found("NOT-ANSWERED", doctor.Unknown, name, name+": streams", "", "node %s did not say which streams it leads", name).Because = []string{"NODE-DOWN", "NODE-DEAF"}
	}
	for _, check := range checks {
		j.sum(check, "streams", "%s, %s", human.Count(len(j.Streams.Streams), "stream"), human.Count(readers, "consumer"))
	}
}

func (j *judge) copies(name string, s admin.StreamInfo) {
	for _, c := range s.Copies {
		switch {
		case c.Offline:
			j.found("STREAM-COPY-AWAY", doctor.Warn, c.Node, name, "start node "+c.Node+", or remove it for good: fleetbus node rm "+c.Node, "the copy of stream %s on node %s is away", name, c.Node).Because = []string{"NODE-DOWN", "LINK-DOWN"}
		case !c.Current || c.Lag > copyLag:
			j.found("STREAM-COPY-BEHIND", doctor.Warn, c.Node, name, "look at the disk and the network of "+c.Node, "the copy of stream %s on node %s lacks %d entries", name, c.Node, c.Lag).Because = []string{"NODE-DOWN", "LINK-DOWN", "DISK-FULL", "STATE-COPYING"}
		}
	}
}

// sources is about databases whose changes are announced.
func (j *judge) sources() {
	all := j.Status.Sources
	for _, s := range all {
		name := s.Account + "/" + s.Name
		switch {
		case s.State == admin.SourceFailed:
			j.found("SOURCE-FAILED", doctor.Fail, s.Runner, name, "mend what it says; it is tried again by itself", "source %s fails on node %s: %s", name, s.Runner, s.Error)
		case s.State == admin.SourceWaiting:
			fix := "start more nodes"
			if s.Node != "" {
				fix = "start node " + s.Node
			}
			j.found("SOURCE-WAITING", doctor.Fail, s.Node, name, fix, "no node runs source %s", name).Because = []string{"NODE-DOWN", "NO-QUORUM"}
		case !s.Progress.Seen.IsZero() && j.Now.Sub(s.Progress.Seen) > sourceSilent:
			j.found("SOURCE-SILENT", doctor.Fail, s.Runner, name, "look at the database, and the network to it", "the database of source %s was last heard of %s ago", name, human.Duration(j.Now.Sub(s.Progress.Seen)))
		}
		if s.Progress.Lag > sourceLag {
			j.found("SOURCE-LAG", doctor.Warn, s.Runner, name, "look at the load of the database and of "+s.Runner, "the last change was told %s after its commit", human.Duration(s.Progress.Lag))
		}
		if s.Progress.Retained > sourceRetained {
			j.found("SOURCE-RETAINED", doctor.Warn, s.Runner, name, "bring it up to date, or remove it: fleetbus change source rm "+name, "the database keeps %s of log for it", human.Size(int64(s.Progress.Retained)))
		}
		if s.Progress.Warning != "" {
			j.found("SOURCE-SETTINGS", doctor.Warn, s.Runner, name, s.Progress.Warning, "%s", s.Progress.Warning)
		}
	}
	for _, check := range []string{"sources", "lag", "retained", "database"} {
		if len(all) == 0 {
			j.state(check, doctor.Skipped, "", "sources", "there are none")
		}
		j.sum(check, "sources", "%s", human.Count(len(all), "source"))
	}
}

// rest says of what nodes find by themselves that they found nothing.
func (j *judge) rest() {
	managed, hubs, up := 0, 0, 0
	for _, a := range j.Accounts {
		if a.Certificates {
			managed++
		}
	}
	for _, n := range j.Status.Nodes {
		hubs += len(n.Hubs)
		if n.State == "up" {
			up++
		}
	}
	for _, check := range []string{"manager", "expiry", "renewal", "targets", "records"} {
		switch {
		case j.AccountsErr != nil:
			j.unasked(j.AccountsErr, check)
		case managed == 0:
			j.state(check, doctor.Skipped, "", "certificates", "no account has managers of its certificates")
		}
		j.sum(check, "certificates", "the managers of %s have nothing to report", human.Count(managed, "account"))
	}
	for _, check := range []string{"hub", "hub-queue"} {
		if hubs == 0 {
			j.state(check, doctor.Skipped, "", "hub", "no node is linked to a central broker")
		}
		j.sum(check, "hub", "%s, with nothing to report", human.Count(hubs, "link"))
	}
	for _, check := range []string{"services", "durability", "listeners", "keys", "mqtt"} {
		j.sum(check, "nodes", "%s, with nothing to report", human.Count(up, "node"))
	}
}
