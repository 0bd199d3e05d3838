package fleetbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/admission"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// calloutsAtOnce bounds how many clients are authenticated side by side.
	calloutsAtOnce = 64
	// passwordsAtOnce bounds how many of them have a password to verify, which is
	// slow by intent: who has a certificate must not wait behind who guesses.
	passwordsAtOnce = calloutsAtOnce / 2
	// natsListenerName is the listener that the engine's clients come in by.
	natsListenerName = "nats"
	// serverKeyHeader carries the engine's public curve key.
	serverKeyHeader = "Nats-Server-Xkey"
)

// callout decides on the engine's clients.
type callout struct {
	*Server
	service, passages *nats.Conn
	// busy and passwords hold one for each that is under way.
	busy, passwords chan struct{}
	// ours says of an engine's public curve key whether it is this node's.
	ours sync.Map
}

// Close ends both.
func (c *callout) Close() {
	c.service.Close()
	c.passages.Close()
}

// serveCallout decides on the engine's clients until it is closed.
func (s *Server) serveCallout(ctx context.Context) (*callout, error) {
	c := &callout{Server: s, busy: make(chan struct{}, calloutsAtOnce), passwords: make(chan struct{}, passwordsAtOnce)}
	var err error
	if c.passages, err = s.watchPassages(ctx); err != nil {
		return nil, fmt.Errorf("watching who comes and goes: %w", err)
	}
	if err := c.serve(ctx); err != nil {
		c.passages.Close()
		return nil, fmt.Errorf("starting the callout: %w", err)
	}
	return c, nil
}

