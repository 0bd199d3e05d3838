package probe

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/fleetbus/fleetbus/metrics"
)

// process is what the process costs, as far as this system tells.
func process() []metrics.Sample {
	all := []metrics.Sample{metrics.Of("fleetbus_process_goroutines", float64(runtime.NumGoroutine()))}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		cpu := float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
		all = append(all, metrics.Of("fleetbus_process_cpu_seconds_total", cpu))
	}
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(statm); len(fields) > 1 {
			if pages, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil {
				all = append(all, metrics.Of("fleetbus_process_resident_memory_bytes", float64(pages*int64(os.Getpagesize()))))
			}
		}
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		all = append(all, metrics.Of("fleetbus_process_open_fds", float64(len(open))))
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		all = append(all, metrics.Of("fleetbus_process_max_fds", float64(limit.Cur)))
	}
	return all
}
