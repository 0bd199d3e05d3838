package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Listeners of the node that runs in dir, as it wrote them down.
func listeners(dir string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err != nil {
		return nil, err
	}
	var running struct {
		Listeners map[string]string `json:"listeners"`
	}
	err = json.Unmarshal(data, &running)
	return running.Listeners, err
}

// Health asks the node of dir, on this machine, at its listener of that name, for one of
// "livez", "readyz" and "startupz": OK or Critical. It needs no credentials.
func Health(ctx context.Context, dir, listener, what string) Result {
	r := begin("health")
	r.State = Critical
	if !slices.Contains([]string{"livez", "readyz", "startupz"}, what) {
		r.State, r.Text = Unknown, fmt.Sprintf("%q is none of livez, readyz and startupz", what)
		return *r
	}
	all, err := listeners(dir)
	if err != nil {
		r.Text = "no server has started in " + dir
		return *r
	}
	addr, ok := all[listener]
	if !ok {
		r.State, r.Text = Unknown, fmt.Sprintf("the node has no listener %q: set listeners.%s.addr: 127.0.0.1:9422", listener, listener)
		return *r
	}
	code, text, err := get(ctx, dir, reach(addr), what)
	if err != nil {
		r.Text = "the node does not answer: " + err.Error()
		return *r
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	r.Text, r.Lines = lines[len(lines)-1], lines[:len(lines)-1]
	if code == http.StatusOK {
		r.State = OK
	}
	return *r
}

// reach is where this machine reaches a listener.
func reach(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// get asks by TLS, and then without.
func get(ctx context.Context, dir, addr, what string) (code int, text string, err error) {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(dir, "admin", "ca.pem"))
	if err != nil {
		return 0, "", fmt.Errorf("reading the authority: %w", err)
	}
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The address is of this machine, and in the certificate is the node's name.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, c := range state.PeerCertificates[1:] {
				between.AddCert(c)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between})
			return err
		},
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	for _, scheme := range []string{"https", "http"} {
		var request *http.Request
		if request, err = http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+"/"+what+"?verbose", nil); err != nil {
			return 0, "", err
		}
		answer, failed := client.Do(request)
		if failed != nil {
			err = failed
			continue
		}
		body, failed := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
		answer.Body.Close()
		return answer.StatusCode, string(body), failed
	}
	return 0, "", err
}
