package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/config"
)

// ExitCode is the exit code of the process.
type ExitCode int

// The exit codes.
const (
	ExitOK          ExitCode = 0
	ExitFailed      ExitCode = 1
	ExitUsage       ExitCode = 2
	ExitNotFound    ExitCode = 3
	ExitUnavailable ExitCode = 4
	ExitDenied      ExitCode = 5
	ExitConflict    ExitCode = 6
	ExitPartial     ExitCode = 7
	ExitConfig      ExitCode = 78
	ExitInterrupted ExitCode = 130
)

// String is the code as a word, the same as admin.Code where it has one.
func (c ExitCode) String() string {
	switch c {
	case ExitOK:
		return "ok"
	case ExitUsage:
		return "usage"
	case ExitNotFound:
		return string(admin.NotFound)
	case ExitUnavailable:
		return string(admin.Unavailable)
	case ExitDenied:
		return string(admin.Denied)
	case ExitConflict:
		return string(admin.Conflict)
	case ExitPartial:
		return string(admin.Partial)
	case ExitConfig:
		return "configuration"
	case ExitInterrupted:
		return "interrupted"
	}
	return string(admin.Failed)
}

// A Failure is an error as its user meets it: what went wrong and why, one
// command or setting that mends it, and the exit code.
type Failure struct {
	Text, Fix string
	Code      ExitCode
}

// Error is the text.
func (f *Failure) Error() string { return f.Text }

// Fail makes a failure; fix may be empty.
func Fail(code ExitCode, fix, format string, args ...any) *Failure {
	return &Failure{Text: fmt.Sprintf(format, args...), Fix: fix, Code: code}
}

// complain writes f to stderr, in the format of the command's data.
func (a *App) complain(f Failure) {
	if f.Text == "" {
		return // it was said as data
	}
	if a.Format == FormatJSON || a.Format == FormatJSONL {
		type fault struct {
			Code string `json:"code"`
			Exit int    `json:"exit"`
			Text string `json:"text"`
			Fix  string `json:"fix,omitempty"`
		}
		line, err := json.Marshal(map[string]fault{"error": {f.Code.String(), int(f.Code), f.Text, f.Fix}})
		if err == nil {
			fmt.Fprintf(a.Stderr, "%s\n", line)
			return
		}
	}
	// A text of several lines, as a list of problems, is indented by its author.
	for i, line := range strings.Split(f.Text, "\n") {
		if i == 0 {
			line = "error: " + line
		}
		a.Hint("%s", line)
	}
	if f.Fix != "" {
		a.Hint("fix: %s", f.Fix)
	}
}

// misused explains an error that came up before the command began.
func misused(cmd *cobra.Command, err error) Failure {
	return Failure{Text: cmd.CommandPath() + ": " + err.Error(), Fix: cmd.CommandPath() + " --help", Code: ExitUsage}
}

// Explain turns an error of a command into what its user needs. The text says
// what was done, from the error's own wrapping, and why it failed.
func Explain(ctx context.Context, err error) Failure {
	var f *Failure
	if errors.As(err, &f) {
		return Failure{Text: err.Error(), Fix: f.Fix, Code: f.Code}
	}
	var refused *admin.Error
	if errors.As(err, &refused) {
		return Failure{Text: err.Error(), Fix: refused.Fix, Code: codeOf(refused.Code)}
	}
	var problems *config.ProblemList
	if errors.As(err, &problems) {
		return Failure{Text: err.Error(), Code: ExitConfig}
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return Failure{Text: "interrupted", Code: ExitInterrupted}
	}
	for _, diagnose := range []func(error) (cause error, f *Failure){diagnoseTLS, diagnoseEngine, diagnoseNetwork} {
		if cause, f := diagnose(err); f != nil {
			return Failure{Text: rephrase(err, cause, f.Text), Fix: f.Fix, Code: f.Code}
		}
	}
	return Failure{Text: err.Error(), Code: ExitFailed}
}

// rephrase puts why in the place of cause's own text, and of what follows it.
func rephrase(err, cause error, why string) string {
	text, old := err.Error(), cause.Error()
	// The engine's own spelling of an error differs from the library's.
	for i := 0; i+len(old) <= len(text); i++ {
		if strings.EqualFold(text[i:i+len(old)], old) {
			// What the library says before the cause tells the user nothing more.
			return strings.TrimSuffix(text[:i], nats.ErrTLS.Error()+": ") + why
		}
	}
	return text + ": " + why
}

func codeOf(c admin.Code) ExitCode {
	switch c {
	case admin.Invalid:
		return ExitUsage
	case admin.NotFound:
		return ExitNotFound
	case admin.Unavailable:
		return ExitUnavailable
	case admin.Denied:
		return ExitDenied
	case admin.Conflict:
		return ExitConflict
	case admin.Partial:
		return ExitPartial
	}
	return ExitFailed
}

