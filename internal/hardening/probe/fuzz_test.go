package probe

import (
	"net"
	"testing"
	"time"
)

// FuzzStart has what a stranger may answer to the header of AMQP.
func FuzzStart(f *testing.F) {
	f.Add([]byte("AMQP\x00\x00\x09\x01"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x19\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x00\xce"))
	f.Add([]byte("\x01\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer there.Close()
			_ = there.SetDeadline(time.Now().Add(time.Second))
			if _, err := there.Read(make([]byte, len(header))); err == nil {
				_, _ = there.Write(data)
			}
		}()
		_ = here.SetDeadline(time.Now().Add(time.Second))
		mechanisms, _, err := start(here)
		here.Close()
		<-done
		if err == nil && len(mechanisms) > maxFrame {
			t.Fatal("more than a frame may have")
		}
	})
}
