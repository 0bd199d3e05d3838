package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

const (
	// maxBody and maxHeader bound what an authority answers.
	maxBody   = 1 << 20
	maxHeader = 32 << 10
	// maxRequests bounds what one call of Issue asks of an authority: one that leads
	// from link to link has no end else. An order has 100 names at most.
	maxRequests = 5000
	// directoryAge is how long a directory is taken for current.
	directoryAge = 12 * time.Hour
	// idempotentTries is how often a request is made that changes nothing.
	idempotentTries = 3
)

// A wire carries requests to an authority: over HTTPS alone, with bounded answers,
// and with the directory from memory. It is safe for concurrent use.
type wire struct {
	// local is the directory's URL as the client has it. It is none that anybody else
	// in the process has, because the client keeps directories for all of them.
	local string

	url       string
	interval  time.Duration
	timeout   time.Duration
	userAgent string
	base      *http.Transport

	reading lock // the directory
	dir     *acme.Directory
	fetched time.Time
}

func newWire(c Config) (*wire, error) {
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: maxHeader,
		DialContext:         (&net.Dialer{Timeout: c.Request}).DialContext,
		TLSHandshakeTimeout: c.Request, ResponseHeaderTimeout: c.Request, IdleConnTimeout: 10 * time.Second,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.Roots != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM([]byte(c.Roots)) {
			return nil, errors.New("the roots have no certificate in PEM")
		}
		base.TLSClientConfig.RootCAs = roots
	}
	return &wire{reading: make(lock, 1), local: c.Directory + "#fleetbus", url: c.Directory, interval: c.Interval, timeout: c.Request, userAgent: c.UserAgent, base: base}, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// A trace follows the requests of one call, for what the client does not return.
type trace struct {
	clock  func() time.Time
	parent *trace // of the call that this one is part of
	once   string // the URL of what is not to be asked for again when the answer was lost
	keep   string // the URL of what is kept as it is

	mu       sync.Mutex
	requests int
	status   int       // of the last answer
	after    time.Time // its Retry-After
	asked    fate      // of what is asked for once
	kept     []byte
	next     string // page of what is kept
}

type traceKey struct{}

func (i *Issuer) trace() *trace { return &trace{clock: i.c.Now} }

func (t *trace) with(ctx context.Context) context.Context {
	t.parent, _ = ctx.Value(traceKey{}).(*trace)
	return context.WithValue(ctx, traceKey{}, t)
}

// count counts a request, and fails when there are too many.
func (t *trace) count() error {
	for ; t != nil; t = t.parent {
		t.mu.Lock()
		t.requests++
		n := t.requests
		t.mu.Unlock()
		if n > maxRequests {
			return fmt.Errorf("the authority wants more than %d requests", maxRequests)
		}
	}
	return nil
}

func (t *trace) note(r *http.Response) {
	if t == nil {
		return
	}
	after := retryAfter(r.Header.Get("Retry-After"), t.clock())
	for ; t != nil; t = t.parent {
		t.mu.Lock()
		t.status, t.after = r.StatusCode, after
		t.mu.Unlock()
	}
}

// last is the last answer's status, and when its Retry-After is over.
func (t *trace) last() (int, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status, t.after
}

// retryAfter reads the header; zero if it says nothing. RFC 9110, section 10.2.3.
func retryAfter(header string, now time.Time) time.Time {
	if n, err := strconv.Atoi(header); err == nil && n >= 0 {
		const year = 365 * 24 * 60 * 60
		return now.Add(time.Duration(min(n, year)) * time.Second)
	}
	t, err := http.ParseTime(header)
	if err != nil {
		return time.Time{}
	}
	return t
}

// RoundTrip makes a request, and makes it again if it changes nothing and the
// authority has a hiccup.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.String() == w.local {
		return w.answer(r)
	}
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("the authority leads to %q, which is not https", r.URL)
	}
	t, _ := r.Context().Value(traceKey{}).(*trace)
	if t.asksOnce(r) {
		return w.ask(r, t)
	}
	for try := 1; ; try++ {
		if err := t.count(); err != nil {
			return nil, err
		}
		answer, err := w.base.RoundTrip(r)
		if err == nil {
			t.note(answer)
		}
		again := err != nil || answer.StatusCode >= 500
		if !again || try == idempotentTries || r.Method == http.MethodPost || r.Context().Err() != nil {
			if err == nil {
				answer.Body = &boundedBody{ReadCloser: answer.Body, left: maxBody}
				err = t.take(r, answer)
			}
			return answer, err
		}
		if err == nil {
			answer.Body.Close()
		}
		if err := sleep(r.Context(), time.Duration(try)*min(w.interval, time.Second)); err != nil {
			return nil, err
		}
	}
}

