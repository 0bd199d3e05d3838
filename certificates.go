package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/audit"
)

// OpenCertManager makes the Service that manages the certificates of an account, on
// this node beside those on other nodes. It connects nothing. If it is a
// doctor.Checker too, its findings are the node's.
type OpenCertManager func(node string, key *cert.ManagerKey, log *slog.Logger) (Service, error)

const (
	// managersCheck is how often a node looks for accounts whose certificates it is to
	// manage.
	managersCheck = time.Second
	// certTimeout bounds a request to the managers of an account: some wait for an
	// authority.
	certTimeout = 15 * time.Minute
	// certsAtOnce bounds such requests under way on one node.
	certsAtOnce = 64
	// managerAppears is how long such a request waits for a manager to be there.
	managerAppears = 10 * time.Second
)

// certNoun is the noun of the records that say which accounts have certificates: those
// with a target, and those whose managers were asked for something.
const certNoun = "certificates"

// managerKey is the key of the managers of an account's certificates.
func (s *Server) managerKey(account string) (*cert.ManagerKey, error) {
	a, err := s.wantAccount(account)
	if err != nil {
		return nil, err
	}
	secret, err := s.fleet.authority.CertSecret(a)
	if err != nil {
		return nil, err
	}
	return cert.NewManagerKey(account, secret)
}

func certPrincipal(account string) identity.Principal {
	p := identity.Principal{Account: account, Name: "certmanager", Kind: identity.KindService}
	for _, r := range identity.BuiltinRoles() {
		if r.Name == identity.RoleCertManager {
			p.Permissions = r.Permissions
			p.Permissions.Subscribe.Allow = append(p.Permissions.Subscribe.Allow, p.Inbox()+".>")
		}
	}
	return p
}

// A managers is what runs on this node for the certificates of accounts.
type managers struct {
	mu  sync.Mutex
	all map[string]Service // by account
}

func (m *managers) set(account string, service Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if service == nil {
		delete(m.all, account)
		return
	}
	if m.all == nil {
		m.all = map[string]Service{}
	}
	m.all[account] = service
}

// services are the managers of this node.
func (m *managers) services() []Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.all))
}

// findings are those of the managers of this node.
func (m *managers) findings(ctx context.Context) []doctor.Finding {
	var checkers []doctor.Checker
	for _, service := range m.services() {
		if c, ok := service.(doctor.Checker); ok {
			checkers = append(checkers, c)
		}
	}
	return doctor.Run(ctx, checkers...)
}

