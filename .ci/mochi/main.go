// Command mochi runs the broker of that name, with TLS on one address.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"os/signal"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8883", "host:port to listen on")
	cert := flag.String("cert", "", "file of the certificate")
	key := flag.String("key", "", "file of its key")
	flag.Parse()
	if err := serve(*addr, *cert, *key); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// serve serves everybody until the process is interrupted.
func serve(addr, cert, key string) error {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	server := mochi.New(nil)
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		return fmt.Errorf("letting everybody in: %w", err)
	}
	config := listeners.Config{ID: "mqtt", Address: addr, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}}
	if err := server.AddListener(listeners.NewTCP(config)); err != nil {
		return fmt.Errorf("listening on %q: %w", addr, err)
	}
	if err := server.Serve(); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	<-interrupted
	return server.Close()
}