// serve answers the engine, which asks who a client is that brought no signed
// credentials of its own. It answers from memory, on every node.
func (c *callout) serve(ctx context.Context) error {
	token, key, err := c.fleet.authority.CalloutService()
	if err != nil {
		return err
	}
	self := identity.Principal{Account: identity.CalloutName, Name: "service"}
	c.service, err = c.broker.ConnectUrgent(
		nats.Name("callout"), nats.NoReconnect(), nats.ErrorHandler(c.sessionError(self)),
		nats.UserJWT(func() (string, error) { return token, nil }, key.Sign),
	)
	if err != nil {
		return err
	}
	// Every node hears every question, and answers those of its own engine: a
	// queue group would hand some to a node that knows less.
	_, err = c.service.Subscribe(identity.CalloutSubject, func(msg *nats.Msg) {
		if known, ok := c.ours.Load(msg.Header.Get(serverKeyHeader)); ok && !known.(bool) {
			return
		}
		// The engine asked a moment ago, and waits no longer than that.
		deadline := time.Now().Add(c.opts.Limits.HandshakeTimeout * 9 / 10)
		select {
		case c.busy <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c.group.Go(func() {
			defer func() { <-c.busy }()
			if err := c.answer(ctx, msg, deadline); err != nil {
				c.log.Warn("a client could not be authenticated", "error", err)
			}
		})
	})
	if err == nil {
		err = c.service.Flush()
	}
	if err != nil {
		c.service.Close()
	}
	return err
}

// answer decides on one client. After the deadline it says nothing: the engine is
// about to refuse the client then, and an answer would meet one that is half closed.
func (c *callout) answer(ctx context.Context, msg *nats.Msg, deadline time.Time) error {
	authority := c.fleet.authority
	serverKey := msg.Header.Get(serverKeyHeader)
	req, err := authority.OpenCallout(msg.Data, serverKey)
	if err != nil {
		// The engine of another node asks its own: nobody else can read it.
		if _, known := c.ours.LoadOrStore(serverKey, false); known {
			return err
		}
		return nil
	}
	mine := req.Server.ID == c.broker.ID()
	c.ours.Store(serverKey, mine)
	if !mine {
		return nil
	}
	presented, seq := calloutCredentials(req), c.fleet.directory.Seq()
	answer, p, refused := c.decide(ctx, req, presented)
	if refused != nil {
		c.tellRefusal(presented, p, refused)
		if answer, err = authority.CalloutRefusal(req, operatorText(refused), time.Now()); err != nil {
			return err
		}
	}
	key, err := authority.CalloutKey()
	if err != nil {
		return err
	}
	sealed, err := key.Seal([]byte(answer), serverKey)
	if err != nil {
		return fmt.Errorf("sealing the answer to a callout: %w", err)
	}
	if time.Now().After(deadline) {
		if refused == nil {
			c.log.Warn("client refused", "listener", presented.Listener, "remote", presented.Remote, "principal", p, "error", errLate)
		}
		return nil
	}
	if err := msg.Respond(sealed); err != nil || refused != nil {
		return err
	}
	// The client is in its account when the engine has read the answer.
	if err := c.service.Flush(); err != nil {
		return fmt.Errorf("answering a callout: %w", err)
	}
	if err := c.reconsider(ctx, presented, seq, p); err != nil {
		c.tellRefusal(presented, p, err)
		c.broker.Close(req.ClientInformation.ID)
	}
	return nil
}

var (
	// errLate is why a client is refused that did nothing wrong.
	errLate = errors.New("deciding took longer than limits.handshake_timeout allows; this node has too much to do")
	// errLimits is why a principal with limits is refused: the engine forgets
	// those of whom the callout lets in.
	errLimits = errors.New("its role has limits, which this listener keeps for creds files alone")
)

// decide lets the principal in or says why not.
func (c *callout) decide(ctx context.Context, req *jwt.AuthorizationRequestClaims, presented identity.Credentials) (string, identity.Principal, error) {
	if !c.fleet.admits() {
		return "", identity.Principal{}, admission.ErrStarting
	}
	if req.ClientInformation.Kind == leafKind {
		c.log.Warn("site refused", "listener", leafListenerName, "remote", presented.Remote, "error", errNoSite)
		return "", identity.Principal{}, errNoSite
	}
	if presented.Username != "" {
		select {
		case c.passwords <- struct{}{}:
			defer func() { <-c.passwords }()
		default:
			c.log.Warn("client refused", "listener", presented.Listener, "remote", presented.Remote, "error", strangers.ErrQueue)
			return "", identity.Principal{}, strangers.ErrQueue
		}
	}
	p, err := c.authenticate(ctx, presented)
	if err != nil {
		return "", p, err
	}
	// Connections are counted by the nodes.
	if limits := p.Limits; limits != (identity.Limits{Connections: limits.Connections}) {
		c.log.Warn("client refused", "listener", presented.Listener, "remote", presented.Remote, "principal", p, "error", errLimits)
		return "", p, errLimits
	}
	account, ok := c.fleet.account(p.Account)
	if !ok {
		return "", p, fmt.Errorf("account %q is gone", p.Account)
	}
	answer, err := c.fleet.authority.CalloutResponse(req, account, p, time.Now())
	return answer, p, err
}

// calloutCredentials are what the engine's client presented.
func calloutCredentials(req *jwt.AuthorizationRequestClaims) identity.Credentials {
	c := identity.Credentials{
		Username: req.ConnectOptions.Username,
		Password: req.ConnectOptions.Password,
		Token:    req.ConnectOptions.Token,
		Listener: natsListenerName,
		Remote:   req.ClientInformation.Host,
	}
	if req.TLS != nil {
		// The engine has verified these chains in the handshake; what it sends is
		// read again only to learn the names in them.
		state := &tls.ConnectionState{HandshakeComplete: true}
		for _, list := range req.TLS.VerifiedChains {
			var chain []*x509.Certificate
			for _, text := range list {
				if block, _ := pem.Decode([]byte(text)); block != nil {
					if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
						chain = append(chain, cert)
					}
				}
			}
			if len(chain) > 0 {
				state.VerifiedChains = append(state.VerifiedChains, chain)
			}
		}
		if len(state.VerifiedChains) > 0 {
			state.PeerCertificates = state.VerifiedChains[0]
		}
		c.TLS = state
	}
	return c
}
