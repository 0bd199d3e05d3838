package accounts

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

// formatCreds is the format of --output that writes a NATS credentials file.
const formatCreds = "creds"

// minPassword is the length of the shortest password that is accepted.
const minPassword = 12

// userFlags are the flags of user add.
type userFlags struct {
	role                       string
	expires                    command.Life
	out, certOut, caOut        string
	certRegister, passwordFile string
	scram                      bool
	bearerOut                  string
	g                          command.Guard
}

func newUserAdd(a *command.App) *cobra.Command {
	var f userFlags
	cmd := &cobra.Command{
		Use: "add ACCOUNT/NAME", Aliases: []string{"create"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
		Short: "Make a user, or give one another credential",
		Long: `Make a user, or give one that exists another credential. Keys are made on this
machine and stay here; only their public halves are sent. What a user has already
stays as it is.`,
		Example: `  fleetbus user add acme/alice --out alice.creds --ca-out ca.pem
  fleetbus user add acme/alice -o creds > alice.creds
  fleetbus user add acme/press --role machine --cert press --expires 30d
  fleetbus user add acme/bob --password-file bob.txt
  fleetbus user add acme/sensor --bearer-out sensor.token --expires 30d`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, a, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.role, "role", "", "role of a new user (default client)")
	flags.Var(&f.expires, "expires", "life of the credentials, such as 24h or 30d, or never (default: the role's)")
	flags.StringVar(&f.out, "out", "", "write a NATS credentials `file`, for its owner alone")
	flags.StringVar(&f.certOut, "cert", "", "write a client certificate to `PREFIX`.crt, its key to PREFIX.key, the authority to PREFIX-ca.pem")
	flags.StringVar(&f.caOut, "ca-out", "", "write the authority that servers are verified with to a `file`")
	flags.StringVar(&f.certRegister, "cert-register", "", "PEM `file` of a certificate of your own authority that is to stand for the user")
	flags.BoolVar(&f.scram, "scram", false, "have AMQP clients prove the password by SCRAM-SHA-256 if they like; its verifier is weaker than the hash if it is stolen")
	flags.StringVar(&f.passwordFile, "password-file", "", "`file` with a password, - for stdin; only its hash is sent")
	flags.StringVar(&f.bearerOut, "bearer-out", "", "write a bearer token to a `file`, for clients of MQTT and HTTPS; it takes the place of the one before")
	f.g.Drying(cmd)
	flags.BoolVarP(&f.g.Yes, "yes", "y", false, "write over files that exist")
	return a.Output(cmd, formatCreds)
}

func (f *userFlags) run(cmd *cobra.Command, a *command.App, name string) error {
	what := fmt.Sprintf("adding user %q", name)
	if _, _, err := identity.SplitName(name); err != nil {
		return command.Fail(command.ExitUsage, "write it like acme/alice", "%s: %v", what, err)
	}
	if err := f.checkFiles(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	request := admin.UserRequest{Name: name, Role: f.role, Expires: time.Duration(f.expires)}
	var keys userKeys
	if f.out != "" || a.Format == formatCreds {
		if err := keys.makeKey(&request); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if f.certOut != "" {
		if err := keys.makeCSR(&request); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if f.bearerOut != "" {
		if err := keys.makeBearer(&request); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := f.read(a, &request); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if f.g.DryRun {
		return f.plan(cmd, a, what, name)
	}
	reply, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.UserReply, error) {
		return c.AddUser(ctx, request)
	})
	if err != nil {
		return err
	}
	if err := f.write(a, keys, reply); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	f.advise(a, name, reply)
	return command.Missing(reply.Spread)
}

// checkFiles refuses files that exist before the fleet is asked for anything.
func (f *userFlags) checkFiles() error {
	var errs []error
	for _, path := range f.files() {
		if _, err := os.Lstat(path); err == nil && !f.g.Yes {
			errs = append(errs, command.Fail(command.ExitConflict, "choose another name, or add --yes to write over it", "file %q exists", path))
		}
	}
	return errors.Join(errs...)
}

// files are those that will be written.
func (f *userFlags) files() (paths []string) {
	if f.certOut != "" {
		paths = append(paths, f.certOut+".key", f.certOut+".crt", f.certOut+"-ca.pem")
	}
	for _, path := range []string{f.out, f.bearerOut, f.caOut} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// read puts the certificate and the password of the flags' files in the request.
func (f *userFlags) read(a *command.App, request *admin.UserRequest) error {
	if f.certRegister != "" {
		data, err := os.ReadFile(f.certRegister)
		if err != nil {
			return fmt.Errorf("reading the certificate: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return command.Fail(command.ExitUsage, "name a PEM file", "reading the certificate: %q does not begin with one", f.certRegister)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("reading the certificate %q: %w", f.certRegister, err)
		}
		// Only the certificate: a key that may follow it stays here.
		request.Certificate = string(pem.EncodeToMemory(block))
	}
	if f.passwordFile == "" {
		if f.scram {
			return command.Fail(command.ExitUsage, "add --password-file", "--scram is about a password, and there is none")
		}
		return nil
	}
	password, err := readPassword(a, f.passwordFile)
	if err != nil {
		return err
	}
	hash := identity.HashPassword
	if f.scram {
		hash = identity.HashPasswordToo
	}
	if request.Password, err = hash(password); err != nil {
		return command.Fail(command.ExitUsage, "choose another password", "%v", err)
	}
	return nil
}

// readPassword reads a password from a file or, if it is called "-", from stdin.
// An end of line after it is not part of it.
func readPassword(a *command.App, path string) (string, error) {
	data, err := readSecret(a, path)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if utf8.RuneCountInString(password) < minPassword {
		return "", command.Fail(command.ExitUsage, "choose a longer one", "reading the password: it has less than %s", human.Count(minPassword, "character"))
	}
	return password, nil
}

// readSecret reads a small file or, if it is called "-", stdin.
func readSecret(a *command.App, path string) ([]byte, error) {
	in := a.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, 64<<10))
}

// plan says what would happen.
func (f *userFlags) plan(cmd *cobra.Command, a *command.App, what, name string) error {
	if a.Format == formatCreds {
		a.Format = command.FormatTable
	}
	_, err := userNamed(a, cmd, what, name)
	switch {
	case isNotFound(err):
		return a.ShowPlan("make user %s%s", name, f.writing())
	case err != nil:
		return err
	}
	return a.ShowPlan("leave user %s and add what was asked for%s", name, f.writing())
}

func (f *userFlags) writing() string {
	if files := f.files(); len(files) > 0 {
		return ", and write " + strings.Join(files, ", ")
	}
	return ""
}

// write puts the credentials where they were asked for, and the rest on stdout.
func (f *userFlags) write(a *command.App, keys userKeys, reply admin.UserReply) error {
	files := keys.certificateFiles(f.certOut, reply)
	var creds []byte
	if keys.seed != nil {
		var err error
		if creds, err = identity.CreateCreds(reply.JWT, keys.seed); err != nil {
			return err
		}
	}
	if f.out != "" {
		files = append(files, command.SecretFile{Path: f.out, Data: creds, Mode: 0o600})
	}
	if f.bearerOut != "" {
		files = append(files, command.SecretFile{Path: f.bearerOut, Data: []byte(keys.bearer + "\n"), Mode: 0o600})
	}
	if f.caOut != "" {
		files = append(files, command.SecretFile{Path: f.caOut, Data: []byte(reply.CA), Mode: 0o644})
	}
	for _, file := range files {
		if err := file.Write(f.g.Yes); err != nil {
			return err
		}
	}
	if a.Format == formatCreds {
		if _, err := a.Stdout.Write(creds); err != nil {
			return fmt.Errorf("writing the credentials: %w", err)
		}
		return nil
	}
	reply.User.Password = ""
	live := command.OnNodes(reply.Spread)
	if len(reply.Nodes)+len(reply.Missing) == 0 {
		live = "every node" // nothing had to be spread
	}
	return a.Show(command.Report{Value: reply, Text: func(p *command.Page) {
		command.Fields(p, []command.Field{{"user", reply.User.String()}, {"role", reply.User.Role}, {"state", userState(reply.User)},
			{"live on", live}, {"credential expires", cmp.Or(human.Time(reply.Expires), "never")}})
	}})
}

// advise says on stderr what to do with the credentials.
func (f *userFlags) advise(a *command.App, name string, reply admin.UserReply) {
	for _, path := range f.files() {
		a.Hint("wrote %s", path)
	}
	if len(reply.Servers) == 0 {
		return
	}
	short := name[strings.Index(name, "/")+1:]
	a.Hint("servers: %s", strings.Join(reply.Servers, ", "))
	ca := cmp.Or(f.caOut, "ca.pem")
	if f.certOut != "" {
		ca = f.certOut + "-ca.pem"
		a.Hint("try: nats --server tls://%s --tlscert %s.crt --tlskey %s.key --tlsca %s pub greeting hello", reply.Servers[0], f.certOut, f.certOut, ca)
	}
	switch {
	case f.out != "" || a.Format == formatCreds:
		a.Hint("try: nats --server tls://%s --creds %s --tlsca %s pub greeting hello", reply.Servers[0], cmp.Or(f.out, short+".creds"), ca)
	case f.certOut == "" && f.certRegister == "" && f.passwordFile == "" && f.bearerOut == "":
		a.Hint("a credentials file: fleetbus user add %s --out %s.creds --ca-out ca.pem", name, short)
	}
	if ca == "ca.pem" && f.caOut == "" {
		a.Hint("ca.pem is what --ca-out FILE writes")
	}
}
