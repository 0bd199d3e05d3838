//go:build !digitalocean

package dns

func digitaloceanKind() (kind, bool) { return kind{}, false }
