package demo

import "syscall"

// tied makes a process end with the one that started it, however that ends, and
// keeps the terminal's interrupt from it.
func tied() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
