package cert

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A TargetKey is what makes a target: who it is, whom it believes, and what it opens
// by what is sealed to it. It prints without its secret, and is safe for concurrent
// use if nobody changes it.
type TargetKey struct {
	// Account whose certificates the target serves, and its Name there.
	Account, Name string
	// Groups whose certificates it serves.
	Groups []string
	// Signers are the managers that it believes.
	Signers []Signer
	// Seal opens what is sealed to the target. What it signs its reports with is derived
	// from it, so that it has one secret to keep.
	Seal *SealKey
}

const (
	// The text of a target's key begins with this.
	targetKeyPrefix = "fleetbus-target-key-1"
	// maxTargetKey bounds what is read as a target's key, in bytes.
	maxTargetKey = 64 << 10
)

// Text is the key for a file that only the target reads. ParseTargetKey reads it.
func (k *TargetKey) Text() (string, error) {
	if err := k.validate(); err != nil {
		return "", fmt.Errorf("writing a target's key: %w", err)
	}
	secret, err := k.Seal.Bytes()
	if err != nil {
		return "", fmt.Errorf("writing a target's key: %w", err)
	}
	signers := make([]string, len(k.Signers))
	for i, s := range k.Signers {
		signers[i] = string(s)
	}
	words := []string{targetKeyPrefix, k.Account, k.Name, strings.Join(k.Groups, ","), strings.Join(signers, ","), base64.RawURLEncoding.EncodeToString(secret)}
	return strings.Join(words, " ") + "\n", nil
}

// ParseTargetKey reads what Text returned. The error never quotes it.
func ParseTargetKey(text string) (*TargetKey, error) {
	if len(text) > maxTargetKey {
		return nil, errors.New("reading a target's key: it is too long to be one")
	}
	words := strings.Fields(text)
	if len(words) != 6 || words[0] != targetKeyPrefix {
		return nil, errors.New("reading a target's key: it is none")
	}
	k := &TargetKey{Account: words[1], Name: words[2], Groups: strings.Split(words[3], ",")}
	for s := range strings.SplitSeq(words[4], ",") {
		k.Signers = append(k.Signers, Signer(s))
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(words[5])
	if err == nil {
		k.Seal, err = ParseSealKey(secret)
	}
	if err != nil {
		return nil, errors.New("reading a target's key: it is damaged")
	}
	if err := k.validate(); err != nil {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	return k, nil
}

// signing is what the target signs with.
func (k *TargetKey) signing() (ed25519.PrivateKey, error) {
	secret, err := k.Seal.Bytes()
	if err != nil {
		return nil, fmt.Errorf("deriving a target's signing key: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "fleetbus cert v1 target sign", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("deriving a target's signing key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Signer is who signs the target's reports, as managers are to know it.
func (k *TargetKey) Signer() (Signer, error) {
	key, err := k.signing()
	if err != nil {
		return "", err
	}
	return signerOf(key), nil
}

// Inbox is what the target's connections are made with, as nats.CustomInboxPrefix.
func (k *TargetKey) Inbox() string { return inbox(k.Name) }

// Sign returns a report as it stands in the ledger under subject.
func (k *TargetKey) Sign(subject string, report Seen) ([]byte, error) {
	key, err := k.signing()
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("encoding %q: %w", subject, err)
	}
	return sign(key, subject, payload), nil
}

func (k *TargetKey) validate() error {
	for _, name := range append([]string{k.Account, k.Name}, k.Groups...) {
		if !IsToken(name) {
			return errors.New("its account, name and groups have to be one word each")
		}
	}
	if len(k.Groups) == 0 || len(k.Signers) == 0 || k.Seal == nil {
		return errors.New("it has no group, no signer or no secret")
	}
	if sorted := slices.Sorted(slices.Values(k.Groups)); len(slices.Compact(sorted)) != len(k.Groups) {
		return errors.New("it has a group twice")
	}
	for _, s := range k.Signers {
		if err := s.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// IsToken reports whether s can be the name of a group, a target or an issuer: one token
// of a subject, and part of the name of a file. It has at most 64 letters, digits, dashes
// and underscores, and does not begin with a dash.
func IsToken(s string) bool {
	return s != "" && len(s) <= 64 && s[0] != '-' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// ReadTargetKey reads the key in a file, which nobody but its owner may read.
func ReadTargetKey(path string) (*TargetKey, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading a target's key: %s is no file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("reading a target's key: others can read %s, which has mode %04o: chmod 600 %s", path, mode, path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxTargetKey+1))
	if err != nil {
		return nil, fmt.Errorf("reading a target's key: %w", err)
	}
	return ParseTargetKey(string(text))
}

// WriteTargetKey writes the key to a file that nobody but its owner may read. After a
// crash at any moment the file is the old one or the new one.
func WriteTargetKey(path string, k *TargetKey) error {
	text, err := k.Text()
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".target-key-*") // its mode is 0600
	if err != nil {
		return fmt.Errorf("writing a target's key: %w", err)
	}
	_, err = file.WriteString(text)
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing a target's key: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}

// String says whose key it is.
func (k *TargetKey) String() string {
	return fmt.Sprintf("key of target %s of account %s", k.Name, k.Account)
}

// Format writes String for every verb, so that none of them shows the secret.
func (k *TargetKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }
