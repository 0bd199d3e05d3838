package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/config"
)

// TestExplain has an error of every sort, as commands wrap them.
func TestExplain(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	verify := func(err error) error {
		return fmt.Errorf("%w: %w", nats.ErrTLS, &tls.CertificateVerificationError{Err: err})
	}
	for _, c := range []struct {
		err  error
		code ExitCode
		text string
	}{
		{errors.New("any"), ExitFailed, "any"},
		{Fail(ExitConflict, "do that", "why"), ExitConflict, "why"},
		{admin.Errorf(admin.Failed, "", "a"), ExitFailed, "a"},
		{admin.Errorf(admin.Invalid, "", "a"), ExitUsage, "a"},
		{admin.Errorf(admin.NotFound, "", "a"), ExitNotFound, "a"},
		{admin.Errorf(admin.Unavailable, "", "a"), ExitUnavailable, "a"},
		{admin.Errorf(admin.Denied, "", "a"), ExitDenied, "a"},
		{admin.Errorf(admin.Conflict, "", "a"), ExitConflict, "a"},
		{admin.Errorf(admin.Partial, "", "a"), ExitPartial, "a"},
		{admin.Errorf("new", "", "a"), ExitFailed, "a"},
		{&config.ProblemList{Problems: []config.Problem{{Text: "bad"}}}, ExitConfig, "configuration has 1 problem\n  bad"},
		{verify(x509.UnknownAuthorityError{}), ExitUnavailable, "the server's certificate is of an authority that is not trusted here"},
		{verify(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"n1"}}, Host: "n2"}), ExitUnavailable, `the server's certificate is not for "n2"`},
		{verify(x509.CertificateInvalidError{Reason: x509.Expired}), ExitUnavailable, "the server's certificate has expired, or is not valid yet"},
		{verify(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}), ExitUnavailable, "the server's certificate is not valid: x509: certificate is not authorized to sign other certificates"},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(116)}, ExitDenied, "the server refused the TLS handshake: certificate required"},
		{nats.ErrSecureConnWanted, ExitUnavailable, "the server there does not speak TLS"},
		{nats.ErrAuthorization, ExitDenied, "the server does not accept these credentials"},
		{errors.Join(nats.ErrAuthorization, errors.New("Authorization Violation")), ExitDenied, "the server does not accept these credentials"},
		{nats.ErrAuthRevoked, ExitDenied, "this user is denied"},
		{nats.ErrAuthExpired, ExitDenied, "these credentials have expired"},
		{nats.ErrAccountAuthExpired, ExitDenied, "the account of these credentials has expired"},
		{fmt.Errorf("%w: details", nats.ErrPermissionViolation), ExitDenied, "the role of this user does not allow it"},
		{nats.ErrMaxConnectionsExceeded, ExitUnavailable, "the server has all the connections it takes"},
		{nats.ErrMaxPayload, ExitUsage, "the message is larger than the server takes"},
		{jetstream.ErrJetStreamNotEnabledForAccount, ExitDenied, "this account keeps no streams"},
		{jetstream.ErrStreamNotFound, ExitNotFound, "stream not found"},
		{jetstream.ErrStreamNameAlreadyInUse, ExitConflict, "stream name already in use"},
		{&jetstream.APIError{Code: 503, ErrorCode: 10008, Description: "no leader"}, ExitUnavailable, "no leader"},
		{&jetstream.APIError{Code: 400, ErrorCode: 10005, Description: "no suitable peers"}, ExitFailed, "no suitable peers"},
		{dial(&net.DNSError{Name: "nowhere", Err: "no such host"}), ExitUnavailable, `there is no host "nowhere"`},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), ExitUnavailable, "no server is listening there"},
		{dial(os.NewSyscallError("connect", syscall.ENETUNREACH)), ExitUnavailable, "connect: network is unreachable"},
		{nats.ErrNoServers, ExitUnavailable, "no server is listening there"},
		{nats.ErrNoResponders, ExitUnavailable, "nobody answers there"},
		{nats.ErrTimeout, ExitUnavailable, "no answer in time"},
		{context.DeadlineExceeded, ExitUnavailable, "no answer in time"},
		{dial(os.ErrDeadlineExceeded), ExitUnavailable, "no answer in time"},
	} {
		f := Explain(t.Context(), fmt.Errorf("doing %q: %w", "it", c.err))
		if want := `doing "it": ` + c.text; f.Code != c.code || f.Text != want {
			t.Errorf("%v:\n     %d %s\nwant %d %s", c.err, f.Code, f.Text, c.code, want)
		}
	}
}

// TestComplain checks that an error cannot control a terminal.
func TestComplain(t *testing.T) {
	a, _, stderr := testApp("")
	a.complain(Failure{Text: "one\x1b[2J\n  two", Fix: "three", Code: ExitFailed})
	if got, want := stderr.String(), "error: one\\x1b[2J\n  two\nfix: three\n"; got != want {
		t.Errorf("complained %q, not %q", got, want)
	}
}
