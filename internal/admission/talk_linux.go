package admission

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// talk is how much a client may say until its handshake is done: a hello has two
	// thousand bytes, and a chain of four certificates eight.
	talk = 16 << 10
	// lookEvery is how often it is looked at.
	lookEvery = 10 * time.Millisecond
)

// Watch closes a connection, whose handshake ends with that context, when more comes than a
// handshake has: the library takes a chain of 256 KiB from anybody, and holds more than that
// until it has looked at it. It is for connections that somebody else has accepted, who hands
// them to nobody before the handshake.
func Watch(handshake context.Context, conn net.Conn) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	socket, err := raw.SyscallConn()
	if err != nil {
		return
	}
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-handshake.Done():
				return
			case <-tick.C:
			}
			var info *unix.TCPInfo
			err := socket.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
			if err != nil || info == nil {
				return // it is closed, or tells nothing
			}
			if info.Bytes_received > talk {
				_ = conn.Close()
				return
			}
		}
	}()
}