// diagnoseTLS knows the ways in which the two sides do not trust each other.
//
//lint:ignore ST1008 the cause is a result, not a failure
func diagnoseTLS(err error) (cause error, f *Failure) {
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		host         x509.HostnameError
		invalid      x509.CertificateInvalidError
		op           *net.OpError
	)
	cause = err
	if errors.As(err, &verification) {
		cause = verification
	}
	switch {
	case errors.As(err, &authority):
		return cause, Fail(ExitUnavailable, "name the authority of the fleet with --ca FILE",
			"the server's certificate is of an authority that is not trusted here")
	case errors.As(err, &host):
		return cause, Fail(ExitUnavailable, "use a name that the certificate has: "+certificateNames(host.Certificate),
			"the server's certificate is not for %q", host.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return cause, Fail(ExitUnavailable, "fleetbus node renew, and check the clocks of both machines",
			"the server's certificate has expired, or is not valid yet")
	case errors.As(err, &invalid):
		return cause, Fail(ExitUnavailable, "fleetbus node renew", "the server's certificate is not valid: %v", invalid)
	case errors.As(err, &op) && op.Op == "remote error": // an alert, in crypto/tls' words
		return op, Fail(ExitDenied, "show a certificate that the fleet knows, with --client-cert and --client-key",
			"the server refused the TLS handshake: %v", strings.TrimPrefix(op.Err.Error(), "tls: "))
	case errors.Is(err, nats.ErrSecureConnWanted):
		return nats.ErrSecureConnWanted, Fail(ExitUnavailable, "check that --server names a listener with TLS", "the server there does not speak TLS")
	}
	return nil, nil
}

func certificateNames(cert *x509.Certificate) string {
	names := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return strings.Join(names, ", ")
}

// diagnoseEngine knows the refusals of the engine.
//
//lint:ignore ST1008 the cause is a result, not a failure
func diagnoseEngine(err error) (cause error, f *Failure) {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nats.ErrAuthorization, Fail(ExitDenied, "ask for fresh credentials: fleetbus user add ACCOUNT/NAME --out FILE",
			"the server does not accept these credentials")
	case errors.Is(err, nats.ErrAuthRevoked):
		return nats.ErrAuthRevoked, Fail(ExitDenied, "fleetbus user allow ACCOUNT/NAME", "this user is denied")
	case errors.Is(err, nats.ErrAccountAuthExpired):
		return nats.ErrAccountAuthExpired, Fail(ExitDenied, "fleetbus account info NAME", "the account of these credentials has expired")
	case errors.Is(err, nats.ErrAuthExpired):
		return nats.ErrAuthExpired, Fail(ExitDenied, "fleetbus user renew ACCOUNT/NAME --out FILE", "these credentials have expired")
	case errors.Is(err, nats.ErrPermissionViolation):
		return nats.ErrPermissionViolation, Fail(ExitDenied, "fleetbus role ls shows what each role may do", "the role of this user does not allow it")
	case errors.Is(err, nats.ErrMaxConnectionsExceeded):
		return nats.ErrMaxConnectionsExceeded, Fail(ExitUnavailable, "raise limits.connections, or the account's", "the server has all the connections it takes")
	case errors.Is(err, nats.ErrMaxPayload):
		return nats.ErrMaxPayload, Fail(ExitUsage, "send less, or raise limits.payload", "the message is larger than the server takes")
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount:
		return api, Fail(ExitDenied, "use the credentials of a user of the account that is to hold the stream", "this account keeps no streams")
	case errors.As(err, &api) && TooFewNodes(api):
		return api, Fail(ExitFailed, "--replicas auto takes as many as there are nodes", "%s", api.Description)
	case errors.As(err, &api):
		return api, Fail(streamCode(api), "", "%s", api.Description)
	}
	return nil, nil
}

// TooFewNodes reports whether the engine lacks the nodes for the replicas.
func TooFewNodes(err error) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode {
	case 10005, // no suitable peers for placement
		10023, // insufficient resources
		10074: // replicas > 1 not supported in non-clustered mode
		return true
	}
	return false
}

// streamCode sorts a refusal about streams.
func streamCode(api *jetstream.APIError) ExitCode {
	switch {
	case api.ErrorCode == jetstream.JSErrCodeStreamNameInUse:
		return ExitConflict
	case api.Code == 404:
		return ExitNotFound
	case api.Code == 503:
		return ExitUnavailable
	}
	return ExitFailed
}

// diagnoseNetwork knows the ways of not being heard.
//
//lint:ignore ST1008 the cause is a result, not a failure
func diagnoseNetwork(err error) (cause error, f *Failure) {
	var (
		dns     *net.DNSError
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case errors.As(err, &dns):
		return operation(err, dns), Fail(ExitUnavailable, "check the name after --server", "there is no host %q", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, nats.ErrNoServers):
		return operation(err, nats.ErrNoServers), Fail(ExitUnavailable, "start it there with: fleetbus serve", "no server is listening there")
	case errors.Is(err, nats.ErrNoResponders):
		return nats.ErrNoResponders, Fail(ExitUnavailable, "fleetbus doctor", "nobody answers there")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return operation(err, innermost(err)), Fail(ExitUnavailable, "fleetbus doctor, or a longer --timeout", "no answer in time")
	case errors.As(err, &op):
		return op, Fail(ExitUnavailable, "check the address after --server", "%v", op.Err)
	}
	return nil, nil
}

// operation is the network operation in err that failed because of cause, whose
// text includes that of cause; cause itself if there is none.
func operation(err, cause error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op
	}
	return cause
}

// innermost follows the chain of err to its end.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