// asksOnce reports whether r is what is not to be asked for twice.
func (t *trace) asksOnce(r *http.Request) bool {
	return t != nil && t.once != "" && r.Method == http.MethodPost && r.URL.String() == t.once
}

// A fate is what became of what was asked for once: there was an answer, which says where
// it is if it was done; or none, and why. If it has neither, nobody was asked.
type fate struct {
	answered bool
	location string
	lost     error
}

func (t *trace) fate() fate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked
}

// ask makes a request that is not to be made again once the authority may have heard it.
// One that is out of order has not.
func (w *wire) ask(r *http.Request, t *trace) (*http.Response, error) {
	if lost := t.fate().lost; lost != nil {
		return nil, lost
	}
	if err := t.count(); err != nil {
		return nil, err
	}
	var sent atomic.Bool
	answer, err := w.base.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		WroteHeaders: func() { sent.Store(true) },
	})))
	var f fate
	switch {
	case err != nil && sent.Load():
		f.lost = err
	case err != nil:
	case answer.StatusCode >= 500 && answer.StatusCode != http.StatusServiceUnavailable:
		f.lost = fmt.Errorf("the authority answers %s", answer.Status)
	case answer.StatusCode >= 300:
		f.answered = true
	default:
		if f.location = answer.Header.Get("Location"); f.location == "" {
			f.lost = errors.New("the authority does not say where it is")
		}
	}
	t.mu.Lock()
	t.asked = f
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	t.note(answer)
	answer.Body = &boundedBody{ReadCloser: answer.Body, left: maxBody}
	return answer, nil
}

// take keeps the body of an answer, if it is that which is asked for, and where the next
// page is.
func (t *trace) take(r *http.Request, answer *http.Response) error {
	if t == nil || t.keep == "" || r.URL.String() != t.keep || answer.StatusCode != http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	answer.Body.Close()
	answer.Body = io.NopCloser(bytes.NewReader(body))
	t.kept, t.next = body, nextPage(answer.Header)
	return nil
}

// nextPage is where the next part of a list is: RFC 8288.
func nextPage(header http.Header) string {
	for _, link := range header.Values("Link") {
		for one := range strings.SplitSeq(link, ",") {
			target, parameters, _ := strings.Cut(strings.TrimSpace(one), ">")
			if strings.HasPrefix(target, "<") && strings.Contains(strings.ReplaceAll(parameters, `"`, ""), "rel=next") {
				return target[1:]
			}
		}
	}
	return ""
}

// CloseIdleConnections is for http.Client.
func (w *wire) CloseIdleConnections() { w.base.CloseIdleConnections() }

// A lock is a mutex that is not waited for longer than a context lasts.
type lock chan struct{}

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) give() { <-l }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		var one [1]byte
		if n, err := b.ReadCloser.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, fmt.Errorf("the authority's answer has more than %d bytes", maxBody)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// answer is the directory as the client gets it: without renewal information, which
// it would ask for with every certificate, and wait for.
func (w *wire) answer(r *http.Request) (*http.Response, error) {
	dir, err := w.directory(r.Context())
	if err != nil {
		return nil, err
	}
	dir.RenewalInfo = ""
	body, err := json.Marshal(dir)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// directory returns the authority's directory. The client would read it under a lock
// that all clients of the process share, which one authority that hangs could hold.
func (w *wire) directory(ctx context.Context) (acme.Directory, error) {
	if err := w.reading.take(ctx); err != nil {
		return acme.Directory{}, err
	}
	defer w.reading.give()
	if w.dir != nil && time.Since(w.fetched) < directoryAge {
		return *w.dir, nil
	}
	dir := &acme.Directory{}
	if err := w.get(ctx, w.url, dir); err != nil {
		return acme.Directory{}, fmt.Errorf("reading the directory %s: %w", w.url, err)
	}
	for _, endpoint := range []string{dir.NewNonce, dir.NewAccount, dir.NewOrder, dir.RevokeCert} {
		if u, err := url.Parse(endpoint); err != nil || u.Scheme != "https" || u.Host == "" {
			return acme.Directory{}, fmt.Errorf("reading the directory %s: it is none of ACME, or %q is no https URL", w.url, endpoint)
		}
	}
	w.dir, w.fetched = dir, time.Now()
	return *dir, nil
}

// get reads a JSON document that needs no account.
func (w *wire) get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", w.userAgent)
	answer, err := w.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		var p acme.Problem
		if json.Unmarshal(body, &p) == nil && p.Type != "" {
			p.Status = answer.StatusCode
			return p
		}
		return fmt.Errorf("the authority answers %s", answer.Status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the authority's answer is no JSON that fits: %w", err)
	}
	return nil
}
