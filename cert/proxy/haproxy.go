package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (d *directory) haproxy() {
	d.Layout = Layout{PEM: pemLayout}
	if d.Config == "" {
		d.Config = "/etc/haproxy/haproxy.cfg"
	}
	d.test = []string{d.Binary, "-c", "-f", d.Config}
	d.load, d.loads, d.advise = d.haproxyLoad, d.haproxyLoads, d.haproxySnippet
}

func (d *directory) haproxySnippet([]certificate) string {
	text := fmt.Sprintf("# In the frontend, once for all certificates:\nbind :443 ssl crt %s\n", d.tree.path(current))
	if d.Socket == "" {
		text += "\n# In the global section, for changes without a reload:\nstats socket /run/haproxy/admin.sock mode 660 level admin\n"
	}
	return text
}

// canReload reports whether there is another way than the socket.
func (d *directory) canReload() bool {
	return d.Reload.Unit != "" || d.Reload.Socket != "" || d.Reload.PIDFile != "" || len(d.Reload.Command) > 0
}

// haproxyLoad changes what is in HAProxy's memory. The files are there already, so that
// a restart finds the same. What does not work that way is left to a reload.
func (d *directory) haproxyLoad(ctx context.Context, before, now []certificate) error {
	if d.Socket == "" && !d.canReload() {
		return errors.New("neither its admin socket nor a way to reload it is known")
	}
	if d.Socket == "" {
		return d.reload(ctx, before, now)
	}
	err := d.runtime().load(ctx, before, now)
	if err == nil || !d.canReload() || errors.Is(err, errUnread) && !d.mentioned() {
		return err
	}
	if again := d.reload(ctx, before, now); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

// errUnread is why HAProxy has none of the certificates.
var errUnread = errors.New("HAProxy does not read the directory")

// mentioned reports whether HAProxy would read the directory after a reload, as far as
// its configuration can be seen.
func (d *directory) mentioned() bool {
	file, err := os.Open(d.Config)
	if err != nil {
		return true
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxConfig))
	return err != nil || strings.Contains(string(text), d.tree.path(current))
}

func (d *directory) haproxyLoads(before, now []certificate) []Change {
	if d.Socket == "" {
		return d.reloads(before, now)
	}
	r, old, kept := d.runtime(), byID(before), byID(now)
	var plan []Change
	for _, id := range changed(before, now) {
		path := r.path(id)
		tell := func(commands ...string) {
			for _, c := range commands {
				plan = append(plan, Change{"tell", c})
			}
		}
		_, was := old[id]
		_, is := kept[id]
		switch {
		case is && was:
			tell("set ssl cert "+path, "commit ssl cert "+path)
		case is:
			tell("new ssl cert "+path, "set ssl cert "+path, "commit ssl cert "+path, "add ssl crt-list "+r.dir+" "+path)
		default:
			tell("del ssl crt-list "+r.dir+" "+path, "del ssl cert "+path)
		}
	}
	return plan
}

// reloadMaster asks the master process. From 2.7 on it answers how that went.
func (d *directory) reloadMaster(ctx context.Context) error {
	answer, err := ask(ctx, d.Reload.Socket, d.Timeout, "reload\n")
	if err == nil && strings.Contains(answer, "Success=0") {
		said := tail{}
		_, _ = said.Write([]byte(answer))
		err = fmt.Errorf("reload at %s: %s", d.Reload.Socket, said.lines(nil))
	}
	return err
}

// runtime is HAProxy's admin socket, for the certificates of one directory.
type runtime struct {
	socket, dir string
	timeout     time.Duration
	buffer      int // see room
}

func (d *directory) runtime() runtime {
	return runtime{socket: d.Socket, dir: d.tree.path(current), timeout: d.Timeout}
}

func (r runtime) path(id string) string { return r.dir + "/" + id + ".pem" }

