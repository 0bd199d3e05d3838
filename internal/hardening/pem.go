package hardening

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// soon is how long a certificate has to be good yet.
const soon = 30 * 24 * time.Hour

// systemBundles are where systems keep the authorities that they trust for everything.
func systemBundles() []string {
	return []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/tls/certs/ca-bundle.trust.crt",
		"/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/pki/ca-trust/extracted/openssl/ca-bundle.trust.crt", "/var/lib/ca-certificates/ca-bundle.pem", "/usr/share/ssl/certs/ca-bundle.crt", "/usr/local/share/certs/ca-root-nss.crt"}
}

// systemBundle reports whether a path is one of them, or of a directory of them.
func systemBundle(path string) bool {
	clean := filepath.Clean(path)
	return slices.Contains(systemBundles(), clean) || clean == "/etc/ssl/certs" || clean == "/etc/pki/tls/certs" ||
		strings.HasSuffix(clean, "/certifi/cacert.pem") || strings.HasPrefix(clean, "/usr/share/ca-certificates/mozilla/") || strings.HasPrefix(clean, "/etc/pki/ca-trust/extracted/")
}

// publicRoots are words in the names of public authorities.
func publicRoots() []string {
	return []string{"ISRG Root", "DigiCert", "GlobalSign", "USERTrust", "Sectigo", "COMODO", "AAA Certificate Services", "Baltimore CyberTrust", "Entrust", "Go Daddy", "GoDaddy", "Starfield", "Amazon Root", "GTS Root", "VeriSign", "Thawte", "GeoTrust", "QuoVadis", "SwissSign", "Certum", "Buypass", "Let's Encrypt", "ZeroSSL", "IdenTrust", "DST Root", "Microsoft RSA Root", "Microsoft ECC Root", "Actalis", "T-TeleSec", "SSL.com", "HARICA", "TWCA", "Network Solutions"}
}

// certificates are those in a file of PEM.
func certificates(data []byte) (all []*x509.Certificate, err error) {
	for len(all) < 1000 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all, nil
		}
		if !strings.HasSuffix(block.Type, "CERTIFICATE") {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

// bundle judges the file of authorities that key names, and returns their fingerprint.
func (a *audit) bundle(named string, at place, by *file) (fingerprint string) {
	fix := "name a file that has the authority of the brokers' and services' certificates alone"
	if systemBundle(named) {
		a.fail("4", at, fix, "the authorities are those that the system trusts for everything: %s", named)
		return ""
	}
	f := a.disk.look(a, named, by)
	if f == nil {
		a.unknown("4", at, "name the file, or --root DIR", "%s is not among the files here", named)
		return ""
	}
	f.used = true
	if f.Link != "" && (systemBundle(f.Link) || systemBundle(filepath.Join(filepath.Dir(f.Abs), f.Link))) {
		a.fail("4", at, fix, "%s is a link to the authorities that the system trusts for everything, %s", named, f.Link)
		return ""
	}
	certs, err := certificates(f.Data)
	switch {
	case f.gone:
		a.unknown("4", at, "name the file, or --root DIR", "%s is a link to %s, which is not among the files here", named, f.Link)
		return ""
	case err != nil:
		a.unread(f.Path, 0, "it has a certificate that cannot be read: %v", err)
		a.unknown("4", at, fix, "%s cannot be read", named)
		return ""
	case len(certs) == 0:
		a.fail("4", at, fix, "%s has no certificate", named)
		return ""
	case len(certs) > 3:
		a.fail("4", at, fix, "%s has %d certificates; more than 3 are not one authority of your own", named, len(certs))
	}
	if same := a.sameAsSystem(f); same != "" {
		a.fail("4", at, fix, "%s has what the system's bundle %s has", named, same)
	}
	var prints []string
	for _, c := range certs {
		sum := sha256.Sum256(c.Raw)
		prints = append(prints, hex.EncodeToString(sum[:8]))
		name := c.Subject.String()
		if !c.IsCA {
			a.fail("4", at, fix, "%s has a certificate that is no authority: %s", named, name)
		}
		if i := slices.IndexFunc(publicRoots(), func(word string) bool { return strings.Contains(strings.ToLower(name), strings.ToLower(word)) }); i >= 0 {
			a.fail("4", at, fix, "%s has a public authority, which signs for everybody: %s", named, name)
		}
		a.strong(c, named, at)
		a.expiry(c, named, at)
	}
	if f.Mode.Perm()&0o022 != 0 {
		a.fail("4", place{file: f.Path, text: fmt.Sprintf("mode %04o", f.Mode.Perm())}, "chmod go-w "+f.Abs, "others may add an authority: the mode of %s is %04o", named, f.Mode.Perm())
	}
	if !a.about("4", named) {
		a.add("4", Pass, at, "", "%s has %d of your own", named, len(certs))
	}
	slices.Sort(prints)
	return strings.Join(prints, ",")
}

// about reports whether something is wrong by a rule with what is called so.
func (a *audit) about(rule, name string) bool {
	return slices.ContainsFunc(a.r.Findings, func(f Finding) bool {
		return f.Rule == rule && (f.Verdict == Fail || f.Verdict == Warn) && strings.Contains(f.Text, name)
	})
}

func (a *audit) sameAsSystem(f *file) string {
	for _, other := range a.disk.files {
		if other != f && systemBundle(other.Abs) && bytes.Equal(other.Data, f.Data) {
			return other.Abs
		}
	}
	return ""
}

// expiry judges when a certificate ends.
func (a *audit) expiry(c *x509.Certificate, named string, at place) {
	name, fix := c.Subject.String(), "renew it"
	switch left := c.NotAfter.Sub(a.o.Now); {
	case left <= 0:
		a.fail("9", at, fix, "a certificate in %s ended at %s: %s", named, c.NotAfter.UTC().Format(time.DateOnly), name)
	case a.o.Now.Before(c.NotBefore):
		a.fail("9", at, "look at the clock, or wait", "a certificate in %s is not good before %s: %s", named, c.NotBefore.UTC().Format(time.DateOnly), name)
	case left < soon:
		a.warn("9", at, fix, "a certificate in %s ends at %s, in %d days: %s", named, c.NotAfter.UTC().Format(time.DateOnly), int(left.Hours()/24), name)
	default:
		a.add("9", Pass, at, "", "a certificate in %s is good until %s: %s", named, c.NotAfter.UTC().Format(time.DateOnly), name)
	}
}

// strong judges the key and the signature of a certificate.
func (a *audit) strong(c *x509.Certificate, named string, at place) {
	weak := ""
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 2048 {
			weak = fmt.Sprintf("an RSA key of %d bits", n)
		}
	case *ecdsa.PublicKey:
		if n := key.Curve.Params().BitSize; n < 224 {
			weak = fmt.Sprintf("an elliptic key of %d bits", n)
		}
	}
	if c.PublicKeyAlgorithm == x509.DSA {
		weak = "a DSA key"
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		if !bytes.Equal(c.RawSubject, c.RawIssuer) || weak == "" {
			weak = "the signature " + c.SignatureAlgorithm.String()
		}
	}
	if weak != "" {
		a.fail("6", at, "make one with an RSA key of 3072 bits, or ECDSA P-256, and SHA-256", "a certificate in %s has %s: %s", named, weak, c.Subject.String())
	}
}

