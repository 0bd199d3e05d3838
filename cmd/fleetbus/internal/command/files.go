package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A SecretFile is a file that is written as a whole or not at all.
type SecretFile struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// Write makes the file. One that exists is replaced if over is set.
func (s SecretFile) Write(over bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(s.Path), ".fleetbus-*")
	if err != nil {
		return fmt.Errorf("writing %q: %w", s.Path, err)
	}
	// Once the file has its name there is nothing to remove.
	defer os.Remove(f.Name())
	_, err = f.Write(s.Data)
	if err = errors.Join(err, f.Chmod(s.Mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %q: %w", s.Path, err)
	}
	// A link, unlike a renaming, does not replace what is there.
	put := os.Link
	if over {
		put = os.Rename
	}
	if err := put(f.Name(), s.Path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return Fail(ExitConflict, "choose another name, or add --yes to write over it", "file %q exists", s.Path)
		}
		return fmt.Errorf("writing %q: %w", s.Path, err)
	}
	return nil
}
