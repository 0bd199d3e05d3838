//go:build !googleclouddns

package dns

func googleKind() (kind, bool) { return kind{}, false }
