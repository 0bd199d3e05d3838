package cert

import "context"

// A Program serves certificates, if it is not this Go program that does.
type Program interface {
	// Name is nginx, haproxy, envoy, caddy, traefik, files or the like.
	Name() string
	// Install makes it serve all of pairs and nothing else. Where several have a name,
	// the first is for it. What an earlier call installed and is there again is left
	// alone. An error says what could not be installed, without a secret; the rest is.
	Install(ctx context.Context, pairs []Pair) error
	// Probe shakes hands with it for name, a DNS name without wildcards or an IP
	// address, and returns the serial number of what it serves, in hexadecimal.
	Probe(ctx context.Context, name string) (serial string, err error)
}
