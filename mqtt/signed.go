package mqtt

import (
	"errors"
	"strings"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/signed"
	"github.com/fleetbus/fleetbus/mqtt/packet"
	"github.com/fleetbus/fleetbus/signing"
)

// maxWhy is how long a client is told why a message is refused, in bytes.
const maxWhy = 200

// mustSign reports whether what the client publishes to a subject must be signed.
func (s *session) mustSign(subject string) bool {
	return s.login.Principal.Signing == identity.SigningRequired && !identity.Unsigned(subject)
}

// verified asks whether a message is signed by somebody who may publish it. It is asked
// once, before the message is stored or anybody hears it. One of QoS 2 that was stored
// already is not asked for again.
func (s *session) verified(to address, p *packet.Publish) packet.Code {
	if p.QoS == 2 {
		s.mu.Lock()
		known := s.in[p.ID] != nil
		s.mu.Unlock()
		if known {
			return packet.Success
		}
	}
	s.flush()
	text, found := "", 0
	for _, pair := range p.UserProperties {
		if string(pair.Name) == signing.Header {
			text = string(pair.Value)
			found++
		}
	}
	err := signing.ErrMalformed
	if found < 2 {
		err = signed.Ask(s.ctx, s.a.conn.Conn, to.subject, to.subject, text, p.Payload)
	}
	if err != nil && s.texts {
		s.why = strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxWhy)], "")
	}
	switch {
	case err == nil:
		return packet.Success
	case errors.Is(err, signed.ErrUnavailable):
		s.log("the signature of a message could not be verified", "subject", clip(to.subject), "error", err)
		return packet.ImplementationSpecificError
	}
	s.log("a message was refused for its signature", "subject", clip(to.subject), "error", err)
	return packet.NotAuthorized
}
