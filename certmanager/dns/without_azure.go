//go:build !azure

package dns

func azureKind() (kind, bool) { return kind{}, false }
