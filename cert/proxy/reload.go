package proxy

import (
	"context"
	"fmt"
	"syscall"
)

// reload makes the program read its files again, as the Options say.
func (d *directory) reload(ctx context.Context, _, now []certificate) error {
	if argv := d.reloadCommand(); len(argv) > 0 {
		return run(ctx, d.Timeout, secrets(now), argv...)
	}
	switch {
	case d.Reload.Socket != "":
		return d.reloadMaster(ctx)
	case d.Reload.PIDFile != "":
		return signal(d.Reload.PIDFile, d.reloadSignal())
	}
	return nil
}

// reloadCommand is the command that reloads the program, if it is done by one.
func (d *directory) reloadCommand() []string {
	switch {
	case d.Reload.Unit != "":
		return []string{"systemctl", "reload", d.Reload.Unit}
	case d.Reload.Socket != "" || d.Reload.PIDFile != "":
		return nil
	case len(d.Reload.Command) > 0:
		return d.Reload.Command
	case d.Kind == "nginx":
		return append(d.nginxCommand(), "-s", "reload")
	}
	return nil
}

func (d *directory) reloadSignal() syscall.Signal {
	if d.Kind == "haproxy" {
		return syscall.SIGUSR2
	}
	return syscall.SIGHUP
}

func (d *directory) reloads(_, _ []certificate) []Change {
	if argv := d.reloadCommand(); len(argv) > 0 {
		return []Change{{"run", command(argv)}}
	}
	switch {
	case d.Reload.Socket != "":
		return []Change{{"tell", "reload, at " + d.Reload.Socket}}
	case d.Reload.PIDFile != "":
		return []Change{{"tell", fmt.Sprintf("signal %d, to the process of %s", d.reloadSignal(), d.Reload.PIDFile)}}
	}
	return nil
}
