package accounts

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
)

// userKeys are the private keys of a user, which stay on this machine.
type userKeys struct {
	// seed of the key in a creds file, key of a client certificate; nil if there
	// is none.
	seed []byte
	key  *ecdsa.PrivateKey
	// bearer is the text of a bearer token.
	bearer string
}

// makeBearer makes a bearer token. Only its hash is sent.
func (k *userKeys) makeBearer(request *admin.UserRequest) error {
	account, name, err := identity.SplitName(request.Name)
	if err != nil {
		return err
	}
	k.bearer, request.Bearer, err = identity.NewBearer(account, name)
	return err
}

// makeKey makes the key of a creds file and asks for its JWT.
func (k *userKeys) makeKey(request *admin.UserRequest) (err error) {
	request.Key, k.seed, err = identity.NewUserKey()
	return err
}

// useKey asks for a JWT for a key that exists.
func (k *userKeys) useKey(pair nkeys.KeyPair, request *admin.UserRequest) (err error) {
	if request.Key, err = pair.PublicKey(); err != nil {
		return fmt.Errorf("reading a key: %w", err)
	}
	if k.seed, err = pair.Seed(); err != nil {
		return fmt.Errorf("reading a key: %w", err)
	}
	return nil
}

// makeCSR makes the key of a client certificate and asks for the certificate.
func (k *userKeys) makeCSR(request *admin.UserRequest) (err error) {
	if k.key, err = identity.NewKey(); err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	return k.useCSR(request)
}

// useCSR asks for a certificate for k.key.
func (k *userKeys) useCSR(request *admin.UserRequest) error {
	csr, err := identity.NewCSR(k.key)
	if err != nil {
		return err
	}
	request.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
	return nil
}

// loadCreds takes the key of a creds file, to have its JWT renewed.
func (k *userKeys) loadCreds(path string, request *admin.UserRequest) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return command.Fail(command.ExitNotFound, "name the file that the user has: what is renewed is for its key", "reading the credentials: there is no %q", path)
	}
	if err != nil {
		return fmt.Errorf("reading the credentials: %w", err)
	}
	pair, err := jwt.ParseDecoratedUserNKey(data)
	if err != nil {
		return fmt.Errorf("reading the credentials %q: %w", path, err)
	}
	return k.useKey(pair, request)
}

// loadKey takes the key of a client certificate, to have it renewed.
func (k *userKeys) loadKey(path string, request *admin.UserRequest) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("reading the key %q: it is not a PEM file", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("reading the key %q: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("reading the key %q: it is not one that user add made", path)
	}
	k.key = key
	return k.useCSR(request)
}

// certificateFiles are the files of a client certificate, none without a prefix.
func (k *userKeys) certificateFiles(prefix string, reply admin.UserReply) []command.SecretFile {
	if k.key == nil {
		return nil
	}
	// A P-256 key that was just made or parsed can be encoded.
	der, _ := x509.MarshalPKCS8PrivateKey(k.key)
	return []command.SecretFile{
		{Path: prefix + ".key", Data: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), Mode: 0o600},
		{Path: prefix + ".crt", Data: []byte(reply.Chain), Mode: 0o644},
		{Path: prefix + "-ca.pem", Data: []byte(reply.CA), Mode: 0o644},
	}
}
