//go:build !lean

package moving

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/definitions"
)

// importerLife is how long the credentials of the user live that declares.
const importerLife = time.Hour

// newPassword makes a password: 26 letters and digits, 128 bits.
func newPassword() string { return rand.Text() }

// addLine adds a line to a file that only its owner may read.
func addLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing passwords: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = command.Fail(command.ExitFailed, "chmod 600 "+path, "others may read %q", path)
	}
	if err == nil {
		_, err = f.WriteString(line + "\n")
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing passwords: %w", err)
	}
	return nil
}

// newCSR makes a key, in PEM, and asks for a certificate for it.
func newCSR() (key []byte, csr string, err error) {
	made, err := identity.NewKey()
	if err != nil {
		return nil, "", fmt.Errorf("making a key: %w", err)
	}
	request, err := identity.NewCSR(made)
	if err != nil {
		return nil, "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		return nil, "", fmt.Errorf("making a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request.Raw})), nil
}

// A wire is a connection to one account, as a user that is there for this only.
type wire struct {
	user string
	conn *amqp091.Connection
	ch   *amqp091.Channel
	stop func() bool
}

// wire connects to an account.
func (im *importer) wire(ctx context.Context, account string) (*wire, error) {
	if w := im.wires[account]; w != nil {
		return w, nil
	}
	try, cancel := im.patient(ctx)
	defer cancel()
	key, csr, err := newCSR()
	if err != nil {
		return nil, err
	}
	w := &wire{user: account + "/amqp-import-" + strings.ToLower(rand.Text()[:8]), stop: func() bool { return true }}
	im.wires[account] = w // so that the user goes
	reply, err := im.api.AddUser(try, admin.UserRequest{Name: w.user, Role: identity.RoleClient, Expires: importerLife, CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("making a user to declare in account %q: %w", account, err)
	}
	pair, err := tls.X509KeyPair([]byte(reply.Chain), key)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(im.to)
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool(), ServerName: host}
	config.RootCAs.AppendCertsFromPEM([]byte(reply.CA))
	w.conn, err = amqp091.DialConfig("amqps://"+im.to+"/", amqp091.Config{
		TLSClientConfig: config, SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}},
		Dial: func(network, addr string) (net.Conn, error) {
			nc, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(try, network, addr)
			if err == nil {
				err = nc.SetDeadline(time.Now().Add(im.a.Fleet.Timeout)) // the library ends it when the connection is open
			}
			return nc, err
		},
	})
	if err != nil {
		return nil, command.Fail(command.ExitUnavailable, "--amqp HOST:PORT of a node's listener for AMQP: fleetbus serve --listeners-amqp-addr :5671", "reaching AMQP of account %q at %s: %v", account, im.to, err)
	}
	w.stop = context.AfterFunc(ctx, func() { _ = w.conn.CloseDeadline(time.Now().Add(time.Second)) })
	return w, nil
}

// close ends the connections, and removes their users.
func (im *importer) close(ctx context.Context) error {
	ctx, cancel := im.patient(ctx)
	defer cancel()
	var errs []error
	for _, w := range im.wires {
		w.stop()
		if w.conn != nil {
			_ = w.conn.CloseDeadline(time.Now().Add(5 * time.Second)) // what was declared has been answered
		}
		if _, err := im.api.RemoveUser(ctx, w.user); err != nil && !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
			errs = append(errs, fmt.Errorf("removing user %q, which declared: %w", w.user, err))
		}
	}
	return errors.Join(errs...)
}

// try does something on a channel, which a refusal ends.
func (w *wire) try(do func(*amqp091.Channel) error) (err error) {
	if w.ch == nil || w.ch.IsClosed() {
		if w.ch, err = w.conn.Channel(); err != nil {
			return err
		}
	}
	return do(w.ch)
}

func refusedWith(err error, code int) bool {
	var refused *amqp091.Error
	return errors.As(err, &refused) && refused.Code == code
}

// declare declares what a step says, and writes into its line what became of it. fresh has
// what was made before.
func (w *wire) declare(s *definitions.Step, fresh map[string]bool) error {
	if s.Binding != nil {
		return w.bind(s, fresh)
	}
	var ask, do func(*amqp091.Channel) error
	if q := s.Queue; q != nil {
		ask = func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive(q.Name, q.Durable, q.AutoDelete, false, false, nil)
			return err
		}
		do = func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare(q.Name, q.Durable, q.AutoDelete, false, false, table(q.Arguments))
			return err
		}
	} else {
		e := s.Exchange
		ask = func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclarePassive(e.Name, e.Type, e.Durable, e.AutoDelete, e.Internal, false, nil)
		}
		do = func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare(e.Name, e.Type, e.Durable, e.AutoDelete, e.Internal, false, table(e.Arguments))
		}
	}
	err := w.try(ask)
	there := err == nil
	if err != nil && !refusedWith(err, amqp091.NotFound) {
		return err
	}
	err = w.try(do)
	switch {
	case there && refusedWith(err, amqp091.PreconditionFailed):
		return fmt.Errorf("%w: %w", errOther, err)
	case err != nil:
		return err
	case there:
		s.Line.Status = definitions.There
	default:
		fresh[s.Line.Kind+" "+s.Line.Account+" "+s.Line.Name] = true
	}
	return nil
}

func (w *wire) bind(s *definitions.Step, fresh map[string]bool) error {
	b := s.Binding
	kind := "queue"
	err := w.try(func(ch *amqp091.Channel) error {
		if b.ToExchange {
			kind = "exchange"
			return ch.ExchangeBind(b.Destination, b.Key, b.Source, false, table(b.Arguments))
		}
		return ch.QueueBind(b.Destination, b.Key, b.Source, false, table(b.Arguments))
	})
	if err == nil && !fresh["exchange "+s.Line.Account+" "+b.Source] && !fresh[kind+" "+s.Line.Account+" "+b.Destination] {
		s.Line.Status, s.Line.Text = definitions.There, "it is bound; AMQP does not tell since when"
	}
	return err
}

// table is arguments as the client has them.
func table(arguments map[string]any) amqp091.Table {
	out := amqp091.Table{}
	for name, v := range arguments {
		out[name] = argument(v)
	}
	return out
}

func argument(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return table(v)
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = argument(inner)
		}
		return out
	}
	return v
}
