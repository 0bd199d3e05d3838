package cert

import (
	"bytes"
	"crypto/tls"
	"slices"
)

// TLSConfig returns a copy of base, which may be nil, that serves the store's
// certificates, answers tls-alpn-01 challenges, and resumes a session only while the
// certificate is served that it began with. Without that, who has a ticket of a session
// with a revoked certificate would go on for a week.
func (s *Store) TLSConfig(base *tls.Config) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		config = base.Clone()
	}
	config.GetCertificate = s.GetCertificate
	others := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// Authorities alone say this, and nobody else is to be refused for it.
		if isChallenge(hello) {
			return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{ALPNProto}, GetCertificate: s.GetCertificate, SessionTicketsDisabled: true}, nil
		}
		if others != nil {
			return others(hello)
		}
		return nil, nil
	}
	config.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		ss.Extra = append(ss.Extra, s.sessionMark(cs.ServerName))
		return config.EncryptTicket(cs, ss)
	}
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := config.DecryptTicket(identity, cs)
		if ss == nil || err != nil {
			return nil, err
		}
		mark := s.sessionMark(cs.ServerName)
		if !slices.ContainsFunc(ss.Extra, func(extra []byte) bool { return bytes.Equal(extra, mark) }) {
			return nil, nil // the handshake is a whole one
		}
		return ss, nil
	}
	return config
}

// sessionMark tells which certificates are served for a name; for none or an unknown
// one, which are served by default, or for addresses.
func (s *Store) sessionMark(name string) []byte {
	mark := []byte("fleetbus cert")
	var buf [maxName]byte
	x, asked := s.index.Load(), ask(name, &buf)
	for _, l := range []choices{asked.in(x.names), asked.parentIn(x.wildcards), x.fallback[0], x.fallback[1]} {
		for _, c := range l.all {
			mark = append(mark, c.mark[:]...)
		}
		if l.all != nil {
			return mark
		}
	}
	return append(mark, x.addressed[:]...)
}
