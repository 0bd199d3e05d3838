package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/hub"
)

// checkFiles looks at the files that o names: whether they can be read, hold
// what they should, and keep their secrets.
func checkFiles(root *node, o *fleetbus.Options, h *hub.Options, q *linkSettings) []Problem {
	c := checker{root: root}
	c.authorities("hub.ca", h.CA)
	c.pair("hub.", h.Cert, h.Key)
	c.read("hub.password_file", h.PasswordFile, true)
	c.authorities("hub.local_ca", q.ca)
	c.pair("hub.local_", q.cert, q.key)
	c.read("hub.local_password_file", q.passwordFile, true)
	c.pair("tls.", o.TLS.Cert, o.TLS.Key)
	for i, path := range o.TLS.CA {
		c.authorities("tls.ca["+strconv.Itoa(i)+"]", path)
	}
	c.read("client.creds", o.Client.Creds, true)
	return c.problems
}

type checker struct {
	root     *node
	problems []Problem
}

func (c *checker) refuse(field, text, fix string) {
	c.problems = append(c.problems, Problem{Place: c.root.at(field), Key: field, Text: text, Fix: fix})
}

// pair looks at a certificate and its key, the keys that are called cert and key behind a
// prefix.
func (c *checker) pair(prefix, certPath, keyPath string) {
	cert := c.read(prefix+"cert", certPath, false)
	key := c.read(prefix+"key", keyPath, true)
	if cert == nil || key == nil {
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		c.refuse(prefix+"key", fmt.Sprintf("%q and %q are not a certificate and its key: %v", certPath, keyPath, err), "name the key that the certificate was issued for")
	}
}

func (c *checker) authorities(field, path string) {
	data := c.read(field, path, false)
	if data == nil {
		return
	}
	if err := parseAuthorities(data); err != nil {
		c.refuse(field, fmt.Sprintf("%q holds no usable authority: %v", path, err), "name a PEM file of CERTIFICATE blocks")
	}
}

// read returns the content of the file, nil without a path or with a problem.
func (c *checker) read(field, path string, secret bool) []byte {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		c.refuse(field, fmt.Sprintf("%q %s", path, reason(err)), "name a file that exists and that this user may read")
		return nil
	case !info.Mode().IsRegular():
		c.refuse(field, fmt.Sprintf("%q is not a regular file", path), "name a file")
		return nil
	case secret && runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0:
		c.refuse(field, fmt.Sprintf("%q is open to every user (mode %04o)", path, info.Mode().Perm()), "chmod 600 "+path)
	}
	f, err := os.Open(path)
	if err != nil {
		c.refuse(field, fmt.Sprintf("%q %s", path, reason(err)), "let this user read it")
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		c.refuse(field, fmt.Sprintf("%q %s", path, reason(err)), "name a file that this user may read")
		return nil
	}
	return data
}

// maxPEM bounds a file of certificates, in bytes: the bundles of all public
// authorities are a fourth of it.
const maxPEM = 1 << 20

// parseAuthorities returns an error unless data holds certificates and nothing
// that fails to parse.
func parseAuthorities(data []byte) error {
	found := false
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("parsing a certificate: %w", err)
		}
		found = true
	}
	if !found {
		return errors.New("no certificate in it")
	}
	return nil
}
