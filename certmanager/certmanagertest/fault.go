package certmanagertest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Fault is something that goes wrong at an authority. Give it to Authority.Fail.
type Fault struct {
	// Every n'th request that fits has the fault. Default: each.
	Every int
	// Times bounds how often. Zero: it is not bounded.
	Times int
	// Path is what the request's path begins with, such as NewOrder. Empty: any.
	Path string
	// Late lets the authority do as it was asked, before the answer is replaced.
	Late bool
	// Answer is what the client gets instead. See Unavailable and those after it.
	Answer http.HandlerFunc

	seen, done int
}

// Fail makes requests fail as f says, until stop is called. Of several faults that
// fit, the first is it.
func (a *Authority) Fail(f Fault) (stop func()) {
	f.Every = max(f.Every, 1)
	fault := &f
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, fault)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.faults = slices.DeleteFunc(a.faults, func(other *Fault) bool { return other == fault })
	}
}

// Down takes the authority away: it accepts connections and ends them. Call stop to
// have it back.
func (a *Authority) Down() (stop func()) { return a.Fail(Fault{Answer: Drop()}) }

// Refuse refuses orders that have a name, as rejectedIdentifier with a subproblem.
func (a *Authority) Refuse(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused[name] = true
}

// Allow undoes Refuse.
func (a *Authority) Allow(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.refused, name)
}

// WrongChain makes the authority hand out chain, in DER, whatever was issued. Without
// arguments it hands out what it issues.
func (a *Authority) WrongChain(chain ...[]byte) {
	var all []byte
	for _, der := range chain {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wrong = all
}

// Problem answers with an ACME problem; kind is without its namespace.
func Problem(status int, kind, detail string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		problem(w, status, map[string]any{"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status})
	}
}

func problem(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(what)
}

// Unavailable answers 503 without a word of ACME.
func Unavailable() http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
	}
}

// RateLimited answers rateLimited, and to come again after a while.
func RateLimited(after time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
		Problem(http.StatusTooManyRequests, "rateLimited", "too many certificates already issued")(w, r)
	}
}

// Drop ends the connection without an answer.
func Drop() http.HandlerFunc {
	return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
}

// Hang answers nothing until the client has gone, or the test is over.
func Hang() http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not see the client go
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // who goes just now would get an empty answer
	}
}

// Garbage answers 200 with what is called JSON and is none.
func Garbage() http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status": ["`+"\x00\xff")
	}
}

// Huge answers 200 with a document of so many bytes.
func Huge(size int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status": "`)
		chunk := strings.Repeat("a", 1<<16)
		for sent := 0; sent < size; sent += len(chunk) {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	}
}

// serve is Pebble with what goes wrong before it and what is counted after it.
func (a *Authority) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.t.Context(), cancel)() // closing the server would wait for what hangs
	r = r.WithContext(ctx)
	fault := a.fault(r.URL.Path)
	if fault != nil && !fault.Late {
		fault.Answer(w, r)
		return
	}
	if r.URL.Path == NewOrder {
		if refused := a.refusal(r); refused != nil {
			// Pebble answers a request that is spoiled with a nonce for the next one.
			w.Header().Set("Replay-Nonce", a.nonce())
			problem(w, http.StatusForbidden, refused)
			return
		}
	}
	answer := a.answer(r)
	if fault != nil {
		fault.Answer(w, r)
		return
	}
	body := answer.Body.Bytes()
	a.mu.Lock()
	if strings.HasPrefix(r.URL.Path, Certificate) && answer.Code == http.StatusOK && len(a.wrong) > 0 {
		body = a.wrong
	}
	a.mu.Unlock()
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body)
}

