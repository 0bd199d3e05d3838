//go:build !linux

package demo

import "syscall"

// tied keeps the terminal's interrupt from a process. Here, one whose parent is
// killed lives on.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
