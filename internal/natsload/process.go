package natsload

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// statusPause is how often a process tells how its clients stand.
const statusPause = 100 * time.Millisecond

// A Config is what Serve reads: a Crowd, whose members are in a file.
type Config struct {
	Members string
	// First and Count are which of them.
	First, Count int
	Trust        string // PEM
	Servers      []string
	Homes        []int
	From         []net.IP
	Subject      string
	AtOnce       int
	Returning    int
}

// Serve runs the Crowd of the Config that it reads first, as JSON, until ctx is done or
// there is nothing more to read. It writes its Status again and again, as JSON.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var c Config
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return fmt.Errorf("reading what to do: %w", err)
	}
	members, err := ReadMembers(c.Members)
	if err != nil {
		return err
	}
	if c.First < 0 || c.Count < 1 || c.First+c.Count > len(members) || len(c.Servers) == 0 || len(c.Homes) == 0 || len(c.From) == 0 || c.AtOnce < 1 || c.Returning < 1 {
		return errors.New("reading what to do: something is missing")
	}
	crowd := &Crowd{
		Members: members[c.First : c.First+c.Count], Servers: c.Servers, Homes: c.Homes, Trust: x509.NewCertPool(),
		From: c.From, Subject: c.Subject, AtOnce: c.AtOnce, Returning: c.Returning,
	}
	crowd.Trust.AppendCertsFromPEM([]byte(c.Trust))
	clients, err := crowd.prepare()
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, in) // however it ends
		cancel()
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		crowd.run(ctx, clients)
	}()
	tick := time.NewTicker(statusPause)
	defer tick.Stop()
	for encoder := json.NewEncoder(out); ; {
		select {
		case <-ended:
			return nil
		case <-tick.C:
			if err := encoder.Encode(crowd.Status()); err != nil {
				cancel()
				<-ended
				return fmt.Errorf("telling how clients stand: %w", err)
			}
		}
	}
}
