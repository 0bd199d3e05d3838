package amqp

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/identity"
)

// The mechanisms by which clients log in.
const (
	external = "EXTERNAL"
	plain    = "PLAIN"
	amqplain = "AMQPLAIN"
	scram    = "SCRAM-SHA-256"
)

// mechanisms are those that the client is offered. EXTERNAL is also offered to clients
// without a certificate, so that they are told what is missing.
func (c *conn) mechanisms() (list []string) {
	if c.tls != nil {
		list = append(list, external)
	}
	if c.tls == nil || c.p.Passwords {
		list = append(list, plain, amqplain, scram)
	}
	return list
}

// credentials are what a client presents.
func (c *conn) credentials(mechanism, response string) (identity.Credentials, error) {
	with := identity.Credentials{TLS: c.tls, Remote: c.remote}
	if !slices.Contains(c.offered, mechanism) {
		switch mechanism {
		case plain, amqplain, scram:
			return with, frame.ConnectionError(frame.AccessRefused, "%s is not offered here: log in with a client certificate and EXTERNAL, or have passwords allowed on this listener", mechanism)
		case external:
			return with, frame.ConnectionError(frame.AccessRefused, "EXTERNAL is not offered without TLS")
		}
		return with, frame.ConnectionError(frame.CommandInvalid, "unknown authentication mechanism '%s'", frame.Clip(mechanism))
	}
	var user, secret string
	var ok bool
	switch mechanism {
	case external:
		if len(c.tls.PeerCertificates) == 0 {
			return with, frame.ConnectionError(frame.AccessRefused, "Login was refused using authentication mechanism EXTERNAL: the client presented no certificate")
		}
		return with, nil
	case plain:
		user, secret, ok = parsePlain(response)
	case amqplain:
		user, secret, ok = parseAMQPlain(response)
	case scram:
		x, err := identity.NewScramExchange(response)
		if err != nil {
			return with, frame.ConnectionError(frame.AccessRefused, "Login was refused using authentication mechanism %s: %v", mechanism, err)
		}
		with.Username, with.Prove, c.proof = c.p.qualified(x.User()), c.proves(x), x
		return with, nil
	}
	if !ok {
		return with, frame.ConnectionError(frame.AccessRefused, "Login was refused using authentication mechanism %s: the response is malformed", mechanism)
	}
	with.Username = c.p.qualified(user)
	return withSecret(with, secret), nil
}

// proves has the client prove that it has its password.
func (c *conn) proves(x *identity.ScramExchange) func(identity.Scram) error {
	asked := false
	var verdict error
	return func(v identity.Scram) error {
		if asked {
			if verdict == nil && !x.Used(v) {
				return identity.ErrPassword // it was changed just now
			}
			return verdict
		}
		asked = true
		var last string
		if last, verdict = c.challenge(x.Challenge(v)); verdict == nil {
			verdict = x.Verify(last)
		}
		return verdict
	}
}

// challenge asks the client, and returns what it answers.
func (c *conn) challenge(text string) (string, error) {
	if err := c.send(0, &frame.ConnectionSecure{Challenge: text}); err != nil {
		return "", err
	}
	ok, err := expect[*frame.ConnectionSecureOk](c, time.Now().Add(connectTimeout))
	if err != nil {
		return "", err
	}
	return string(ok.Response), nil
}

// qualified is a user's name with its account, which a dot may stand behind for clients that
// make an address of it.
func (p *Protocol) qualified(user string) string {
	if account, name, ok := strings.Cut(user, "."); ok && !strings.Contains(user, "/") {
		return account + "/" + name
	}
	if p.Account != "" && user != "" && !strings.Contains(user, "/") {
		return p.Account + "/" + user
	}
	return user
}

// withSecret is with and a secret, which is a password or a bearer token.
func withSecret(with identity.Credentials, secret string) identity.Credentials {
	if identity.IsBearer(secret) {
		with.Bearer = secret
	} else {
		with.Password = secret
	}
	return with
}

// parsePlain reads a response of PLAIN, RFC 4616. An identity to act as is ignored, as
// RabbitMQ does.
func parsePlain(response string) (user, password string, ok bool) {
	parts := strings.Split(response, "\x00")
	if len(parts) != 3 {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// parseAMQPlain reads a response of AMQPLAIN: a table without its length.
func parseAMQPlain(response string) (user, password string, ok bool) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(response)))
	t, err := frame.DecodeTable(append(b, response...))
	if err != nil {
		return "", "", false
	}
	user, ok = t["LOGIN"].(string)
	password, also := t["PASSWORD"].(string)
	return user, password, ok && also
}