// answer is Pebble's. It lists orders, and makes accounts, while it does nothing else: it
// reads them then without their locks, and takes others in an order of its own.
func (a *Authority) answer(r *http.Request) *httptest.ResponseRecorder {
	if strings.HasPrefix(r.URL.Path, ListOrders) || r.URL.Path == NewAccount {
		a.alone.Lock()
		defer a.alone.Unlock()
	} else {
		a.alone.RLock()
		defer a.alone.RUnlock()
	}
	answer := httptest.NewRecorder()
	a.web.ServeHTTP(answer, r)
	a.note(r.URL.Path, answer)
	if strings.HasPrefix(r.URL.Path, Finalize) && answer.Code == http.StatusOK {
		a.settle(path.Base(r.URL.Path))
	}
	return answer
}

// fault counts a request, and returns what is to go wrong with it.
func (a *Authority) fault(requested string) *Fault {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range paths() {
		if strings.HasPrefix(requested, p) {
			a.requests[p]++
		}
	}
	for _, f := range a.faults {
		if !strings.HasPrefix(requested, f.Path) || f.Times > 0 && f.done == f.Times {
			continue
		}
		if f.seen++; f.seen%f.Every == 0 {
			f.done++
			return f
		}
	}
	return nil
}

func paths() []string {
	return []string{Directory, NewNonce, NewAccount, NewOrder, PollOrder, Finalize, Challenge, Authorize, Certificate, Revoke, RenewalInfo, ListOrders}
}

func (a *Authority) nonce() string {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodHead, NewNonce, nil)
	r.Header.Set("User-Agent", userAgent)
	a.web.ServeHTTP(w, r)
	return w.Header().Get("Replay-Nonce")
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// refusal is the problem of an order that has a refused name.
func (a *Authority) refusal(r *http.Request) any {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return nil
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	var jws struct{ Payload string }
	var order struct{ Identifiers []identifier }
	if json.Unmarshal(body, &jws) != nil {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil || json.Unmarshal(payload, &order) != nil {
		return nil
	}
	const kind = "urn:ietf:params:acme:error:rejectedIdentifier"
	var problems []map[string]any
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range order.Identifiers {
		if a.refused[id.Value] {
			problems = append(problems, map[string]any{"type": kind, "detail": "policy forbids issuing for it", "identifier": id})
		}
	}
	if problems == nil {
		return nil
	}
	return map[string]any{
		"type": kind, "status": http.StatusForbidden, "subproblems": problems,
		"detail": fmt.Sprintf("cannot issue for %d of %d names", len(problems), len(order.Identifiers)),
	}
}

// settle waits until Pebble is done with an order that is finalized. It does the last
// of it beside the answer, and without the locks that the next request would need.
func (a *Authority) settle(id string) {
	done := func() bool {
		order := a.db.GetOrderByID(id)
		if order == nil {
			return true
		}
		order.RLock()
		issued, replaces := order.CertificateObject, order.Replaces
		order.RUnlock()
		if issued == nil {
			return false
		}
		if _, err := a.db.GetOrderByIssuedSerial(issued.ID); err != nil || replaces == "" {
			return err == nil
		}
		_, text, _ := strings.Cut(replaces, ".")
		serial, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return true
		}
		before, err := a.db.GetOrderByIssuedSerial(hex.EncodeToString(serial))
		if err != nil {
			return true
		}
		before.RLock()
		defer before.RUnlock()
		return before.IsReplaced
	}
	for deadline := time.Now().Add(serveTimeout); !done() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// note counts orders and certificates.
func (a *Authority) note(requested string, answer *httptest.ResponseRecorder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case requested == NewOrder && answer.Code == http.StatusCreated:
		var order struct{ Identifiers []identifier }
		if json.Unmarshal(answer.Body.Bytes(), &order) != nil {
			return
		}
		var names []string
		for _, id := range order.Identifiers {
			names = append(names, id.Value)
		}
		a.orders[path.Base(answer.Header().Get("Location"))] = setOf(names)
		a.placed[setOf(names)]++
	case strings.HasPrefix(requested, Finalize) && answer.Code == http.StatusOK:
		a.issued[a.orders[path.Base(requested)]]++
	}
}
