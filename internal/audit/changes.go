package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// ByHeader is where the nodes of another region say whose request they pass on.
const ByHeader = "Fleetbus-By"

const (
	// changesBytes bounds the records of an entry, and changesMost how many are named.
	changesBytes, changesMost = 64 << 10, 256
)

// Changes are those of one entry. What is too much is named, and then counted, but not
// told. The zero value has none.
type Changes struct {
	all   []admin.AuditChange
	bytes int
	more  int
}

// Add notes that a record was before and is after; empty is none.
func (c *Changes) Add(subject string, before, after []byte) {
	c.Put(admin.AuditChange{Subject: subject, Before: Redact(before), After: Redact(after)})
}

// Put notes a change that has no secret.
func (c *Changes) Put(change admin.AuditChange) {
	if len(c.all) == changesMost {
		c.more++
		return
	}
	if c.bytes += len(change.Before) + len(change.After); c.bytes > changesBytes {
		change.Before, change.After = omitted(change.Before), omitted(change.After)
	}
	c.all = append(c.all, change)
}

func omitted(record json.RawMessage) json.RawMessage {
	if record == nil {
		return nil
	}
	return json.RawMessage(`"(omitted)"`)
}

// All are the changes.
func (c *Changes) All() []admin.AuditChange {
	if c.more > 0 {
		return append(slices.Clone(c.all), admin.AuditChange{Subject: fmt.Sprintf("%d more", c.more)})
	}
	return c.all
}

// Reads reports whether a request of that name changes nothing. What it does not know
// may.
func Reads(name string) bool {
	switch name {
	case "status", "top", "source.setup", "audit.blocks", "audit.state",
		"cert.cat", "cert.conf.display", "cert.status", "cert.root", "cert.public", "cert.renewable":
		return true
	}
	return strings.HasSuffix(name, ".ls") || strings.HasSuffix(name, ".info")
}

// AccountOf is the account that a record of the ledger is about.
func AccountOf(subject string) string {
	noun, rest, _ := strings.Cut(subject, ".")
	switch noun {
	case "account":
		return rest
	case "user", "export", "import":
		account, _, _ := strings.Cut(rest, ".")
		return account
	}
	return ""
}

// accountOfName is the account of account/name.
func accountOfName(who string) string {
	account, _, ok := strings.Cut(who, "/")
	if !ok || identity.CheckName(account) != nil || account == "token" || account == "node" {
		return ""
	}
	return account
}

// accountIn is the account that a request is about, if it says so.
func accountIn(request []byte) string {
	var r struct{ Account, Name string }
	if json.Unmarshal(request, &r) != nil {
		return ""
	}
	if identity.CheckName(r.Account) == nil {
		return r.Account
	}
	return accountOfName(r.Name)
}

// ResultOf is how an entry tells of err.
func ResultOf(err error) string {
	var refused *admin.Error
	switch {
	case err == nil:
		return ResultOK
	case errors.As(err, &refused):
		return string(refused.Code) + ": " + redactText(refused.Text)
	}
	return "failed: " + redactText(err.Error())
}

// Event has the journal tell of an event of the node, if it is a login or a refusal.
func (j *Journal) Event(ev admin.Event) {
	e := admin.AuditEntry{Time: ev.Time, Who: ev.Principal, Account: ev.Account, Listener: ev.Listener, Result: redactText(ev.Reason)}
	if ev.Address != "" {
		e.From = []string{ev.Address}
	}
	switch ev.Kind {
	case admin.EventConnect:
		e.Kind, e.Result = admin.AuditLogin, ResultOK
	case admin.EventLeaf, admin.EventGateway, admin.EventRoute:
		if ev.State != admin.LinkUp {
			return
		}
		e.Kind, e.Listener, e.Who, e.Result = admin.AuditLogin, string(ev.Kind), ev.Peer, ResultOK
	case admin.EventRefused, admin.EventLimit:
		e.Kind = admin.AuditRefused
	default:
		return
	}
	j.Tell(e)
}

func decodeRequest(data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return admin.Errorf(admin.Invalid, "", "the request cannot be read: %v", err)
	}
	return nil
}
