// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Fault is misbehaviour. It strikes requests of a method ("": any) whose path
// contains Path, which is a digest or "/manifests/", for example. It strikes Times
// times (0: always).
type Fault struct {
	Method, Path string
	Times        int
	Do           Action
}

// Action answers a request in place of next, or spoils next's answer.
type Action func(w http.ResponseWriter, r *http.Request, next http.Handler)

type planned struct {
	Fault
	left    int           // strikes, or -1
	removed chan struct{} // closed when it is
}

// Inject adds a fault and returns a function that removes it, and lets go whoever
// it keeps waiting. Of several faults that a request matches the first one
// strikes. Close removes all.
func (r *Registry) Inject(f Fault) (remove func()) {
	p := &planned{Fault: f, left: f.Times, removed: make(chan struct{})}
	if f.Times == 0 {
		p.left = -1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, p)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := slices.Index(r.faults, p); i >= 0 {
			r.faults = slices.Delete(r.faults, i, i+1)
			close(p.removed)
		}
	}
}

// fault is what strikes a request, or nil.
func (r *Registry) fault(q *http.Request) Action {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.faults {
		if p.left == 0 || p.Method != "" && p.Method != q.Method || !strings.Contains(q.URL.Path, p.Path) {
			continue
		}
		if p.left > 0 {
			p.left--
		}
		return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			p.Do(&patient{ResponseWriter: w, request: q, removed: p.removed, closed: r.closed}, q, next)
		}
	}
	return nil
}

// patient is a ResponseWriter whose client can be kept waiting.
type patient struct {
	http.ResponseWriter
	request         *http.Request
	removed, closed <-chan struct{}
}

func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// wait returns when the client has gone, the fault is removed, or the registry
// closed.
func (p *patient) wait() {
	select {
	case <-p.request.Context().Done():
	case <-p.removed:
	case <-p.closed:
	}
}

// Stall answers nothing until the fault is removed, and then as usual.
func Stall(w http.ResponseWriter, r *http.Request, next http.Handler) {
	w.(*patient).wait()
	if r.Context().Err() == nil {
		next.ServeHTTP(w, r)
	}
}

// StallAfter stops after n bytes of the content until the fault is removed, and
// then goes on. Who asks for what comes after them gets nothing before.
func StallAfter(n int64) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		after := max(0, n-begin(r))
		next.ServeHTTP(&spoiler{ResponseWriter: w, after: after, then: func() { w.(*patient).wait() }}, r)
	}
}

// begin is where the content that is asked for begins.
func begin(r *http.Request) int64 {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	n, _ := strconv.ParseInt(first, 10, 64) // 0 without a range
	return n
}

// CutAfter breaks the connection after n bytes of the content.
func CutAfter(n int64) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&spoiler{ResponseWriter: w, after: n, then: func() { panic(http.ErrAbortHandler) }}, r)
	}
}

// ResetAfter is CutAfter by a peer that is gone rather than one that closes: the
// client may not see all of the n bytes.
func ResetAfter(n int64) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&spoiler{ResponseWriter: w, after: n, then: func() {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				if secure, ok := conn.(*tls.Conn); ok {
					conn = secure.NetConn()
				}
				if plain, ok := conn.(*net.TCPConn); ok {
					_ = plain.SetLinger(0) // closing resets; if not, it closes
				}
				_ = conn.Close() // it is broken on purpose
			}
			panic(http.ErrAbortHandler)
		}}, r)
	}
}

// Truncate sends the first n bytes of the content as if they were all, in the
// answer to a HEAD request, too.
func Truncate(n int64) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&spoiler{ResponseWriter: w, after: n, drop: true, size: func(int64) int64 { return n }}, r)
	}
}

// Lengthen sends n bytes more than there are.
func Lengthen(n int64) Action {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&spoiler{ResponseWriter: w, after: -1, size: func(real int64) int64 { return real + n }}, r)
		if r.Method != http.MethodHead {
			_, _ = w.Write(make([]byte, n)) // the client may have gone
		}
	}
}

// Corrupt sends content of the right size that is not what was asked for.
func Corrupt(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(&spoiler{ResponseWriter: w, after: -1, flip: true}, r)
}

// Answer sends a status instead, with an error as registries word it, and pairs of
// names and values of headers.
func Answer(status int, code string, headers ...string) Action {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for pair := range slices.Chunk(headers, 2) {
			w.Header().Set(pair[0], pair[1])
		}
		problem(w, status, code, "says the test")
	}
}

// RedirectLoop sends the client to where it is, for ever.
func RedirectLoop(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	query := r.URL.Query()
	n, _ := strconv.Atoi(query.Get("round"))
	query.Set("round", strconv.Itoa(n+1))
	w.Header().Set("Location", r.URL.Path+"?"+query.Encode())
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// spoiler passes an answer on, up to a point.
type spoiler struct {
	http.ResponseWriter
	after int64             // bytes that pass untouched; -1: all
	then  func()            // happens once after that
	drop  bool              // what comes later is dropped
	size  func(int64) int64 // says what Content-Length becomes
	flip  bool              // bytes are inverted
}

func (s *spoiler) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *spoiler) WriteHeader(status int) {
	if n, err := strconv.ParseInt(s.Header().Get("Content-Length"), 10, 64); err == nil && s.size != nil {
		s.Header().Set("Content-Length", strconv.FormatInt(s.size(n), 10))
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *spoiler) Write(p []byte) (int, error) {
	if s.flip {
		p = slices.Clone(p)
		for i := range p {
			p[i] = ^p[i]
		}
	}
	if s.after < 0 || int64(len(p)) < s.after {
		n, err := s.ResponseWriter.Write(p)
		if s.after >= 0 {
			s.after -= int64(n)
		}
		return n, err
	}
	n, err := s.ResponseWriter.Write(p[:s.after])
	if err != nil {
		return n, err
	}
	s.after = 0
	if s.drop {
		return len(p), nil
	}
	// What was written is to arrive before the rest does not.
	if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	s.then()
	s.after = -1
	rest, err := s.ResponseWriter.Write(p[n:])
	return n + rest, err
}
