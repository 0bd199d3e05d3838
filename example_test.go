package fleetbus_test

import (
	"context"
	"fmt"
	"log"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
)

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	srv, err := fleetbus.New(fleetbus.Options{Accounts: []string{"shop"}}) // add Dir to keep what is stored
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	select {
	case <-srv.Ready():
	case err := <-ended:
		log.Fatal(err)
	}
	bus, err := srv.Session(ctx, identity.Principal{Account: "shop", Name: "worker"})
	if err != nil {
		log.Fatal(err)
	}
	heard := make(chan *nats.Msg, 1)
	bus.ChanSubscribe("orders.>", heard)
	js, _ := jetstream.New(bus.Conn)
	js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	ack, err := js.Publish(ctx, "orders.new", []byte("42"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("heard %s, stored as number %d\n", (<-heard).Data, ack.Sequence)
	bus.Close()
	stop()
	fmt.Println("stopped:", <-ended)
	// Output:
	// heard 42, stored as number 1
	// stopped: <nil>
}
