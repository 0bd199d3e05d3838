//go:build !route53

package dns

func route53Kind() (kind, bool) { return kind{}, false }
