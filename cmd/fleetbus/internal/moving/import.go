//go:build !lean

package moving

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/definitions"
	"github.com/fleetbus/fleetbus/internal/human"
)

// importFlags are the flags of amqp import.
type importFlags struct {
	accounts         map[string]string
	narrow, policies bool
	amqp             string
	passwords, certs string
	g                command.Guard
}

func newImport(a *command.App) *cobra.Command {
	f := importFlags{}
	cmd := &cobra.Command{
		Use: "import FILE", Args: command.Takes("FILE"), Annotations: command.Writes(),
		Short: "Take over what RabbitMQ exports: users, rights, exchanges, queues, bindings",
		Long: `Take over the definitions that RabbitMQ exports, from a file or, as -, from stdin:
virtual hosts become accounts, users and their permissions users and roles, and
exchanges, queues and bindings are declared by AMQP. Each thing has a line that
says what became of it. What is there already stays as it is, so that a second
run changes nothing.

A right is never wider than it was: what cannot be said here is left out, or with
--narrow taken as far as it can. Passwords cannot be taken, because RabbitMQ has
only hashes of them: each user is given one, which is written to a file, or a
certificate with --certs.`,
		Example: `  rabbitmqctl export_definitions definitions.json
  fleetbus amqp import definitions.json --dry-run
  fleetbus amqp import definitions.json --account /=nova --amqp bus.example.net:5671`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, a, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringToStringVar(&f.accounts, "account", nil, "`VHOST=NAME`: name of the account for a virtual host (default: that of the virtual host; for / it is default)")
	flags.BoolVar(&f.narrow, "narrow", false, "take rights that cannot be said as narrower ones, in place of none")
	flags.BoolVar(&f.policies, "policies", true, "take policies, as arguments of the queues and exchanges that they match")
	flags.StringVar(&f.amqp, "amqp", "", "`host:port` of a node's listener for AMQP (default: port 5671 of the node that is asked)")
	flags.StringVar(&f.passwords, "passwords", "rabbitmq-users", "`file` that passwords of new users are added to, for its owner alone")
	flags.StringVar(&f.certs, "certs", "", "give each new user a certificate in place of a password, in this `directory`")
	f.g.Drying(cmd)
	return a.Output(cmd)
}

func (f *importFlags) run(cmd *cobra.Command, a *command.App, file string) error {
	what := fmt.Sprintf("importing %q", file)
	d, err := f.read(a, file)
	if err != nil {
		return command.Fail(command.ExitUsage, "rabbitmqctl export_definitions FILE", "%s: %v", what, err)
	}
	steps := d.Plan(definitions.Options{Accounts: f.accounts, Narrow: f.narrow, NoPolicies: !f.policies})
	if !f.g.DryRun {
		if err := f.carryOut(cmd.Context(), a, what, steps); err != nil {
			return err
		}
	}
	return f.show(a, what, steps)
}

func (f *importFlags) read(a *command.App, file string) (*definitions.Definitions, error) {
	if file == "-" {
		return definitions.Parse(a.Stdin)
	}
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return definitions.Parse(io.Reader(in))
}

// show prints the lines, and fails if something is not as it was to be.
func (f *importFlags) show(a *command.App, what string, steps []*definitions.Step) error {
	lines := make([]definitions.Line, 0, len(steps))
	counts, partly := map[definitions.Status]int{}, 0
	for _, s := range steps {
		lines = append(lines, s.Line)
		counts[s.Line.Status]++
		bears := slices.Contains([]string{"vhost", "permission", "exchange", "queue", "binding"}, s.Line.Kind)
		if s.Line.Status == definitions.Conflict || s.Line.Status == definitions.Failed || s.Line.Status == definitions.NotTaken && bears {
			partly++
		}
	}
	r := command.List(lines,
		command.Col("KIND", func(l definitions.Line) string { return l.Kind }),
		command.Col("VHOST", func(l definitions.Line) string { return l.VHost }),
		command.Col("NAME", func(l definitions.Line) string { return l.Name }),
		command.Col("STATUS", func(l definitions.Line) string { return strings.ReplaceAll(string(l.Status), "_", " ") }),
		command.Col("REMARK", func(l definitions.Line) string { return l.Text }))
	if err := a.Show(r); err != nil {
		return err
	}
	would := ""
	if f.g.DryRun {
		would = "would be "
	}
	a.Hint("%s%d taken, %d changed, %d there already, %d not taken, %d in conflict, %d failed", would, counts[definitions.Taken], counts[definitions.Changed],
		counts[definitions.There], counts[definitions.NotTaken], counts[definitions.Conflict], counts[definitions.Failed])
	if partly > 0 {
		return command.Fail(command.ExitPartial, "look at what is not taken, in conflict or failed; a run once more takes what is missing", "%s: %s not as there", what, human.Count(partly, "thing"))
	}
	return nil
}

// An importer carries a plan out.
type importer struct {
	*importFlags
	a   *command.App
	api *admin.Client
	to  string // host:port for AMQP

	accounts map[string]bool            // that there are
	roles    map[string]identity.Role   // that there are
	users    map[string][]identity.User // by account
	wires    map[string]*wire           // by account
	fresh    map[string]bool            // exchanges and queues that this run made
}

func (f *importFlags) carryOut(ctx context.Context, a *command.App, what string, steps []*definitions.Step) (err error) {
	defer a.Progress(what)()
	t, err := a.Target(true)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	nc, err := a.Connect(ctx, t)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer nc.Close()
	im := &importer{importFlags: f, a: a, api: admin.New(nc), to: f.amqp, accounts: map[string]bool{}, roles: map[string]identity.Role{},
		users: map[string][]identity.User{}, wires: map[string]*wire{}, fresh: map[string]bool{}}
	if im.to == "" {
		u, err := url.Parse(cmp.Or(nc.ConnectedUrl(), t.Servers[0]))
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		im.to = net.JoinHostPort(u.Hostname(), "5671")
	}
	if _, _, err := net.SplitHostPort(im.to); err != nil {
		return command.Fail(command.ExitUsage, "write it like bus.example.net:5671", "%s: --amqp: %v", what, err)
	}
	defer func() { err = errors.Join(err, im.close(context.WithoutCancel(ctx))) }()
	if err := im.look(ctx); errors.Is(err, nats.ErrNoResponders) {
		return command.Fail(command.ExitUnavailable, "use the credentials of an administrator with --creds", "%s: nobody answers requests of administrators there", what)
	} else if err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	for _, s := range steps {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := im.step(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// patient is ctx for one request.
func (im *importer) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, im.a.Fleet.Timeout)
}

// look asks what there is.
func (im *importer) look(ctx context.Context) error {
	ctx, cancel := im.patient(ctx)
	defer cancel()
	accounts, err := im.api.Accounts(ctx)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		im.accounts[a.Name] = true
	}
	roles, err := im.api.Roles(ctx)
	if err != nil {
		return err
	}
	for _, r := range roles {
		im.roles[r.Name] = r
	}
	return nil
}

// step carries out one step. An error is one that all others would have as well.
func (im *importer) step(ctx context.Context, s *definitions.Step) error {
	var err error
	switch {
	case s.Account != nil:
		err = im.makeAccount(ctx, s)
	case s.Role != nil:
		err = im.makeRole(ctx, s)
	case s.User != nil:
		err = im.makeUser(ctx, s)
	case s.Exchange != nil, s.Queue != nil, s.Binding != nil:
		w, failed := im.wire(ctx, s.Line.Account)
		if failed != nil {
			return failed
		}
		err = w.declare(s, im.fresh)
	}
	if err == nil {
		return nil
	}
	s.Line.Status, s.Line.Text = definitions.Failed, err.Error()
	var refused *admin.Error
	switch {
	case errors.As(err, &refused) && refused.Code == admin.Conflict, errors.Is(err, errOther):
		s.Line.Status = definitions.Conflict
	case errors.As(err, &refused) && refused.Code == admin.Denied, errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		return err
	}
	return nil
}

// errOther says that there is another thing of that name.
var errOther = errors.New("there is another")

func (im *importer) makeAccount(ctx context.Context, s *definitions.Step) error {
	if im.accounts[s.Account.Name] {
		s.Line.Status = definitions.There
		return nil
	}
	ctx, cancel := im.patient(ctx)
	defer cancel()
	_, err := im.api.AddAccount(ctx, admin.AccountRequest{Name: s.Account.Name, Limits: identity.Limits{Connections: s.Account.Connections}})
	im.accounts[s.Account.Name] = err == nil
	return err
}

func (im *importer) makeRole(ctx context.Context, s *definitions.Step) error {
	if before, ok := im.roles[s.Role.Name]; ok {
		if !reflect.DeepEqual(before.Permissions, s.Role.Permissions) || before.Limits != s.Role.Limits {
			return fmt.Errorf("%w role %s, which allows something else: fleetbus role info %s", errOther, before.Name, before.Name)
		}
		s.Line.Status = definitions.There
		return nil
	}
	ctx, cancel := im.patient(ctx)
	defer cancel()
	_, err := im.api.AddRole(ctx, *s.Role)
	if err == nil {
		im.roles[s.Role.Name] = *s.Role
	}
	return err
}

func (im *importer) makeUser(ctx context.Context, s *definitions.Step) error {
	account := s.User.Account
	ctx, cancel := im.patient(ctx)
	defer cancel()
	if _, asked := im.users[account]; !asked {
		users, err := im.api.Users(ctx, account)
		if err != nil {
			return err
		}
		im.users[account] = users
	}
	i := slices.IndexFunc(im.users[account], func(u identity.User) bool { return u.Name == s.User.Name })
	switch {
	case i >= 0 && im.users[account][i].Role != s.User.Role:
		return fmt.Errorf("%w user %s/%s, with role %s", errOther, account, s.User.Name, im.users[account][i].Role)
	case i >= 0:
		s.Line.Status, s.Line.Text = definitions.There, ""
		return nil
	}
	r := admin.UserRequest{Name: account + "/" + s.User.Name, Role: s.User.Role}
	if im.certs != "" {
		return im.withCertificate(ctx, s, r)
	}
	password := newPassword()
	var err error
	if r.Password, err = identity.HashPassword(password); err != nil {
		return err
	}
	// A password that nobody knows is of no use, one that nobody has does no harm.
	if err := addLine(im.passwords, r.Name+" "+password); err != nil {
		return err
	}
	if _, err := im.api.AddUser(ctx, r); err != nil {
		return err
	}
	s.Line.Text = fmt.Sprintf("user %s, with a new password, in %s: the one before is known only by a hash", r.Name, im.passwords)
	return nil
}

func (im *importer) withCertificate(ctx context.Context, s *definitions.Step, r admin.UserRequest) error {
	if err := os.MkdirAll(im.certs, 0o700); err != nil {
		return err
	}
	prefix := filepath.Join(im.certs, s.User.Account+"-"+s.User.Name)
	key, csr, err := newCSR()
	if err != nil {
		return err
	}
	r.CSR = csr
	if err := (command.SecretFile{Path: prefix + ".key", Data: key, Mode: 0o600}).Write(false); err != nil {
		return err
	}
	reply, err := im.api.AddUser(ctx, r)
	if err != nil {
		return errors.Join(err, os.Remove(prefix+".key"))
	}
	for path, text := range map[string]string{prefix + ".crt": reply.Chain, filepath.Join(im.certs, "ca.pem"): reply.CA} {
		if err := (command.SecretFile{Path: path, Data: []byte(text), Mode: 0o644}).Write(true); err != nil {
			return err
		}
	}
	s.Line.Text = fmt.Sprintf("user %s, with certificate %s.crt in place of its password", r.Name, prefix)
	return nil
}
