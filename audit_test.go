package fleetbus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/audit"
)

// auditPatience is how long an entry may take to be read.
const auditPatience = 60 * time.Second

// audited waits for an entry that is as it is wanted.
func audited(t *testing.T, c *admin.Client, what string, q admin.AuditQuery, is func(admin.AuditEntry) bool) (found admin.AuditEntry) {
	t.Helper()
	fleetbustest.Eventually(t, what, func() error {
		page, err := c.Audit(limited(t, 20*time.Second), q)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(page.Entries, is)
		if i < 0 {
			return fmt.Errorf("it is not among %d entries", len(page.Entries))
		}
		found = page.Entries[i]
		return nil
	})
	return found
}

// allOfAudit reads everything that is verified.
func allOfAudit(t *testing.T, c *admin.Client) (admin.AuditState, []admin.AuditBlock) {
	t.Helper()
	var all []admin.AuditBlock
	state, err := audit.Fetch(limited(t, auditPatience), c, func(admin.AuditState) error { return nil }, func(b admin.AuditBlock) error {
		all = append(all, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return state, all
}

func verifyAudit(state admin.AuditState, blocks []admin.AuditBlock) audit.Report {
	v := audit.NewVerifier(state)
	for _, b := range blocks {
		v.Add(b)
	}
	return v.Finish()
}

// TestAudit changes a fleet of three nodes, has users let in and refused, and reads who did
// what; then it takes entries out of the stream in every way that the engine has.
func TestAudit(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	s := nodes[0]
	c := s.Admin()
	ctx := limited(t, 2*auditPatience)
	if _, err := c.AddAccount(ctx, admin.AccountRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddAccount(ctx, admin.AccountRequest{Name: "no name"}); err == nil {
		t.Fatal("an account has no name that is one")
	}
	const canary = "canary-of-the-audit"
	hash, err := identity.HashPassword(canary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddUser(ctx, admin.UserRequest{Name: "acme/alice", Password: hash}); err != nil {
		t.Fatal(err)
	}
	request := audited(t, c, "what was asked", admin.AuditQuery{What: "user.add", Kinds: []admin.AuditKind{admin.AuditRequest}}, func(e admin.AuditEntry) bool { return e.Account == "acme" })
	write := audited(t, c, "what was done", admin.AuditQuery{What: "user.add", Kinds: []admin.AuditKind{admin.AuditWrite}}, func(e admin.AuditEntry) bool { return e.Of == request.Number })
	if request.Who != "FLEET/admin" || len(request.From) == 0 || !strings.HasPrefix(request.From[0], "127.") || write.Result != audit.ResultOK ||
		len(write.Changes) != 1 || write.Changes[0].Subject != "user.acme.alice" || write.Changes[0].Before != nil || !strings.Contains(string(write.Changes[0].After), `"role":"client"`) {
		t.Errorf("the request is %+v, and the write %+v", request, write)
	}
	audited(t, c, "what failed", admin.AuditQuery{What: "account.add", Kinds: []admin.AuditKind{admin.AuditWrite}}, func(e admin.AuditEntry) bool { return strings.HasPrefix(e.Result, "invalid: ") })
	if _, err := c.DenyUser(ctx, "acme/alice"); err != nil {
		t.Fatal(err)
	}
	denied := audited(t, c, "a denial", admin.AuditQuery{What: "user.deny", Kinds: []admin.AuditKind{admin.AuditWrite}}, func(admin.AuditEntry) bool { return true })
	if len(denied.Changes) != 1 || bytes.Contains(denied.Changes[0].Before, []byte(`"denied"`)) || !bytes.Contains(denied.Changes[0].After, []byte(`"denied":true`)) {
		t.Errorf("a denial is %+v", denied)
	}
	// Who comes in, and who does not, at any node.
	nodes[1].Dial("acme", "bob")
	audited(t, c, "a login", admin.AuditQuery{Who: "acme/bob", Kinds: []admin.AuditKind{admin.AuditLogin}}, func(e admin.AuditEntry) bool { return e.Node == "n2" && len(e.From) == 1 })
	if nc, err := nats.Connect(nodes[2].URL(), nats.Secure(nodes[2].TLS()), nats.UserInfo("acme/alice", canary), nats.NoReconnect()); err == nil {
		nc.Close()
		t.Fatal("who is denied comes in")
	}
	audited(t, c, "a refusal", admin.AuditQuery{Who: "acme/alice", Kinds: []admin.AuditKind{admin.AuditRefused}}, func(e admin.AuditEntry) bool { return e.Node == "n3" && strings.Contains(e.Result, "denied") })
	t.Run("rights", func(t *testing.T) { auditRights(t, s) })
	state, blocks := allOfAudit(t, c)
	for _, b := range blocks {
		if bytes.Contains(b.Data, []byte(canary)) || bytes.Contains(b.Data, []byte(hash)) {
			t.Errorf("message %d has a secret", b.Sequence)
		}
	}
	if r := verifyAudit(state, blocks); len(r.Problems) != 0 || len(r.Journals) != 3 {
		t.Errorf("what nobody changed is %+v", r)
	}
	t.Run("tampering", func(t *testing.T) { tamper(t, nodes, c) })
}

// auditRights has nobody but the nodes write, an administrator speak in its own name
// alone, and an auditor read.
func auditRights(t *testing.T, s *fleetbustest.Server) {
	ctx := limited(t, auditPatience)
	nc, err := connectAs(t, s, "FLEET/eve", identity.RoleAuditor, nats.CustomInboxPrefix(identity.Inbox("eve")))
	if err != nil {
		t.Fatal(err)
	}
	eve := admin.New(nc)
	if page, err := eve.Audit(ctx, admin.AuditQuery{}); err != nil || len(page.Entries) == 0 {
		t.Errorf("an auditor reads %d entries: %v", len(page.Entries), err)
	}
	if state, blocks := allOfAudit(t, eve); len(verifyAudit(state, blocks).Problems) != 0 {
		t.Error("an auditor cannot verify it")
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := eve.AddAccount(short, admin.AccountRequest{Name: "eves"}); err == nil {
		t.Error("an auditor makes an account")
	}
	mallory, err := connectAs(t, s, "FLEET/mallory", identity.RoleAdmin, nats.CustomInboxPrefix(identity.Inbox("mallory")))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := allOfAudit(t, eve)
	for _, subject := range []string{audit.Prefix + "." + firstKey(before), "$JS.API.STREAM.PURGE." + audit.Stream, "$JS.API.STREAM.INFO." + audit.Stream, admin.Prefix + "account.add", admin.ByPrefix + "admin.account.add"} {
		if _, err := mallory.Request(subject, []byte(`{"name":"mallorys"}`), 300*time.Millisecond); err == nil {
			t.Errorf("an administrator uses %s", subject)
		}
	}
	if _, err := s.Admin().Account(ctx, "mallorys"); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("an administrator made an account in the name of another: %v", err)
	}
}

func firstKey(state admin.AuditState) string {
	for key := range state.Keys {
		return key
	}
	return "none"
}

// tamper changes the stream as somebody can who has a node: the engine does not let one
// message go, so that all of it is made anew without.
func tamper(t *testing.T, nodes []*fleetbustest.Server, c *admin.Client) {
	ctx := limited(t, 3*auditPatience)
	everything := identity.Rule{Allow: []string{">"}}
	session, err := nodes[0].Session(ctx, identity.Principal{Account: identity.FleetName, Name: "mallory", Permissions: identity.Permissions{Publish: everything, Subscribe: everything}})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	js, err := jetstream.New(session.Conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, audit.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(ctx, 3); err == nil {
		t.Error("the engine deletes a message of the audit")
	}
	if err := stream.Purge(ctx); err == nil {
		t.Error("the engine purges the audit")
	}
	// The nodes have to remember more than is taken from them.
	_, blocks := allOfAudit(t, c)
	victim := blocks[len(blocks)/2]
	config := stream.CachedInfo().Config
	if err := js.DeleteStream(ctx, audit.Stream); err != nil {
		t.Fatal(err)
	}
	config.DenyDelete, config.DenyPurge = false, false
	fleetbustest.Eventually(t, "a stream in the place of the audit", func() error {
		_, err := js.CreateOrUpdateStream(ctx, config)
		return err
	})
	for _, b := range blocks {
		if b.Sequence == victim.Sequence {
			continue
		}
		if _, err := js.Publish(ctx, audit.Prefix+"."+b.Journal, b.Data); err != nil {
			t.Fatal(err)
		}
	}
	// Writes go on, and what is missing shows.
	if _, err := c.AddAccount(ctx, admin.AccountRequest{Name: "later"}); err != nil {
		t.Fatal(err)
	}
	state, blocks := allOfAudit(t, c)
	r := verifyAudit(state, blocks)
	var body audit.Block
	if err := json.Unmarshal(bytes.SplitN(victim.Data, []byte("\n"), 2)[0], &body); err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) == 0 || !slices.ContainsFunc(r.Problems, func(p audit.Problem) bool {
		return p.Kind == "removed" && p.Journal == victim.Journal && p.First == body.First && (p.Last == body.Next()-1 || body.Next() == body.First)
	}) {
		t.Errorf("block %d of %s, entries %d to %d, was taken out, and what is found is %+v", body.Number, body.Node, body.First, body.Next()-1, r.Problems)
	}
}
