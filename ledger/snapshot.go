package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrCorrupt is returned by [ReadSnapshot] for a file that is not, or no longer,
// what [WriteSnapshot] wrote.
var ErrCorrupt = errors.New("the snapshot is corrupt")

// snapshotMagic is the first line of a snapshot. The second is the sequence, the
// payload's length and, if it is known, the ledger's id; the third is the SHA-256 of both lines and the payload;
// the payload follows.
const snapshotMagic = "fleetbus snapshot 1\n"

// WriteSnapshot writes payload, the state as of event seq, to path: after a crash
// at any moment the file is the old one or the new one. The file is readable by
// its owner only. Two writers must not use the same path at the same time.
func WriteSnapshot(path string, seq uint64, payload []byte) error {
	return writeSnapshot(path, seq, "", payload)
}

// writeSnapshot writes a snapshot of the ledger of an id.
func writeSnapshot(path string, seq uint64, ledger string, payload []byte) error {
	if err := replaceFile(path, encodeSnapshot(seq, ledger, payload)); err != nil {
		return fmt.Errorf("writing snapshot %q: %w", path, err)
	}
	return nil
}

// ReadSnapshot reads what [WriteSnapshot] wrote to path. The error wraps
// [ErrCorrupt] if a single bit of it has changed, and [os.ErrNotExist] if there
// is no such file.
func ReadSnapshot(path string) (seq uint64, payload []byte, err error) {
	seq, _, payload, err = readSnapshot(path)
	return seq, payload, err
}

func readSnapshot(path string) (seq uint64, ledger string, payload []byte, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		seq, ledger, payload, err = decodeSnapshot(data)
	}
	if err != nil {
		return 0, "", nil, fmt.Errorf("reading snapshot %q: %w", path, err)
	}
	return seq, ledger, payload, nil
}

func encodeSnapshot(seq uint64, ledger string, payload []byte) []byte {
	head := fmt.Appendf(nil, "%s%d %d", snapshotMagic, seq, len(payload))
	if ledger != "" {
		head = append(append(head, ' '), ledger...)
	}
	head = append(head, '\n')
	data := append(head, snapshotSum(head, payload)...)
	return append(data, payload...)
}

// decodeSnapshot accepts exactly what encodeSnapshot makes.
func decodeSnapshot(data []byte) (seq uint64, ledger string, payload []byte, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(snapshotMagic))
	if !ok {
		return 0, "", nil, fmt.Errorf("%w: no magic line", ErrCorrupt)
	}
	size, rest, _ := bytes.Cut(rest, []byte("\n"))
	_, payload, _ = bytes.Cut(rest, []byte("\n"))
	var length int
	if _, err := fmt.Sscanf(string(size), "%d %d", &seq, &length); err != nil {
		return 0, "", nil, fmt.Errorf("%w: no sequence and length", ErrCorrupt)
	}
	if words := strings.SplitN(string(size), " ", 3); len(words) == 3 {
		ledger = words[2]
	}
	if length != len(payload) {
		return 0, "", nil, fmt.Errorf("%w: %d bytes of %d", ErrCorrupt, len(payload), length)
	}
	if !bytes.Equal(data, encodeSnapshot(seq, ledger, payload)) {
		return 0, "", nil, fmt.Errorf("%w: wrong checksum", ErrCorrupt)
	}
	return seq, ledger, payload, nil
}

// snapshotSum is the third line of a snapshot.
func snapshotSum(head, payload []byte) []byte {
	hash := sha256.New()
	hash.Write(head)
	hash.Write(payload)
	return append(hex.AppendEncode(nil, hash.Sum(nil)), '\n')
}

// replaceFile puts data at path by way of a temporary file beside it, and returns
// when both the file and its name are on the disk.
func replaceFile(path string, data []byte) error {
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