// runManagers has targets read, and runs a manager, for each account that has
// certificates, until ctx is done.
func (s *Server) runManagers(ctx context.Context) {
	type run struct {
		id     string // of the account: one that was made anew has another key
		cancel context.CancelFunc
	}
	running := map[string]run{}
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(managersCheck)
	defer tick.Stop()
	for {
		wanted := s.fleet.directory.Records(certNoun)
		if !s.isHome() {
			clear(wanted) // the home region's, which serves all
		}
		for name, r := range running {
			a, ok := s.fleet.directory.Account(name)
			if _, still := wanted[name]; !still || !ok || a.ID != r.id {
				r.cancel()
				delete(running, name)
			}
		}
		for name := range wanted {
			a, ok := s.fleet.directory.Account(name)
			if _, runs := running[name]; runs || !ok {
				continue
			}
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			running[name] = run{a.ID, cancel}
			relay := cert.Relay{Logger: s.log.With("account", name)}
			all.Go(func() {
				s.runService(ctx, ServiceBinding{Name: "certrelay " + name, Principal: certPrincipal(name), Service: relay})
			})
			if s.opts.CertManager != nil {
				all.Go(func() { s.runManager(ctx, name) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// haveCertificates makes an account one that has certificates.
func (s *Server) haveCertificates(ctx context.Context, account string) error {
	if _, known := s.fleet.directory.Records(certNoun)[account]; known {
		return nil
	}
	if !s.isHome() {
		return admin.Errorf(admin.Conflict, "ask in region "+s.fleet.directory.HomeRegion()+", once", "account %q has no certificates yet, and they are managed in another region", account)
	}
	_, err := s.fleet.change(ctx, certNoun+"."+account, func() (any, error) { return struct{}{}, nil })
	return err
}

// runManager runs the manager of one account.
func (s *Server) runManager(ctx context.Context, account string) {
	name := "certmanager " + account
	key, err := s.managerKey(account)
	var service Service
	if err == nil {
		service, err = s.opts.CertManager(s.fleet.node, key, s.log.With("account", account))
	}
	if err != nil {
		s.failures.set(name, err)
		s.log.Error("service failed", "service", name, "error", err)
		return
	}
	s.managers.set(account, service)
	defer s.managers.set(account, nil)
	s.runService(ctx, ServiceBinding{Name: name, Principal: certPrincipal(account), Service: service})
}

// serveCerts answers requests about certificates: it hands them to the managers of
// the account, and what these answer to who asked.
func (s *Server) serveCerts(ctx context.Context) error {
	busy := make(chan struct{}, certsAtOnce)
	serve := func(msg *nats.Msg) {
		select {
		case busy <- struct{}{}:
		default:
			_ = ask.Answer(msg, admin.Reply{Error: admin.Errorf(admin.Unavailable, "try again", "node %s has %d requests about certificates under way", s.fleet.node, certsAtOnce)})
			return
		}
		s.group.Go(func() {
			defer func() { <-busy }()
			ctx, cancel := context.WithTimeout(ctx, certTimeout)
			defer cancel()
			err := s.answerCert(ctx, msg)
			if err == nil || ctx.Err() != nil {
				return
			}
			var refusal *admin.Error
			if !errors.As(err, &refusal) {
				s.log.Warn("a request failed", "subject", msg.Subject, "error", err)
				refusal = admin.Errorf(admin.Failed, "look at the log of node "+s.fleet.node, "it could not be done: node %s says why in its log", s.fleet.node)
			}
			_ = ask.Answer(msg, admin.Reply{Error: refusal})
		})
	}
	for _, subject := range audit.BothWays(admin.CertSubject) {
		if _, err := s.conn.QueueSubscribe(subject, "admin", serve); err != nil {
			return fmt.Errorf("subscribing to %q: %w", subject, err)
		}
	}
	return nil
}

// answerCert hands one request to the managers of its account.
func (s *Server) answerCert(ctx context.Context, msg *nats.Msg) error {
	var r admin.CertRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return admin.Errorf(admin.Invalid, "", "the request cannot be read: %v", err)
	}
	for word := range strings.SplitSeq(r.Verb, ".") {
		if err := identity.CheckName(word); err != nil {
			return admin.Errorf(admin.Invalid, "", "checking the verb: %v", err)
		}
	}
	if _, err := s.wantAccount(r.Account); err != nil {
		return err
	}
	if err := s.haveCertificates(ctx, r.Account); err != nil {
		return err
	}
	if r.Verb == admin.CertKeyVerb {
		return s.answerCertKey(msg, r)
	}
	if s.opts.CertManager == nil {
		return admin.Errorf(admin.Unavailable, "set certmanager to true on a node", "node %s manages no certificates", s.fleet.node)
	}
	key, err := s.managerKey(r.Account)
	if err != nil {
		return err
	}
	session, err := s.open(certPrincipal(r.Account))
	if err != nil {
		return err
	}
	defer session.Close()
	end, err := s.audit.Begin(ctx, msg, "cert."+r.Verb, r.Account)
	if err != nil {
		return err
	}
	return end(forward(ctx, session.Conn, key.Signer(), cert.APISubject(r.Verb), r.Data, msg))
}

// forward publishes data as a request, and gives every answer to it that signer signed
// to msg, up to the last one. It waits for somebody to be there who answers.
func forward(ctx context.Context, nc *nats.Conn, signer cert.Signer, subject string, data []byte, msg *nats.Msg) error {
	appears, cancel := context.WithTimeout(ctx, managerAppears)
	defer cancel()
	answers, err := cert.Ask(nc, []cert.Signer{signer}, subject, data)
	for {
		if err != nil {
			return err
		}
		answer, problem := answers.Next(ctx)
		switch {
		case errors.Is(problem, nats.ErrNoResponders) && appears.Err() == nil:
			answers.Close()
			select {
			case <-ctx.Done():
			case <-time.After(managersCheck / 4):
			}
			answers, err = cert.Ask(nc, []cert.Signer{signer}, subject, data)
			continue
		case errors.Is(problem, nats.ErrNoResponders):
			return admin.Errorf(admin.Unavailable, "fleetbus status", "no node manages the certificates of this account")
		case problem != nil:
			return fmt.Errorf("asking %q: %w", subject, problem)
		}
		if err := msg.Respond(answer); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
		var step admin.CertProgress
		if json.Unmarshal(answer, &step) != nil || step.Progress == nil {
			return nil // the last one
		}
	}
}

// answerCertKey gives an administrator the key of an account's managers, sealed to
// the curve key that the request brings.
func (s *Server) answerCertKey(msg *nats.Msg, r admin.CertRequest) error {
	var recipient string
	if err := json.Unmarshal(r.Data, &recipient); err != nil || !nkeys.IsValidPublicCurveKey(recipient) {
		return admin.Errorf(admin.Invalid, "", "the request has no key to seal to")
	}
	key, err := s.managerKey(r.Account)
	if err != nil {
		return err
	}
	sender, err := nkeys.CreateCurveKeys()
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	public, err := sender.PublicKey()
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	sealed, err := sender.Seal([]byte(key.Text()), recipient)
	if err != nil {
		return fmt.Errorf("sealing a manager's key: %w", err)
	}
	s.log.Info("the key of the certificates' managers was given out", "account", r.Account)
	data, err := json.Marshal(admin.CertKey{Sender: public, Sealed: sealed})
	if err != nil {
		return err
	}
	return ask.Answer(msg, admin.Reply{Data: data})
}
