package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// Lock says who can read a backup: whoever has the passphrase in a file, or the identity
// of one of the recipients. It is the one or the other.
type Lock struct {
	// PassphraseFile is the path of a file whose first line is the passphrase.
	PassphraseFile string
	// Recipients are public keys of age, to make a backup with, and IdentityFile the path
	// of a file with private ones, to read it with.
	Recipients   []string
	IdentityFile string
}

const (
	// minPassphrase is the shortest in bytes: who has the file can try as many as they like.
	minPassphrase = 12
	maxKeys       = 1 << 20
)

// ErrLock says that a Lock is none.
var ErrLock = errors.New("a passphrase or a key is missing")

func (l Lock) passphrase() (string, error) {
	data, err := readSmall(l.PassphraseFile)
	if err != nil {
		return "", err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) < minPassphrase {
		return "", fmt.Errorf("the passphrase in %q has %d characters, and %d are the least", l.PassphraseFile, len(line), minPassphrase)
	}
	return string(line), nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKeys))
}

// recipients are those who can read what is made with l.
func (l Lock) recipients() ([]age.Recipient, error) {
	if (l.PassphraseFile == "") == (len(l.Recipients) == 0) {
		return nil, ErrLock
	}
	if l.PassphraseFile != "" {
		passphrase, err := l.passphrase()
		if err != nil {
			return nil, err
		}
		r, err := age.NewScryptRecipient(passphrase)
		return []age.Recipient{r}, err
	}
	var all []age.Recipient
	for _, text := range l.Recipients {
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return nil, fmt.Errorf("recipient %q is no public key of age: %w", text, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// Identities are what opens a backup that was made with l.
func (l Lock) Identities() ([]age.Identity, error) {
	switch {
	case (l.PassphraseFile == "") == (l.IdentityFile == ""):
		return nil, ErrLock
	case l.PassphraseFile != "":
		passphrase, err := l.passphrase()
		if err != nil {
			return nil, err
		}
		i, err := age.NewScryptIdentity(passphrase)
		return []age.Identity{i}, err
	}
	data, err := readSmall(l.IdentityFile)
	if err != nil {
		return nil, err
	}
	all, err := age.ParseIdentities(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%q has no private key of age", l.IdentityFile) // the reason may quote it
	}
	return all, nil
}

// Save has a node make a backup, and writes it to w, locked by l. Each stream is told to
// progress as it begins. On the way it is encrypted to a key that only this call has.
func Save(ctx context.Context, c *admin.Client, r admin.BackupRequest, w io.Writer, l Lock, progress func(Stream)) (m Manifest, end End, err error) {
	recipients, err := l.recipients()
	if err != nil {
		return m, end, err
	}
	way, err := age.GenerateX25519Identity()
	if err != nil {
		return m, end, fmt.Errorf("making a key: %w", err)
	}
	r.Recipient = way.Recipient().String()
	from, to := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		to.CloseWithError(c.Backup(ctx, r, to))
	}()
	defer func() {
		cancel()
		from.Close()
		<-done
	}()
	opened, err := age.Decrypt(from, way)
	if err != nil {
		return m, end, err
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return m, end, fmt.Errorf("encrypting the backup: %w", err)
	}
	m, end, err = look(func(to Sink) (End, error) { return readPlain(io.TeeReader(opened, sealed), to) }, progress)
	return m, end, errors.Join(err, sealed.Close())
}

// Verify reads a backup to its end, and makes of it what a restore would make, in memory.
func Verify(r io.Reader, l Lock, progress func(Stream)) (m Manifest, end End, err error) {
	identities, err := l.Identities()
	if err != nil {
		return m, end, err
	}
	return look(func(to Sink) (End, error) { return Read(r, to, identities...) }, progress)
}

func look(read func(Sink) (End, error), progress func(Stream)) (m Manifest, end End, err error) {
	end, err = read(Sink{
		Begin: func(found Manifest, authority, directory []byte) error {
			m = found
			a := new(identity.Authority)
			if err := errors.Join(a.Unmarshal(authority), identity.NewDirectory().Unmarshal(directory)); err != nil {
				return fmt.Errorf("%w: %w", ErrBackup, err)
			}
			if a.Hash() != m.Hash {
				return fmt.Errorf("%w: its secrets are of another fleet", ErrBackup)
			}
			return nil
		},
		Stream: func(d Stream) error { progress(d); return nil },
		Data: func(r io.Reader) error {
			if _, err := io.Copy(io.Discard, r); err != nil {
				return fmt.Errorf("%w: %w", ErrBackup, err)
			}
			return nil
		},
	})
	return m, end, err
}