// certificate judges the file of a certificate that key names, and its names.
func (a *audit) certificate(named string, at place, by *file, server bool, hosts []string) *x509.Certificate {
	f := a.disk.find(a, named, by)
	if f == nil {
		a.unknown("9", at, "name the file, or --root DIR", "%s is not among the files here", named)
		return nil
	}
	a.pemMode(f, at, "the certificate "+named, 0o177, Warn)
	certs, err := certificates(f.Data)
	if err != nil || len(certs) == 0 {
		a.unread(f.Path, 0, "it has no certificate that can be read")
		return nil
	}
	c := certs[0]
	for _, each := range certs {
		a.expiry(each, named, at)
		a.strong(each, named, at)
	}
	if server {
		if len(c.DNSNames)+len(c.IPAddresses) == 0 {
			a.fail("6", at, "make one with the broker's names and addresses as subjectAltName", "the certificate in %s has no subjectAltName: clients that look at names refuse it", named)
		}
		for _, host := range hosts {
			if !everywhere(host) && !local(host) && c.VerifyHostname(host) != nil && len(c.DNSNames)+len(c.IPAddresses) > 0 {
				add := a.warn
				if len(c.DNSNames) > 0 {
					add = a.unknown // clients may use the name: their files say
				}
				add("6", at, "make one with all names and addresses of the broker", "the certificate in %s is not for %s, where the broker listens: clients that use that address refuse it", named, host)
			}
		}
		if len(c.ExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			a.fail("6", at, "make one for servers", "the certificate in %s is not for a server", named)
		}
	}
	return c
}

// key judges the file of a key that key names.
func (a *audit) key(named string, at place, by *file) {
	f := a.disk.find(a, named, by)
	if f == nil {
		a.unknown("5", at, "name the file, or --root DIR", "%s is not among the files here", named)
		return
	}
	if a.pemMode(f, at, "the key "+named, 0o177, Fail) {
		a.add("5", Pass, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "", "the key %s is for its owner alone", named)
	}
}

func (a *audit) pemMode(f *file, _ place, what string, more fs.FileMode, v Verdict) bool {
	return a.modes("5", f, what, more, v)
}

// strayKeys looks at keys that no setting names.
func (a *audit) strayKeys() {
	for _, f := range a.disk.files {
		if !f.used && bytes.Contains(f.Data, []byte("PRIVATE KEY-----")) && !bytes.HasPrefix(bytes.TrimSpace(f.Data), []byte("{")) {
			if a.modes("5", f, "the key "+f.Path, 0o177, Fail) {
				a.add("5", Pass, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "", "the key is for its owner alone")
			}
		}
	}
}

// covers reports whether a certificate is for a host.
func covers(c *x509.Certificate, host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	return c.VerifyHostname(host) == nil
}
