//go:build !lean

package clouds

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/openstack"
)

// atOnce is how many services are worked on at once. To hash a password takes memory.
const atOnce = 8

// What became of a step.
const (
	made    = "made"
	changed = "changed"
	renewed = "renewed"
	there   = "there"
)

// errOtherRole is that a user is there, and is for something else.
var errOtherRole = errors.New("it has another role")

func newApply(a *command.App) *cobra.Command {
	var f planFlags
	var g command.Guard
	var out string
	within := command.Life(30 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use: "apply", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Make what a deployment needs",
		Long: `Make what fleetbus openstack plan says, and write DIR/HOST/SERVICE: keys and
certificates, or passwords, and the sections of oslo.messaging for the service's
settings. Keys are made on this machine and stay here. What is there already
stays, but a certificate that ends soon is renewed, with its key; a host that is
new gets its users. Nobody is removed.`,
		Example: `  fleetbus openstack apply --services nova,neutron --hosts hosts.txt --amqp 10.0.0.11:5671,10.0.0.12:5671,10.0.0.13:5671 --out cloud`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := f.plan(cmd)
			if err != nil {
				return err
			}
			if g.DryRun {
				return show(a, p, p.Steps())
			}
			const what = "applying the plan"
			if out == "" {
				return command.Fail(command.ExitUsage, "--out DIR", "%s: where the files go is not said", what)
			}
			w := &work{App: a, plan: p, dir: out, passwords: f.r.Passwords, within: time.Duration(within), states: map[string]string{}}
			if err := w.run(cmd.Context(), what); err != nil {
				return err
			}
			steps := p.Steps()
			for i := range steps {
				steps[i].State = w.states[steps[i].Kind+" "+steps[i].Name]
			}
			return errors.Join(show(a, p, steps), w.failure(what))
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "`directory` for the files; it is made if it is missing")
	cmd.Flags().Var(&within, "renew-within", "renew certificates that end sooner than that")
	g.Drying(cmd)
	return a.Output(cmd)
}

// work is a plan that is being applied.
type work struct {
	*command.App
	plan      openstack.Plan
	dir       string
	passwords bool
	within    time.Duration
	api       *admin.Client
	users     map[string]identity.User

	mu     sync.Mutex
	states map[string]string // by kind and name of a step
	errs   []error
}

func (w *work) set(kind, name, state string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states[kind+" "+name] = state
}

func (w *work) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// failure is what of the plan was not done.
func (w *work) failure(what string) error {
	if len(w.errs) == 0 {
		return nil
	}
	texts := make([]string, len(w.errs))
	for i, err := range w.errs {
		texts[i] = err.Error()
	}
	slices.Sort(texts)
	return command.Fail(command.ExitPartial, "run it again: it makes what is missing", "%s: %s", what, command.Some(texts, min(len(texts), 10)))
}

// run makes accounts and roles, and then users with their files.
func (w *work) run(ctx context.Context, what string) error {
	defer w.Progress(what)()
	t, err := w.Target(true)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	nc, err := w.Connect(ctx, t)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	w.api = admin.New(nc)
	if err := errors.Join(w.accounts(ctx), w.roles(ctx)); errors.Is(err, nats.ErrNoResponders) {
		return command.Fail(command.ExitUnavailable, "use the credentials of an administrator with --creds", "%s: nobody answers requests of administrators there", what)
	} else if err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	if err := w.known(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	next := make(chan openstack.Service)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for s := range next {
				if err := w.service(ctx, s); err != nil {
					w.fail(fmt.Errorf("%s on %s: %w", s.Name, s.Host.Name, err))
				}
			}
		})
	}
	for _, s := range w.plan.Services {
		next <- s
	}
	close(next)
	all.Wait()
	return ctx.Err()
}

// try does something with the fleet, within the time that one request may take.
func (w *work) try(ctx context.Context, do func(context.Context) (admin.Spread, error)) error {
	ctx, cancel := context.WithTimeout(ctx, w.Fleet.Timeout)
	defer cancel()
	_, err := do(ctx)
	return err
}

