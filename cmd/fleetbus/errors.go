package main

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

// exitCode is the exit code of the process.
type exitCode int

const (
	exitOK          exitCode = 0
	exitFailed      exitCode = 1
	exitUsage       exitCode = 2
	exitNotFound    exitCode = 3
	exitUnavailable exitCode = 4
	exitDenied      exitCode = 5
	exitConflict    exitCode = 6
	exitPartial     exitCode = 7
	exitConfig      exitCode = 78
	exitInterrupted exitCode = 130
)

// String is the code as a word, the same as admin.Code where it has one.
func (c exitCode) String() string {
	switch c {
	case exitOK:
		return "ok"
	case exitUsage:
		return "usage"
	case exitNotFound:
		return string(admin.NotFound)
	case exitUnavailable:
		return string(admin.Unavailable)
	case exitDenied:
		return string(admin.Denied)
	case exitConflict:
		return string(admin.Conflict)
	case exitPartial:
		return string(admin.Partial)
	case exitConfig:
		return "configuration"
	case exitInterrupted:
		return "interrupted"
	}
	return string(admin.Failed)
}

// A failure is an error as its user meets it: what went wrong and why, one
// command or setting that mends it, and the exit code.
type failure struct {
	text, fix string
	code      exitCode
}

// Error is the text.
func (f *failure) Error() string { return f.text }

// fail makes a failure; fix may be empty.
func fail(code exitCode, fix, format string, args ...any) *failure {
	return &failure{text: fmt.Sprintf(format, args...), fix: fix, code: code}
}

// complain writes f to stderr, in the format of the command's data.
func (a *app) complain(f failure) {
	if a.format == formatJSON || a.format == formatJSONL {
		type fault struct {
			Code string `json:"code"`
			Exit int    `json:"exit"`
			Text string `json:"text"`
			Fix  string `json:"fix,omitempty"`
		}
		line, err := json.Marshal(map[string]fault{"error": {f.code.String(), int(f.code), f.text, f.fix}})
		if err == nil {
			fmt.Fprintf(a.stderr, "%s\n", line)
			return
		}
	}
	// A text of several lines, as a list of problems, is indented by its author.
	for i, line := range strings.Split(f.text, "\n") {
		if i == 0 {
			line = "error: " + line
		}
		a.hint("%s", line)
	}
	if f.fix != "" {
		a.hint("fix: %s", f.fix)
	}
}

// misused explains an error that came up before the command began.
func misused(cmd *cobra.Command, err error) failure {
	return failure{text: cmd.CommandPath() + ": " + err.Error(), fix: cmd.CommandPath() + " --help", code: exitUsage}
}

