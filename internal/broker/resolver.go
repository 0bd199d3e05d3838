package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// never is longer than any server runs.
const never = 100 * 365 * 24 * time.Hour

// A resolver has the tokens of accounts. Each is signed for this engine alone: the
// engines of a cluster exchange none. What this one does not know yet it asks the
// others for, and has it signed anew.
type resolver struct {
	*server.DirAccResolver
	// abroad asks the other engines, and keeps what they say in a directory.
	abroad    *server.DirAccResolver
	abroadDir string
	adopt     func(public, token string) (string, error)
}

// openResolver makes the directory of account JWTs anew: the accounts are the
// ledger's, which sends every change at once, and what a node missed while it
// was down may not be left behind here.
func openResolver(o Options) (*resolver, error) {
	r := &resolver{adopt: o.Adopt, abroadDir: filepath.Join(o.AccountDir, "abroad")}
	if err := os.RemoveAll(o.AccountDir); err != nil {
		return nil, fmt.Errorf("clearing the account directory: %w", err)
	}
	if err := os.MkdirAll(r.abroadDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the account directory: %w", err)
	}
	var err error
	if r.abroad, err = server.NewDirAccResolver(r.abroadDir, 0, never, server.HardDelete); err != nil {
		return nil, fmt.Errorf("opening the account directory %q: %w", r.abroadDir, err)
	}
	if r.DirAccResolver, err = server.NewDirAccResolver(filepath.Join(o.AccountDir, "own"), 0, never, server.HardDelete); err != nil {
		return nil, fmt.Errorf("opening the account directory %q: %w", o.AccountDir, err)
	}
	for public, token := range o.Accounts {
		if err := r.SaveAcc(public, token); err != nil {
			r.Close()
			return nil, fmt.Errorf("storing account %q: %w", public, err)
		}
	}
	return r, nil
}

// Start implements server.AccountResolver.
func (r *resolver) Start(s *server.Server) error {
	r.abroad.Lock()
	r.abroad.Server = s
	r.abroad.Unlock()
	return r.DirAccResolver.Start(s)
}

// Close implements server.AccountResolver.
func (r *resolver) Close() {
	r.abroad.Close()
	r.DirAccResolver.Close()
}

// Fetch implements server.AccountResolver.
func (r *resolver) Fetch(public string) (string, error) {
	if token, err := r.LoadAcc(public); err == nil && token != "" {
		return token, nil
	}
	token, err := r.abroad.Fetch(public)
	if err != nil {
		return "", err
	}
	// What it keeps grows old.
	_ = os.Remove(filepath.Join(r.abroadDir, public+".jwt"))
	if r.adopt == nil {
		return token, nil
	}
	return r.adopt(public, token)
}

// Check is server.Authentication's, which the engine takes without a look when it
// compares options. It is never called.
func (r *resolver) Check(server.ClientAuthentication) bool { return false }

// StoreAccount makes token the JWT of the account with that public key, on this
// server: limits and revocations act at once.
func (b *Broker) StoreAccount(public, token string) error {
	if old, err := b.resolver.LoadAcc(public); err == nil && old == token {
		return nil
	}
	b.claims.Lock()
	defer b.claims.Unlock()
	if err := b.resolver.SaveAcc(public, token); err != nil {
		return fmt.Errorf("storing account %q: %w", public, err)
	}
	return nil
}

// DropAccounts removes accounts from this server and closes their connections.
// token names them, and is signed by the operator that this server trusts; other
// servers of the cluster hear it, too, and take no notice. nc is a connection to
// the system account.
func DropAccounts(nc *nats.Conn, token string, timeout time.Duration) error {
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("dropping accounts: %w", err)
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest("$SYS.REQ.CLAIMS.DELETE", inbox, []byte(token)); err != nil {
		return fmt.Errorf("dropping accounts: %w", err)
	}
	refused := errors.New("no engine answers")
	for end := time.Now().Add(timeout); ; {
		msg, err := sub.NextMsg(time.Until(end))
		if err != nil {
			return fmt.Errorf("dropping accounts: %w: %w", err, refused)
		}
		var reply server.ServerAPIClaimUpdateResponse
		if err := json.Unmarshal(msg.Data, &reply); err != nil {
			return fmt.Errorf("dropping accounts: %w", err)
		}
		if reply.Error == nil {
			return nil
		}
		refused = errors.New(reply.Error.Description)
	}
}
