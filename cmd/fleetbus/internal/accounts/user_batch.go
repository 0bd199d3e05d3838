package accounts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

// batchAtOnce is how many users are asked for at once: as many as a node works on.
const batchAtOnce = 32

// batchFlags are the flags of user batch.
type batchFlags struct {
	role, names, dir string
	expires          command.Life
	certificates     bool
	g                command.Guard
}

func newUserBatch(a *command.App) *cobra.Command {
	f := batchFlags{}
	cmd := &cobra.Command{
		Use: "batch ACCOUNT", Args: command.Takes("ACCOUNT"), Annotations: command.Writes(),
		Short: "Make many users, with a credentials file each",
		Long: `Make a user of each name in a file, one a line, and write DIR/NAME.creds for each,
and the authority to DIR/ca.pem. Keys are made on this machine and stay here. A
user whose file is there already is left alone, so that a batch that was cut off
goes on where it was.`,
		Example: `  seq -f 'press-%g' 5000 > names.txt
  fleetbus user batch acme --names names.txt --role machine --dir creds
  fleetbus user batch acme --names names.txt --role machine --dir creds --certificates`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, a, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.role, "role", "", "role of new users (default client)")
	flags.StringVar(&f.names, "names", "", "`file` of names, one a line, - for stdin")
	flags.StringVar(&f.dir, "dir", "", "`directory` for the files; it is made if it is missing")
	flags.Var(&f.expires, "expires", "life of the credentials, such as 24h or 30d, or never (default: the role's)")
	flags.BoolVar(&f.certificates, "certificates", false, "write a client certificate of each too, DIR/NAME.crt and its key DIR/NAME.key")
	f.g.Drying(cmd)
	return a.Output(cmd)
}

// A batch is what became of many users.
type batch struct {
	Account string `json:"account"`
	Made    int    `json:"made"`
	There   int    `json:"there"`
	Failed  int    `json:"failed"`
	// Errors are the first of them.
	Errors []string      `json:"errors"`
	Took   time.Duration `json:"took_ns"`
}

// mostErrors is how many are told of.
const mostErrors = 10

func (f *batchFlags) run(cmd *cobra.Command, a *command.App, account string) error {
	what := fmt.Sprintf("making users of account %q", account)
	if f.names == "" || f.dir == "" {
		return command.Fail(command.ExitUsage, "fleetbus user batch --help", "%s: --names and --dir are needed", what)
	}
	names, err := f.read(a, account)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	out := batch{Account: account, Errors: []string{}}
	var missing []string
	for _, name := range names {
		if _, err := os.Lstat(f.path(name)); err == nil {
			out.There++
		} else {
			missing = append(missing, name)
		}
	}
	if f.g.DryRun {
		return a.ShowPlan("make %s of account %s in %s; %d are there", human.Count(len(missing), "user"), account, f.dir, out.There)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := f.makeAll(cmd.Context(), a, what, missing, &out); err != nil {
		return err
	}
	err = a.Show(command.Report{Value: out, Text: func(p *command.Page) {
		p.Line("%s made in %s, %d were there, %d failed", human.Count(out.Made, "user"), human.Duration(out.Took), out.There, out.Failed)
	}})
	if err == nil && out.Failed > 0 {
		return command.Fail(command.ExitPartial, "run it again: it makes what is missing", "%s: %d of %d were not made: %s", what, out.Failed, len(names), strings.Join(out.Errors, "; "))
	}
	return err
}

func (f *batchFlags) path(name string) string { return filepath.Join(f.dir, name+".creds") }

// read reads the names, each once.
func (f *batchFlags) read(a *command.App, account string) (names []string, err error) {
	in := a.Stdin
	if f.names != "-" {
		file, err := os.Open(f.names)
		if err != nil {
			return nil, fmt.Errorf("reading the names: %w", err)
		}
		defer file.Close()
		in = file
	}
	seen := map[string]bool{}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		name := strings.TrimSpace(lines.Text())
		if name == "" || seen[name] {
			continue
		}
		if _, _, err := identity.SplitName(account + "/" + name); err != nil {
			return nil, command.Fail(command.ExitUsage, "write one name a line, without the account", "reading the names: line %d: %v", n, err)
		}
		seen[name] = true
		names = append(names, name)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the names: %w", err)
	}
	if len(names) == 0 {
		return nil, command.Fail(command.ExitUsage, "write one name a line", "reading the names: %q has none", f.names)
	}
	return names, nil
}

// makeAll makes users, some at once.
func (f *batchFlags) makeAll(ctx context.Context, a *command.App, what string, names []string, out *batch) error {
	began := time.Now()
	defer func() { out.Took = time.Since(began) }()
	if len(names) == 0 {
		return nil
	}
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
	api := admin.New(nc)
	// The first alone: what is wrong with it is wrong with all.
	if err := f.makeOne(ctx, a, api, out.Account, names[0]); errors.Is(err, nats.ErrNoResponders) {
		return command.Fail(command.ExitUnavailable, "use the credentials of an administrator with --creds", "%s: nobody answers requests of administrators there", what)
	} else if err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	out.Made++
	next := make(chan string)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range batchAtOnce {
		all.Go(func() {
			for name := range next {
				err := f.makeOne(ctx, a, api, out.Account, name)
				mu.Lock()
				switch {
				case err == nil:
					out.Made++
				case len(out.Errors) < mostErrors:
					out.Errors = append(out.Errors, name+": "+err.Error())
					fallthrough
				default:
					out.Failed++
				}
				mu.Unlock()
			}
		})
	}
	for _, name := range names[1:] {
		next <- name
	}
	close(next)
	all.Wait()
	return nil
}

// makeOne makes a user and writes its files, that of the credentials last.
func (f *batchFlags) makeOne(ctx context.Context, a *command.App, api *admin.Client, account, name string) error {
	ctx, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	request := admin.UserRequest{Name: account + "/" + name, Role: f.role, Expires: time.Duration(f.expires)}
	var keys userKeys
	if err := keys.makeKey(&request); err != nil {
		return err
	}
	if f.certificates {
		if err := keys.makeCSR(&request); err != nil {
			return err
		}
	}
	reply, err := api.AddUser(ctx, request)
	if err != nil {
		return err
	}
	creds, err := identity.CreateCreds(reply.JWT, keys.seed)
	if err != nil {
		return err
	}
	files := []command.SecretFile{{Path: filepath.Join(f.dir, "ca.pem"), Data: []byte(reply.CA), Mode: 0o644}}
	if f.certificates {
		files = append(files, keys.certificateFiles(filepath.Join(f.dir, name), reply)[:2]...) // the authority is there
	}
	for _, file := range append(files, command.SecretFile{Path: f.path(name), Data: creds, Mode: 0o600}) {
		if err := file.Write(true); err != nil {
			return err
		}
	}
	return nil
}