// explain turns an error of a command into what its user needs. The text says
// what was done, from the error's own wrapping, and why it failed.
func explain(ctx context.Context, err error) failure {
	var f *failure
	if errors.As(err, &f) {
		return failure{text: err.Error(), fix: f.fix, code: f.code}
	}
	var refused *admin.Error
	if errors.As(err, &refused) {
		return failure{text: err.Error(), fix: refused.Fix, code: codeOf(refused.Code)}
	}
	var problems *config.ProblemList
	if errors.As(err, &problems) {
		return failure{text: err.Error(), code: exitConfig}
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return failure{text: "interrupted", code: exitInterrupted}
	}
	for _, diagnose := range []func(error) (cause error, f *failure){diagnoseTLS, diagnoseEngine, diagnoseNetwork} {
		if cause, f := diagnose(err); f != nil {
			return failure{text: rephrase(err, cause, f.text), fix: f.fix, code: f.code}
		}
	}
	return failure{text: err.Error(), code: exitFailed}
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

func codeOf(c admin.Code) exitCode {
	switch c {
	case admin.Invalid:
		return exitUsage
	case admin.NotFound:
		return exitNotFound
	case admin.Unavailable:
		return exitUnavailable
	case admin.Denied:
		return exitDenied
	case admin.Conflict:
		return exitConflict
	case admin.Partial:
		return exitPartial
	}
	return exitFailed
}

// diagnoseTLS knows the ways in which the two sides do not trust each other.
//
//lint:ignore ST1008 the cause is a result, not a failure
func diagnoseTLS(err error) (cause error, f *failure) {
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
		return cause, fail(exitUnavailable, "name the authority of the fleet with --ca FILE",
			"the server's certificate is of an authority that is not trusted here")
	case errors.As(err, &host):
		return cause, fail(exitUnavailable, "use a name that the certificate has: "+certificateNames(host.Certificate),
			"the server's certificate is not for %q", host.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return cause, fail(exitUnavailable, "fleetbus node renew, and check the clocks of both machines",
			"the server's certificate has expired, or is not valid yet")
	case errors.As(err, &invalid):
		return cause, fail(exitUnavailable, "fleetbus node renew", "the server's certificate is not valid: %v", invalid)
	case errors.As(err, &op) && op.Op == "remote error": // an alert, in crypto/tls' words
		return op, fail(exitDenied, "show a certificate that the fleet knows, with --client-cert and --client-key",
			"the server refused the TLS handshake: %v", strings.TrimPrefix(op.Err.Error(), "tls: "))
	case errors.Is(err, nats.ErrSecureConnWanted):
		return nats.ErrSecureConnWanted, fail(exitUnavailable, "check that --server names a listener with TLS", "the server there does not speak TLS")
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
func diagnoseEngine(err error) (cause error, f *failure) {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nats.ErrAuthorization, fail(exitDenied, "ask for fresh credentials: fleetbus user add ACCOUNT/NAME --out FILE",
			"the server does not accept these credentials")
	case errors.Is(err, nats.ErrAuthRevoked):
		return nats.ErrAuthRevoked, fail(exitDenied, "fleetbus user allow ACCOUNT/NAME", "this user is denied")
	case errors.Is(err, nats.ErrAccountAuthExpired):
		return nats.ErrAccountAuthExpired, fail(exitDenied, "fleetbus account info NAME", "the account of these credentials has expired")
	case errors.Is(err, nats.ErrAuthExpired):
		return nats.ErrAuthExpired, fail(exitDenied, "fleetbus user renew ACCOUNT/NAME --out FILE", "these credentials have expired")
	case errors.Is(err, nats.ErrPermissionViolation):
		return nats.ErrPermissionViolation, fail(exitDenied, "fleetbus role ls shows what each role may do", "the role of this user does not allow it")
	case errors.Is(err, nats.ErrMaxConnectionsExceeded):
		return nats.ErrMaxConnectionsExceeded, fail(exitUnavailable, "raise limits.connections, or the account's", "the server has all the connections it takes")
	case errors.Is(err, nats.ErrMaxPayload):
		return nats.ErrMaxPayload, fail(exitUsage, "send less, or raise limits.payload", "the message is larger than the server takes")
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount:
		return api, fail(exitDenied, "use the credentials of a user of the account that is to hold the stream", "this account keeps no streams")
	case errors.As(err, &api) && tooFewNodes(api):
		return api, fail(exitFailed, "--replicas auto takes as many as there are nodes", "%s", api.Description)
	case errors.As(err, &api):
		return api, fail(streamCode(api), "", "%s", api.Description)
	}
	return nil, nil
}

// streamCode sorts a refusal about streams.
func streamCode(api *jetstream.APIError) exitCode {
	switch {
	case api.ErrorCode == jetstream.JSErrCodeStreamNameInUse:
		return exitConflict
	case api.Code == 404:
		return exitNotFound
	case api.Code == 503:
		return exitUnavailable
	}
	return exitFailed
}

// diagnoseNetwork knows the ways of not being heard.
//
//lint:ignore ST1008 the cause is a result, not a failure
func diagnoseNetwork(err error) (cause error, f *failure) {
	var (
		dns     *net.DNSError
		op      *net.OpError
		timeout net.Error
	)
	switch {
	case errors.As(err, &dns):
		return operation(err, dns), fail(exitUnavailable, "check the name after --server", "there is no host %q", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, nats.ErrNoServers):
		return operation(err, nats.ErrNoServers), fail(exitUnavailable, "start it there with: fleetbus serve", "no server is listening there")
	case errors.Is(err, nats.ErrNoResponders):
		return nats.ErrNoResponders, fail(exitUnavailable, "fleetbus doctor", "nobody answers there")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return operation(err, innermost(err)), fail(exitUnavailable, "fleetbus doctor, or a longer --timeout", "no answer in time")
	case errors.As(err, &op):
		return op, fail(exitUnavailable, "check the address after --server", "%v", op.Err)
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
