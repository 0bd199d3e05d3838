//go:build unix

package home

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Give leaves everything in dir to the owner of dir, if it is root who asks and the
// owner is somebody else: what root makes there, the service of that owner reads.
func Give(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("leaving %q to its owner: %w", dir, err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	// Within the directory, whoever else writes to it: no name there leads out of it.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("leaving %q to its owner: %w", dir, err)
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = root.Lchown(name, int(owner.Uid), int(owner.Gid))
		}
		if err != nil {
			return fmt.Errorf("leaving %q to its owner: %w", filepath.Join(dir, name), err)
		}
		return nil
	})
}
