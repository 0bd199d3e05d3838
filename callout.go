package fleetbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

const (
	// calloutsAtOnce bounds how many clients are authenticated side by side.
	calloutsAtOnce = 64
	// natsListenerName is the listener that the engine's clients come in by.
	natsListenerName = "nats"
	// kindTag begins a tag that only the tokens of sessions have.
	kindTag = "kind:"
	// serverKeyHeader carries the engine's public curve key.
	serverKeyHeader = "Nats-Server-Xkey"
)

// callout has the connections by which a node decides on the engine's clients.
type callout struct{ service, arrivals *nats.Conn }

// Close ends both.
func (c *callout) Close() {
	c.service.Close()
	c.arrivals.Close()
}

// serveCallout decides on the engine's clients until it is closed.
func (s *Server) serveCallout(ctx context.Context) (*callout, error) {
	arrivals, err := s.watchArrivals()
	if err != nil {
		return nil, err
	}
	service, err := s.answerCallouts(ctx)
	if err != nil {
		arrivals.Close()
		return nil, err
	}
	return &callout{service: service, arrivals: arrivals}, nil
}

// answerCallouts answers the engine, which asks who a client is that brought no
// signed credentials of its own. It answers from memory, on every node.
func (s *Server) answerCallouts(ctx context.Context) (*nats.Conn, error) {
	token, key, err := s.fleet.authority.CalloutService()
	if err != nil {
		return nil, fmt.Errorf("starting the callout: %w", err)
	}
	nc, err := s.broker.Connect(
		nats.Name("callout"), nats.NoReconnect(), nats.ErrorHandler(s.sessionError(identity.Principal{Account: identity.CalloutName, Name: "service"})),
		nats.UserJWT(func() (string, error) { return token, nil }, key.Sign),
	)
	if err != nil {
		return nil, fmt.Errorf("starting the callout: %w", err)
	}
	busy := make(chan struct{}, calloutsAtOnce)
	// Every node hears every question, and answers those of its own engine: a
	// queue group would hand some to a node that knows less.
	var ours sync.Map // an engine's public curve key -> whether it is this node's
	_, err = nc.Subscribe(identity.CalloutSubject, func(msg *nats.Msg) {
		if known, ok := ours.Load(msg.Header.Get(serverKeyHeader)); ok && !known.(bool) {
			return
		}
		select {
		case busy <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.group.Go(func() {
			defer func() { <-busy }()
			if err := s.answerCallout(ctx, nc, msg, &ours); err != nil {
				s.log.Warn("a client could not be authenticated", "error", err)
			}
		})
	})
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("starting the callout: %w", err)
	}
	return nc, nc.Flush()
}

func (s *Server) answerCallout(ctx context.Context, nc *nats.Conn, msg *nats.Msg, ours *sync.Map) error {
	authority := s.fleet.authority
	serverKey := msg.Header.Get(serverKeyHeader)
	req, err := authority.OpenCallout(msg.Data, serverKey)
	if err != nil {
		return err
	}
	mine := req.Server.ID == s.broker.ID()
	ours.Store(serverKey, mine)
	if !mine {
		return nil
	}
	c, seq := calloutCredentials(req), s.fleet.directory.Seq()
	answer, refused := s.decideCallout(ctx, req, c)
	if refused != nil {
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
	if err := msg.Respond(sealed); err != nil || refused != nil {
		return err
	}
	// The client is in its account when the engine has read the answer.
	if err := nc.Flush(); err != nil {
		return fmt.Errorf("answering a callout: %w", err)
	}
	if s.reconsider(ctx, c, seq) != nil {
		s.broker.Close(req.ClientInformation.ID)
	}
	return nil
}

func (s *Server) decideCallout(ctx context.Context, req *jwt.AuthorizationRequestClaims, c identity.Credentials) (string, error) {
	p, err := s.authenticate(ctx, c)
	if err != nil {
		return "", err
	}
	account, ok := s.fleet.account(p.Account)
	if !ok {
		return "", fmt.Errorf("account %q is gone", p.Account)
	}
	return s.fleet.authority.CalloutResponse(req, account, p, time.Now())
}

// arrival is the engine's event of a client that is in its account now.
type arrival struct {
	Server struct {
		ID string `json:"id"`
	} `json:"server"`
	Client struct {
		ID      uint64   `json:"id"`
		Account string   `json:"acc"`
		Tags    []string `json:"tags"`
	} `json:"client"`
}

// arrivalsSubject is where the engine tells of arrivals, in the system account.
const arrivalsSubject = "$SYS.ACCOUNT.*.CONNECT"

// watchArrivals closes those who came in by signed credentials although they are
// denied. The engine looks at the revocations before it puts a client into its
// account; a denial that acts between the two finds nobody to close.
func (s *Server) watchArrivals() (*nats.Conn, error) {
	self := s.nodePrincipal(identity.SystemName)
	nc, err := s.broker.Connect(append(s.systemAuth(), nats.Name("arrivals"), nats.NoReconnect(), nats.ErrorHandler(s.sessionError(self)))...)
	if err != nil {
		return nil, fmt.Errorf("watching arrivals: %w", err)
	}
	_, err = nc.Subscribe(arrivalsSubject, func(msg *nats.Msg) {
		var a arrival
		if err := json.Unmarshal(msg.Data, &a); err != nil {
			s.log.Warn("an arrival could not be read", "error", err)
			return
		}
		if a.Server.ID == s.broker.ID() && s.shutOut(a) && s.broker.Close(a.Client.ID) {
			s.log.Warn("client refused", "listener", natsListenerName, "error", "it was denied as it came in")
		}
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("watching arrivals: %w", err)
	}
	return nc, nil
}

// shutOut reports whether a was let in by the engine alone, and is of a user who
// is denied or gone.
func (s *Server) shutOut(a arrival) bool {
	name := ""
	for _, tag := range a.Client.Tags {
		if strings.HasPrefix(tag, kindTag) {
			return false // a session: whoever opened it has looked again
		}
		if n, ok := strings.CutPrefix(tag, identity.NameTag); ok {
			name = n
		}
	}
	account, ok := s.fleet.directory.AccountByPublic(a.Client.Account)
	if !ok {
		if account, ok = s.fleet.account(identity.FleetName); !ok || account.Public != a.Client.Account {
			return false
		}
	}
	user, ok := s.fleet.directory.User(account.Name, name)
	return name != "" && (!ok || user.Denied)
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