func (w *work) accounts(ctx context.Context) error {
	ask, cancel := context.WithTimeout(ctx, w.Fleet.Timeout)
	defer cancel()
	list, err := w.api.Accounts(ask)
	if err != nil {
		return fmt.Errorf("listing accounts: %w", err)
	}
	for _, name := range w.plan.Accounts {
		if slices.ContainsFunc(list, func(i admin.AccountInfo) bool { return i.Name == name }) {
			w.set("account", name, there)
			continue
		}
		err := w.try(ctx, func(ctx context.Context) (admin.Spread, error) {
			return w.api.AddAccount(ctx, admin.AccountRequest{Name: name})
		})
		if err != nil {
			return fmt.Errorf("adding account %q: %w", name, err)
		}
		w.set("account", name, made)
	}
	return nil
}

func (w *work) roles(ctx context.Context) error {
	ask, cancel := context.WithTimeout(ctx, w.Fleet.Timeout)
	defer cancel()
	list, err := w.api.Roles(ask)
	if err != nil {
		return fmt.Errorf("listing roles: %w", err)
	}
	for _, r := range w.plan.Roles {
		state := made
		if i := slices.IndexFunc(list, func(o identity.Role) bool { return o.Name == r.Name }); i >= 0 {
			if state = changed; sameRole(list[i], r) {
				state = there
			}
		}
		if state != there {
			err := w.try(ctx, func(ctx context.Context) (admin.Spread, error) { return w.api.AddRole(ctx, r) })
			if err != nil {
				return fmt.Errorf("adding role %q: %w", r.Name, err)
			}
		}
		w.set("role", r.Name, state)
	}
	return nil
}

// sameRole compares what a plan says of a role. Limits that somebody gave it are not its.
func sameRole(a, b identity.Role) bool {
	same := func(a, b []string) bool {
		return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
	}
	return same(a.Permissions.Publish.Allow, b.Permissions.Publish.Allow) && same(a.Permissions.Subscribe.Allow, b.Permissions.Subscribe.Allow) &&
		len(a.Permissions.Publish.Deny)+len(a.Permissions.Subscribe.Deny) == 0 && reflect.DeepEqual(a.Permissions.Replies, b.Permissions.Replies) &&
		a.Expires == b.Expires && same(a.Networks, b.Networks) && same(a.Listeners, b.Listeners)
}

// known asks who is there, and tells of users of the plan's roles who are in no plan.
func (w *work) known(ctx context.Context) error {
	w.users = map[string]identity.User{}
	planned := map[string]bool{}
	for _, s := range w.plan.Services {
		for _, u := range s.Users() {
			planned[u.String()] = true
		}
	}
	for _, account := range w.plan.Accounts {
		ask, cancel := context.WithTimeout(ctx, w.Fleet.Timeout)
		list, err := w.api.Users(ask, account)
		cancel()
		if err != nil {
			return fmt.Errorf("listing the users of account %q: %w", account, err)
		}
		for _, u := range list {
			w.users[u.String()] = u
			if !planned[u.String()] && strings.HasPrefix(u.Role, "openstack-") {
				w.Hint("warning: user %s is not of this plan; if its host is gone: fleetbus user rm %s", u, u)
			}
		}
	}
	return nil
}

// service makes the users of a service, and its files.
func (w *work) service(ctx context.Context, s openstack.Service) error {
	if err := os.MkdirAll(filepath.Join(w.dir, filepath.FromSlash(s.Dir())), 0o700); err != nil {
		return err
	}
	passwords := map[string]string{}
	var ca string
	for _, u := range s.Users() {
		old, exists := w.users[u.String()]
		if exists && old.Role != u.Role {
			return fmt.Errorf("user %s: %w, %s and not %s: fleetbus user rm %s, and run it again", u, errOtherRole, old.Role, u.Role, u)
		}
		state := made
		if exists {
			state = there
		}
		var reply admin.UserReply
		var err error
		if w.passwords {
			passwords[u.String()], reply, err = w.password(ctx, s, u, old)
		} else {
			reply, err = w.certificate(ctx, s, u, old)
		}
		if err != nil {
			return fmt.Errorf("user %s: %w", u, err)
		}
		if reply.CA != "" {
			ca = reply.CA
		}
		w.set("user", u.String(), state)
	}
	if ca == "" {
		w.set("file", s.CA(), there) // it came with the users
		if _, err := os.Stat(w.path(s.CA())); err != nil {
			return fmt.Errorf("the authority is missing: remove %s, and run it again: %w", w.path(s.Dir()), err)
		}
	} else if err := w.write(s.CA(), []byte(ca)); err != nil {
		return err
	}
	return w.write(s.Conf(), []byte(s.Settings(passwords)))
}

