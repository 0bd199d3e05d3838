//go:build !race

package certmanager

const racing = false
