package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
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
		code exitCode
		text string
	}{
		{errors.New("any"), exitFailed, "any"},
		{fail(exitConflict, "do that", "why"), exitConflict, "why"},
		{admin.Errorf(admin.Failed, "", "a"), exitFailed, "a"},
		{admin.Errorf(admin.Invalid, "", "a"), exitUsage, "a"},
		{admin.Errorf(admin.NotFound, "", "a"), exitNotFound, "a"},
		{admin.Errorf(admin.Unavailable, "", "a"), exitUnavailable, "a"},
		{admin.Errorf(admin.Denied, "", "a"), exitDenied, "a"},
		{admin.Errorf(admin.Conflict, "", "a"), exitConflict, "a"},
		{admin.Errorf(admin.Partial, "", "a"), exitPartial, "a"},
		{admin.Errorf("new", "", "a"), exitFailed, "a"},
		{&config.ProblemList{Problems: []config.Problem{{Text: "bad"}}}, exitConfig, "configuration has 1 problem\n  bad"},
		{verify(x509.UnknownAuthorityError{}), exitUnavailable, "the server's certificate is of an authority that is not trusted here"},
		{verify(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"n1"}}, Host: "n2"}), exitUnavailable, `the server's certificate is not for "n2"`},
		{verify(x509.CertificateInvalidError{Reason: x509.Expired}), exitUnavailable, "the server's certificate has expired, or is not valid yet"},
		{verify(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}), exitUnavailable, "the server's certificate is not valid: x509: certificate is not authorized to sign other certificates"},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(116)}, exitDenied, "the server refused the TLS handshake: certificate required"},
		{nats.ErrSecureConnWanted, exitUnavailable, "the server there does not speak TLS"},
		{nats.ErrAuthorization, exitDenied, "the server does not accept these credentials"},
		{errors.Join(nats.ErrAuthorization, errors.New("Authorization Violation")), exitDenied, "the server does not accept these credentials"},
		{nats.ErrAuthRevoked, exitDenied, "this user is denied"},
		{nats.ErrAuthExpired, exitDenied, "these credentials have expired"},
		{nats.ErrAccountAuthExpired, exitDenied, "the account of these credentials has expired"},
		{fmt.Errorf("%w: details", nats.ErrPermissionViolation), exitDenied, "the role of this user does not allow it"},
		{nats.ErrMaxConnectionsExceeded, exitUnavailable, "the server has all the connections it takes"},
		{nats.ErrMaxPayload, exitUsage, "the message is larger than the server takes"},
		{jetstream.ErrJetStreamNotEnabledForAccount, exitDenied, "this account keeps no streams"},
		{jetstream.ErrStreamNotFound, exitNotFound, "stream not found"},
		{jetstream.ErrStreamNameAlreadyInUse, exitConflict, "stream name already in use"},
		{&jetstream.APIError{Code: 503, ErrorCode: 10008, Description: "no leader"}, exitUnavailable, "no leader"},
		{&jetstream.APIError{Code: 400, ErrorCode: 10005, Description: "no suitable peers"}, exitFailed, "no suitable peers"},
		{dial(&net.DNSError{Name: "nowhere", Err: "no such host"}), exitUnavailable, `there is no host "nowhere"`},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), exitUnavailable, "no server is listening there"},
		{dial(os.NewSyscallError("connect", syscall.ENETUNREACH)), exitUnavailable, "connect: network is unreachable"},
		{nats.ErrNoServers, exitUnavailable, "no server is listening there"},
		{nats.ErrNoResponders, exitUnavailable, "nobody answers there"},
		{nats.ErrTimeout, exitUnavailable, "no answer in time"},
		{context.DeadlineExceeded, exitUnavailable, "no answer in time"},
		{dial(os.ErrDeadlineExceeded), exitUnavailable, "no answer in time"},
	} {
		f := explain(t.Context(), fmt.Errorf("doing %q: %w", "it", c.err))
		if want := `doing "it": ` + c.text; f.code != c.code || f.text != want {
			t.Errorf("%v:\n     %d %s\nwant %d %s", c.err, f.code, f.text, c.code, want)
		}
	}
}

// TestExitCodes checks that the help knows every code.
func TestExitCodes(t *testing.T) {
	help := newExitCodesTopic().Long
	for _, code := range []exitCode{0, 1, 2, 3, 4, 5, 6, 7, 78, 130} {
		if !strings.Contains(help, fmt.Sprintf("%5d  %s ", int(code), code)) {
			t.Errorf("exit code %d, %s, is not in the help", int(code), code)
		}
	}
}

// TestComplain checks that an error cannot control a terminal.
func TestComplain(t *testing.T) {
	a, _, stderr := testApp("")
	a.complain(failure{text: "one\x1b[2J\n  two", fix: "three", code: exitFailed})
	if got, want := stderr.String(), "error: one\\x1b[2J\n  two\nfix: three\n"; got != want {
		t.Errorf("complained %q, not %q", got, want)
	}
}
