package journal_test

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/journal"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/smalldisk"
)

// TestFullDisk has messages be done with while the disk has not a byte left: the journal takes
// nothing out of its stream then, and goes on when there is room.
func TestFullDisk(t *testing.T) {
	disk := smalldisk.Mount(t, "96m")
	s := fleetbustest.Start(t, func(o *fleetbus.Options) { o.Dir, o.Store.Reserve = filepath.Join(disk, "data"), 16<<20 })
	s.ExpectError("snapshot not written")
	o := open(t, s.Dial("acme", "owner"), func(o *journal.Options) {
		o.Room = func() bool {
			var now syscall.Statfs_t
			return syscall.Statfs(disk, &now) != nil || int64(now.Bavail)*int64(now.Bsize) >= 1<<20
		}
	})
	var all told
	for n := range 500 { // each in a message of its own: what notes that they go takes some room
		o.publish(n, n+1, &all)
		await.True(time.Second, func() bool { taken, _ := all.count(); return taken > n })
	}
	o.stored(&all, 500)
	var ids []uint64
	for _, d := range o.all() {
		ids = append(ids, d.ID)
	}

	free := smalldisk.Fill(t, disk, 0)
	// Each that is done with is noted, which the stream refuses.
	for i := range 50 {
		o.q.Settle(ids[10*i:10*i+10], queue.Ack)
		await.True(50*time.Millisecond, func() bool { return false })
	}
	free()
	var late told
	await.Nil(t, "it stores again", func() error {
		late = told{}
		o.publish(1000, 1001, &late)
		if !await.True(5*time.Second, func() bool { taken, other := late.count(); return taken+other > 0 }) || len(late.other) > 0 {
			return fmt.Errorf("it does not: %d are refused", len(late.other))
		}
		return nil
	})
	o.close()
}
