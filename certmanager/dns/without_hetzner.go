//go:build !hetzner

package dns

func hetznerKind() (kind, bool) { return kind{}, false }
