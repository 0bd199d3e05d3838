package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// enrollWait is how long a start waits for the bus before it goes by what is on
	// disk.
	enrollWait = 5 * time.Second
	// longestWait is between attempts of a target that is in no group.
	longestWait = 30 * time.Second
	// renewEvery is how often a target looks whether its credentials are half over.
	renewEvery = time.Hour
)

// Enroll sends the managers the target's public keys, and keeps what it may open. It may
// be done again: groups may have come or gone. A target that is in none is told so.
func (t *Target) Enroll(ctx context.Context, nc *nats.Conn) error {
	path := t.path(keyFile)
	key, err := cert.ReadTargetKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = &cert.TargetKey{Account: t.account, Name: t.name, Signers: []cert.Signer{cert.Signer(t.Signer)}}
		key.Seal, err = t.pendingKey()
	}
	if err != nil {
		return err
	}
	groups, err := askGroups(ctx, nc, t.name, key)
	if err != nil || slices.Equal(key.Groups, groups) {
		return err
	}
	key.Groups = groups
	if err := cert.WriteTargetKey(path, key); err != nil {
		return err
	}
	return forget(path + ".new")
}

// pendingKey is the sealing key of a target that is in no group yet: a target has one,
// however often it asks.
func (t *Target) pendingKey() (*cert.SealKey, error) {
	path := t.path(keyFile + ".new")
	secret, err := os.ReadFile(path)
	if err == nil {
		return cert.ParseSealKey(secret)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	key, err := cert.NewSealKey()
	if err != nil {
		return nil, err
	}
	if secret, err = key.Bytes(); err != nil {
		return nil, err
	}
	return key, write(path, secret)
}

// askGroups asks the managers for the groups of a target.
func askGroups(ctx context.Context, nc *nats.Conn, name string, key *cert.TargetKey) ([]string, error) {
	signer, err := key.Signer()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"public": key.Seal.Public(), "signer": signer})
	if err != nil {
		return nil, err
	}
	answers, err := cert.Ask(nc, key.Signers, cert.EnrollSubject(name), body)
	if err != nil {
		return nil, err
	}
	defer answers.Close()
	data, err := answers.Next(ctx)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, admin.Errorf(admin.Unavailable, "fleetbus cert ls, as an administrator, starts them", "no manager of certificates answers in this account")
	}
	if err != nil {
		return nil, err
	}
	var reply struct {
		Error *admin.Error `json:"error"`
		Data  struct {
			Groups []string `json:"groups"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &reply); err != nil {
		return nil, fmt.Errorf("reading an answer: %w", err)
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	slices.Sort(reply.Data.Groups)
	return reply.Data.Groups, nil
}

// AwaitGroup enrolls, by way of what dial connects to. If the bus is away it goes by
// what it knows; a target that never was in a group waits until it is, and the error is
// that of ctx.
func (t *Target) AwaitGroup(ctx context.Context, log *slog.Logger, dial func(context.Context) (*nats.Conn, error)) error {
	for wait := time.Second; ; wait = min(2*wait, longestWait) {
		err := t.enrollBy(ctx, dial)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if t.Enrolled() {
			log.Warn("starting without the bus", "error", err)
			return nil
		}
		log.Warn("waiting for a group", "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (t *Target) enrollBy(ctx context.Context, dial func(context.Context) (*nats.Conn, error)) error {
	ctx, cancel := context.WithTimeout(ctx, enrollWait)
	defer cancel()
	nc, err := dial(ctx)
	if err != nil {
		return err
	}
	defer nc.Close()
	return t.Enroll(ctx, nc)
}

// KeepCreds renews the target's credentials whenever half of their life is over, until
// ctx ends. A connection that is made with them takes the new ones when it is made
// again.
func (t *Target) KeepCreds(ctx context.Context, nc *nats.Conn, log *slog.Logger) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if err := t.renew(ctx, nc, time.Now()); err != nil && ctx.Err() == nil {
			log.Warn("credentials not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// renew renews the credentials if half of their life is over.
func (t *Target) renew(ctx context.Context, nc *nats.Conn, now time.Time) error {
	text, err := os.ReadFile(t.Creds())
	if err != nil {
		return err
	}
	issued, expires, err := identity.CredsLife(text)
	if err != nil || expires.IsZero() || expires.Sub(now) > expires.Sub(issued)/2 || !nc.IsConnected() {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	reply, err := admin.Renew(ctx, nc)
	if err != nil {
		return err
	}
	key, err := nkeys.ParseDecoratedUserNKey(text)
	if err != nil {
		return err
	}
	seed, err := key.Seed()
	if err != nil {
		return err
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		return err
	}
	return write(t.Creds(), creds)
}