// load has HAProxy serve what is now in the directory, and sets what was not before.
func (r runtime) load(ctx context.Context, before, now []certificate) error {
	var err error
	if r.buffer, err = r.room(ctx); err != nil {
		return err
	}
	if err := r.ready(ctx); err != nil {
		return err
	}
	has, err := r.certificates(ctx)
	if err != nil {
		return err
	}
	old := byID(before)
	for _, c := range now {
		path := r.path(c.id)
		if !slices.Contains(has, path) {
			err = r.add(ctx, path, c)
		} else if b, ok := old[c.id]; !ok || !b.equal(c) {
			err = r.set(ctx, path, c)
		}
		if err != nil {
			return err
		}
	}
	for _, path := range has {
		gone := !slices.ContainsFunc(now, func(c certificate) bool { return r.path(c.id) == path })
		if filepath.Dir(path) != r.dir || !gone {
			continue
		}
		if err := r.remove(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// ready fails if HAProxy does not read the directory, which a reload may change. It ends
// the transaction that who was killed left behind: HAProxy has one only, and puts into it
// whatever is set of any other certificate.
func (r runtime) ready(ctx context.Context) error {
	lists, err := r.ask(ctx, "show ssl crt-list")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(lists), r.dir) {
		return fmt.Errorf("%w: its configuration needs a bind line with ssl crt %s", errUnread, r.dir)
	}
	all, err := r.ask(ctx, "show ssl cert")
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(all) {
		path, ok := strings.CutPrefix(field, "*")
		if !ok {
			continue
		}
		if filepath.Dir(path) != r.dir {
			return fmt.Errorf("somebody is changing the certificate %s at HAProxy's socket", path)
		}
		if err := r.tell(ctx, "abort ssl cert "+path, "aborted for certificate '"+path+"'"); err != nil {
			return err
		}
	}
	return nil
}

// certificates are the paths that HAProxy knows.
func (r runtime) certificates(ctx context.Context) ([]string, error) {
	answer, err := r.ask(ctx, "show ssl cert")
	return slices.DeleteFunc(strings.Fields(answer), func(s string) bool { return !filepath.IsAbs(s) }), err
}

func (r runtime) set(ctx context.Context, path string, c certificate) error {
	err := r.tell(ctx, "set ssl cert "+path+" <<\n"+string(c.pem()), "for certificate "+path+"!")
	if err == nil {
		err = r.tell(ctx, "commit ssl cert "+path, "Success!")
	}
	if err != nil {
		_, _ = r.ask(ctx, "abort ssl cert "+path) // there may be nothing to abort
		return err
	}
	// One that was interrupted before it was in the list is not used yet.
	if answer, err := r.ask(ctx, "show ssl cert "+path); err != nil || !strings.Contains(answer, "Status: Unused") {
		return err
	}
	return r.list(ctx, path)
}

func (r runtime) add(ctx context.Context, path string, c certificate) error {
	if err := r.tell(ctx, "new ssl cert "+path, "New empty certificate store"); err != nil {
		return err
	}
	return r.set(ctx, path, c)
}

func (r runtime) list(ctx context.Context, path string) error {
	return r.tell(ctx, "add ssl crt-list "+r.dir+" "+path, "Success!")
}

func (r runtime) remove(ctx context.Context, path string) error {
	if err := r.tell(ctx, "del ssl crt-list "+r.dir+" "+path, "deleted in crtlist"); err != nil {
		return err
	}
	return r.tell(ctx, "del ssl cert "+path, "deleted!")
}

// room asks how long HAProxy's buffer is, which a command has to leave a byte of.
func (r runtime) room(ctx context.Context) (int, error) {
	const usual = 16 << 10
	pools, err := r.ask(ctx, "show pools")
	if err != nil {
		return 0, err
	}
	_, pool, _ := strings.Cut(pools, "Pool buffer (")
	text, _, _ := strings.Cut(pool, " bytes)")
	if n, err := strconv.Atoi(text); err == nil {
		return n, nil
	}
	return usual, nil
}

// tell is for commands whose answer has to have a text in it. One that fills HAProxy's
// buffer is not sent: there may be no answer, and some releases crash.
func (r runtime) tell(ctx context.Context, command, success string) error {
	if size := len(command) + 1; size >= r.buffer {
		return fmt.Errorf("%s: the command has %d bytes, and HAProxy takes fewer than its buffer, of %d; fix: set tune.bufsize to more than %d in its global section, or give a way to reload it", verb(command), size, r.buffer, size)
	}
	answer, err := r.ask(ctx, command)
	if err == nil && !strings.Contains(answer, success) {
		said := tail{}
		_, _ = said.Write([]byte(answer))
		err = fmt.Errorf("%s: HAProxy answered %q", verb(command), said.lines(nil))
	}
	return err
}

// verb is a command without what it carries, which may be a key.
func verb(command string) string {
	command, _, _ = strings.Cut(command, "\n")
	return strings.TrimSuffix(command, " <<")
}

func (r runtime) ask(ctx context.Context, command string) (string, error) {
	return ask(ctx, r.socket, r.timeout, command+"\n")
}

// maxAnswer bounds what HAProxy may say: the paths of some ten thousand certificates.
const maxAnswer = 4 << 20

// ask sends one command to a socket and reads until it is closed.
func ask(ctx context.Context, socket string, timeout time.Duration, command string) (string, error) {
	answer, err := exchange(ctx, socket, timeout, command)
	if err == nil {
		return answer, nil
	}
	var slow net.Error
	if errors.As(err, &slow) && slow.Timeout() {
		err = fmt.Errorf("no answer within %v", timeout)
	}
	return "", fmt.Errorf("asking HAProxy at %s: %s: %w", socket, verb(command), cmp.Or(ctx.Err(), err))
}

func exchange(ctx context.Context, socket string, timeout time.Duration, command string) (string, error) {
	deadline := time.Now().Add(timeout)
	conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	return string(answer), err
}
