package identity

import (
	"crypto/x509"
	"net/url"
	"testing"
)

// FuzzSender reads any word of the engine on who sent a message.
func FuzzSender(f *testing.F) {
	f.Add("renew.A", `{"acc":"A","user":"U"}`)
	f.Add("renew.A", `{"acc":"A","acc":"B","user":"U","jwt":"x","tags":["name:alice","name:bob"]}`)
	f.Fuzz(func(t *testing.T, subject, info string) {
		if s, err := ParseSender(info); err == nil && (s.Account == "" || CheckName(s.Name) != nil) {
			t.Errorf("%q is sent by %+v", info, s)
		}
		if account, user, err := RenewalFrom(subject, info); err == nil && (user == "" || account == subject && subject != "") {
			t.Logf("%q, %q: %q %q", subject, info, account, user)
		}
	})
}

// FuzzCertificateName reads any name in a certificate: whoever has one has one alone, and
// one that can be a part of a subject and of a path.
func FuzzCertificateName(f *testing.F) {
	for _, name := range []string{"spiffe://prod/acme/alice", "spiffe://prod/node/n1.abc", "spiffe://prod/region/us/n1.abc", "spiffe://prod/acme/../acme/alice", "spiffe://prod/acme/%61lice", "spiffe://prod//"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		u, err := url.Parse(name)
		if err != nil {
			return
		}
		cert := &x509.Certificate{URIs: []*url.URL{u}}
		account, user, isUser := PrincipalFromCertificate(cert, "prod")
		if isUser && (CheckName(account) != nil || CheckName(user) != nil) {
			t.Errorf("%q is of %q/%q", name, account, user)
		}
		_, isNode := NodeFromCertificate(cert, "prod")
		_, _, isRegion := RegionFromCertificate(cert, "prod")
		if isUser && isNode || isNode && isRegion {
			t.Errorf("%q is of several: a user %v, a node %v, a region %v", name, isUser, isNode, isRegion)
		}
	})
}
