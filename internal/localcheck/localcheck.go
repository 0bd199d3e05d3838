// Package localcheck looks for what is wrong on this machine: it needs no server and no
// network.
package localcheck

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/human"
)

// checkDir looks at the data directory.
func checkDir(dir string) []doctor.Finding {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []doctor.Finding{{
			Code: "DATA-DIR-MISSING", Severity: doctor.Info, Subject: dir,
			Text: "there is no node on this machine", Fix: "fleetbus init",
		}}
	case err != nil:
		return []doctor.Finding{unreadable(dir, err)}
	case info.Mode().Perm()&0o077 != 0:
		return []doctor.Finding{{
			Code: "DATA-DIR-OPEN", Severity: doctor.Problem, Subject: dir,
			Text: fmt.Sprintf("others may enter the data directory (mode %04o)", info.Mode().Perm()), Fix: "chmod 700 " + dir,
		}}
	}
	return nil
}

// checkSecrets looks for secrets that others can read, and counts all.
func checkSecrets(dir string) (found []doctor.Finding, n int) {
	for _, pattern := range []string{"authority.json", "box.nk", "admin/*.creds", "offline/*"} {
		// The pattern is well-formed.
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range paths {
			n++
			info, err := os.Stat(path)
			if err != nil {
				found = append(found, unreadable(path, err))
			} else if info.Mode().Perm()&0o077 != 0 && !info.IsDir() {
				found = append(found, openSecret(path, info.Mode()))
			}
		}
	}
	return found, n
}

func openSecret(path string, mode fs.FileMode) doctor.Finding {
	return doctor.Finding{
		Code: "SECRET-OPEN", Severity: doctor.Problem, Subject: path,
		Text: fmt.Sprintf("others may read a secret (mode %04o)", mode.Perm()), Fix: "chmod 600 " + path,
	}
}

func unreadable(path string, err error) doctor.Finding {
	return doctor.Finding{
		Code: "DATA-DIR-UNREADABLE", Severity: doctor.Warning, Subject: path,
		Text: fmt.Sprintf("it cannot be looked at: %v", err), Fix: "run it as the user that the server runs as",
	}
}

// The free disk space, in bytes, below which checkDisk warns, and below which
// the server refuses durable writes by default.
const (
	lowDisk  = 2 << 30
	fullDisk = 256 << 20
)

// diskFindings judges the free bytes of a disk.
func diskFindings(dir string, free, reserve int64) []doctor.Finding {
	f := doctor.Finding{
		Code: "DISK-LOW", Severity: doctor.Warning, Subject: dir,
		Text: human.Size(free) + " of disk are free", Fix: "free some, or set store.max_file",
	}
	switch {
	case free >= max(lowDisk, 2*reserve):
		return nil
	case free < cmp.Or(reserve, fullDisk):
		f.Code, f.Severity = "DISK-FULL", doctor.Problem
	}
	return []doctor.Finding{f}
}

// checkClock holds the clock against the fleet's authority, which was made in the
// past and ends in the future.
func checkClock(dir string, now time.Time) []doctor.Finding {
	path := filepath.Join(dir, "admin", "ca.pem")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // there is no authority here to compare with
	}
	var found []doctor.Finding
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			found = append(found, doctor.Finding{
				Code: "AUTHORITY-UNREADABLE", Severity: doctor.Problem, Subject: path,
				Text: fmt.Sprintf("the authority cannot be read: %v", err), Fix: "copy the file from another node",
			})
		case now.Before(cert.NotBefore):
			found = append(found, doctor.Finding{
				Code: "CLOCK-BEHIND", Severity: doctor.Problem, Subject: "clock",
				Text: fmt.Sprintf("this machine's clock says %s, before the fleet was made", human.Time(now)), Fix: "timedatectl set-ntp true",
			})
		case now.After(cert.NotAfter):
			found = append(found, doctor.Finding{
				Code: "AUTHORITY-EXPIRED", Severity: doctor.Problem, Subject: path,
				Text: fmt.Sprintf("the authority ended at %s, or this machine's clock is ahead", human.Time(cert.NotAfter)), Fix: "timedatectl set-ntp true",
			})
		}
	}
	return found
}
