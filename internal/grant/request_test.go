package grant_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/grant"
)

// TestWrongRequests asks for certificates by every wrong request, and by those that ask for
// more than there is to have: nothing but the key is taken from a request.
func TestWrongRequests(t *testing.T) {
	authority, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	acme, err := authority.NewAccount("acme", identity.Limits{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := grant.Fleet{Authority: authority, Directory: identity.NewDirectory(), Account: func(name string) (identity.Account, bool) { return acme, name == acme.Name }}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request := func(key crypto.Signer, edit func(*x509.CertificateRequest)) []byte {
		template := &x509.CertificateRequest{}
		if edit != nil {
			edit(template)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	short, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(der []byte) (*x509.Certificate, error) {
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		g, err := grant.New(f, "acme", "app", admin.UserRequest{Name: "acme/app", CSR: text, Expires: time.Hour})
		if err != nil {
			return nil, err
		}
		var reply admin.UserReply
		if err := g.Issue(&reply); err != nil {
			return nil, err
		}
		block, _ := pem.Decode([]byte(reply.Chain))
		return x509.ParseCertificate(block.Bytes)
	}
	good := request(key, nil)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	other := request(key, func(r *x509.CertificateRequest) { r.Subject.CommonName = "alice" })
	renamed := []byte(strings.Replace(string(other), "alice", "admin", 1))
	for name, c := range map[string]struct {
		der  []byte
		want string
	}{
		"a wrong signature":        {forged, "certificate request"},
		"changed after the signer": {renamed, "certificate request"},
		"a key of 1024 bits":       {request(rsaKey(1024), nil), "1024 bits"},
		"a curve that is too weak": {request(short, nil), "P-224"},
		"and more behind it":       {append(slices.Clone(good), 0), "cannot be read"},
		"half of one":              {good[:len(good)/2], "cannot be read"},
		"nothing":                  {nil, "cannot be read"},
	} {
		_, err := ask(c.der)
		var refused *admin.Error
		if !errors.As(err, &refused) || refused.Code != admin.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	isCA := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	forServers := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}}
	signs := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}}
	for name, edit := range map[string]func(*x509.CertificateRequest){
		"an authority": func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{isCA, signs} },
		"a server":     func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{forServers} },
		"another's name": func(r *x509.CertificateRequest) {
			r.URIs = []*url.URL{{Scheme: "spiffe", Host: "fleet", Path: "/FLEET/admin"}}
		},
		"a node's name": func(r *x509.CertificateRequest) {
			r.URIs, r.DNSNames, r.IPAddresses = []*url.URL{{Scheme: "spiffe", Host: "fleet", Path: "/node/n1"}}, []string{"n1", "*"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		},
		"another subject": func(r *x509.CertificateRequest) {
			r.Subject = pkix.Name{CommonName: "admin", Organization: []string{"FLEET"}}
		},
		"something of its own": func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		},
		"much": func(r *x509.CertificateRequest) { r.DNSNames = []string{strings.Repeat("a", 60_000)} },
	} {
		c, err := ask(request(key, edit))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		account, user, ok := identity.PrincipalFromCertificate(c, "fleet")
		if !ok || account != "acme" || user != "app" || c.Subject.CommonName != "app" || len(c.URIs) != 1 || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 {
			t.Errorf("%s: it is for %s/%s, %v, %v %v %v", name, account, user, c.Subject, c.URIs, c.DNSNames, c.IPAddresses)
		}
		if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(c.UnhandledCriticalExtensions) > 0 || len(c.Raw) > 2000 {
			t.Errorf("%s: it may %v %v as an authority %v, with %d bytes", name, c.KeyUsage, c.ExtKeyUsage, c.IsCA, len(c.Raw))
		}
		if public, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
			t.Errorf("%s: it has another key", name)
		}
		if time.Until(c.NotAfter) > time.Hour+time.Minute {
			t.Errorf("%s: it holds until %v", name, c.NotAfter)
		}
	}
}