func (w *work) path(name string) string { return filepath.Join(w.dir, filepath.FromSlash(name)) }

// write makes a file be that.
func (w *work) write(name string, data []byte) error {
	state := made
	if old, err := os.ReadFile(w.path(name)); err == nil {
		if state = changed; bytes.Equal(old, data) {
			w.set("file", name, there)
			return nil
		}
	}
	w.set("file", name, state)
	return command.SecretFile{Path: w.path(name), Data: data, Mode: 0o600}.Write(true)
}

// ask makes a user, or gives it another credential.
func (w *work) ask(ctx context.Context, u openstack.User, request admin.UserRequest) (admin.UserReply, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Fleet.Timeout)
	defer cancel()
	request.Name, request.Role = u.String(), u.Role
	return w.api.AddUser(ctx, request)
}

// password has the user log in by what its file says, which is made if it is missing. The file
// is there before the user is: who is cut off here goes on with it.
func (w *work) password(ctx context.Context, s openstack.Service, u openstack.User, old identity.User) (string, admin.UserReply, error) {
	name := s.Password(u)
	data, err := os.ReadFile(w.path(name))
	password := strings.TrimSpace(string(data))
	switch {
	case err == nil && password != "":
		w.set("file", name, there)
		if old.Password != "" {
			return password, admin.UserReply{}, nil
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", admin.UserReply{}, err
	default:
		var secret [24]byte
		rand.Read(secret[:])
		password = base64.RawURLEncoding.EncodeToString(secret[:])
		if err := w.write(name, []byte(password+"\n")); err != nil {
			return "", admin.UserReply{}, err
		}
	}
	hash, err := identity.HashPassword(password)
	if err != nil {
		return "", admin.UserReply{}, err
	}
	reply, err := w.ask(ctx, u, admin.UserRequest{Password: hash})
	return password, reply, err
}

// certificate sees that the user has one that does not end soon. Its key is there before it is.
func (w *work) certificate(ctx context.Context, s openstack.Service, u openstack.User, old identity.User) (reply admin.UserReply, err error) {
	key, keyFile, err := w.key(s.Key(u))
	if err != nil {
		return reply, err
	}
	state := made
	if end, ok := ends(w.path(s.Certificate(u)), key, old); ok {
		if time.Until(end) > w.within {
			w.set("file", s.Key(u), keyFile)
			w.set("file", s.Certificate(u), there)
			return reply, nil
		}
		state = renewed
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return reply, err
	}
	reply, err = w.ask(ctx, u, admin.UserRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))})
	if err != nil {
		return reply, err
	}
	if err := w.write(s.Certificate(u), []byte(reply.Chain)); err != nil {
		return reply, err
	}
	w.set("file", s.Key(u), keyFile)
	w.set("file", s.Certificate(u), state)
	return reply, nil
}

// key is the one in a file, which is made if it is missing.
func (w *work) key(name string) (*ecdsa.PrivateKey, string, error) {
	data, err := os.ReadFile(w.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		key, err := identity.NewKey()
		if err != nil {
			return nil, "", fmt.Errorf("making a key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, "", fmt.Errorf("making a key: %w", err)
		}
		return key, made, w.write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	} else if err != nil {
		return nil, "", err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, "", fmt.Errorf("reading the key %q: it is not a PEM file", w.path(name))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("reading the key %q: %w", w.path(name), err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, "", fmt.Errorf("reading the key %q: it was not made here", w.path(name))
	}
	return key, there, nil
}

// ends says when the certificate in a file ends; false if there is none, if it is not for the
// key, or if the fleet does not know it as the user's.
func ends(path string, key *ecdsa.PrivateKey, u identity.User) (time.Time, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, false
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return time.Time{}, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		return time.Time{}, false
	}
	hash := identity.KeyHash(cert)
	return cert.NotAfter, slices.ContainsFunc(u.Certificates, func(c identity.UserCertificate) bool { return c.SHA256 == hash })
}
