package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	_ "unsafe" // for go:linkname

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

	mu sync.Mutex
	// taken is when the engine last asked for a token, until it has surely taken it, and
	// doubtful when one was stored while it may have been about to take an older one.
	taken, doubtful map[string]time.Time
	// doubts is sent to when there is something doubtful.
	doubts chan struct{}
}

// taking is longer than the engine takes from asking for a token to having it.
const taking = 5 * time.Second

// openResolver makes the directory of account JWTs anew: the accounts are the
// ledger's, which sends every change at once, and what a node missed while it
// was down may not be left behind here.
func openResolver(o Options) (*resolver, error) {
	r := &resolver{taken: map[string]time.Time{}, doubtful: map[string]time.Time{}, doubts: make(chan struct{}, 1), adopt: o.Adopt, abroadDir: filepath.Join(o.AccountDir, "abroad")}
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
	asked := time.Now()
	r.mu.Lock()
	r.taken[public] = asked
	r.mu.Unlock()
	token, err := r.fetch(public)
	if err != nil {
		r.forget(public, asked)
	} else {
		time.AfterFunc(taking, func() { r.forget(public, asked) })
	}
	return token, err
}

// forget says that the engine has the token that it asked for then, or will not have it.
func (r *resolver) forget(public string, asked time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken[public].After(asked) {
		delete(r.taken, public)
	}
}

// stored says that a token was stored now.
func (r *resolver) stored(public string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.taken[public]; !ok {
		return
	}
	r.doubtful[public] = time.Now()
	select {
	case r.doubts <- struct{}{}:
	default:
	}
}

// doubted lists what is doubtful.
func (r *resolver) doubted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.doubtful, func(_ string, stored time.Time) bool { return time.Since(stored) > taking })
	return slices.Collect(maps.Keys(r.doubtful))
}

func (r *resolver) fetch(public string) (string, error) {
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
	b.resolver.stored(public)
	return nil
}

// insist has the engine take the tokens that are stored, where it may come with one that it
// asked for before: which of two it takes is whichever is last. It ends with the broker.
func (b *Broker) insist() {
	for {
		select {
		case <-b.background.Done():
			return
		case <-b.resolver.doubts:
		}
		for wait := 10 * time.Millisecond; ; wait = min(2*wait, taking/10) {
			doubted := b.resolver.doubted()
			if len(doubted) == 0 {
				break
			}
			for _, public := range doubted {
				if err := b.retake(public); err != nil {
					b.opts.Logger.Warn("the engine does not take what is new of an account", "account", public, "error", err)
				}
			}
			select {
			case <-b.background.Done():
				return
			case <-time.After(wait):
			case <-b.resolver.doubts:
				wait = 5 * time.Millisecond
			}
		}
	}
}

// retake has the engine take the token that is stored for an account, unless it has it.
func (b *Broker) retake(public string) error {
	account, err := b.srv.LookupAccount(public)
	if err != nil {
		return nil // it is removed
	}
	b.claims.Lock()
	defer b.claims.Unlock()
	token, err := b.resolver.LoadAcc(public)
	if err != nil {
		return nil
	}
	return updateAccount(b.srv, account, token)
}

// updateAccount is how the engine takes the token of an account, unless it has it. Without
// it, or with another signature, this package does not link, or its tests fail.
//
//go:linkname updateAccount github.com/nats-io/nats-server/v2/server.(*Server).updateAccountWithClaimJWT
func updateAccount(*server.Server, *server.Account, string) error

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
