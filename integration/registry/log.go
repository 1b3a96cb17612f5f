// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"io"
	"log"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
)

// unseenHeader marks requests of this package's own.
const unseenHeader = "X-Berth-Unseen"

// discard is for errors that servers have because clients go, which they do.
var discard = log.New(io.Discard, "", 0)

// Request is a request to the registry and what became of it.
type Request struct {
	Method, Path, Query string
	Range               string // the header, if any
	Auth                string // the scheme by which the client logged in, if any
	Status              int    // 0: no answer yet
	Bytes               int64  // of the body that were sent so far
}

// Log is what clients have asked for since the start or the last Forget, in the
// order in which they asked. It knows no less of an answer than its client does.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Request, len(r.requests))
	for i, q := range r.requests {
		all[i] = *q
	}
	return all
}

// Forget empties the log.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Fetches counts the requests for the content of a blob or manifest that were
// answered with content, whole or in part.
func (r *Registry) Fetches(d digest.Digest) int {
	return r.count(func(q Request) bool {
		return q.Method == http.MethodGet && strings.HasSuffix(q.Path, "/"+d.String()) && q.Status/100 == 2
	})
}

// Uploads counts the uploads of a blob that were completed; it is not one when the
// blob is mounted from another repository.
func (r *Registry) Uploads(d digest.Digest) int {
	return r.count(func(q Request) bool {
		return q.Method == http.MethodPut && strings.Contains(q.Path, "/blobs/uploads/") &&
			strings.Contains(q.Query, d.Encoded()) && q.Status == http.StatusCreated
	})
}

// Mounts counts how often a blob was mounted from another repository.
func (r *Registry) Mounts(d digest.Digest) int {
	return r.count(func(q Request) bool {
		return q.Method == http.MethodPost && strings.Contains(q.Query, "mount=") &&
			strings.Contains(q.Query, d.Encoded()) && q.Status == http.StatusCreated
	})
}

// Count counts requests of a method ("": any) whose path contains a text.
func (r *Registry) Count(method, path string) int {
	return r.count(func(q Request) bool {
		return (method == "" || q.Method == method) && strings.Contains(q.Path, path)
	})
}

func (r *Registry) count(match func(Request) bool) (n int) {
	for _, q := range r.Log() {
		if match(q) {
			n++
		}
	}
	return n
}

// handle answers a request: by a fault, the server of tokens or the registry.
func (r *Registry) handle(w http.ResponseWriter, q *http.Request) {
	next := r.proxy
	if q.URL.Path == tokenPath {
		next = r.issuer
	}
	if q.Header.Get(unseenHeader) != "" {
		q.Header.Del(unseenHeader)
		next.ServeHTTP(w, q)
		return
	}
	counted := &counter{ResponseWriter: w, registry: r, request: r.note(q)}
	if do := r.fault(q); do != nil {
		do(counted, q, next)
		return
	}
	next.ServeHTTP(counted, q)
}

func (r *Registry) note(q *http.Request) *Request {
	scheme, _, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	noted := &Request{Method: q.Method, Path: q.URL.Path, Query: q.URL.RawQuery, Range: q.Header.Get("Range"), Auth: scheme}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, noted)
	return noted
}

// counter notes what is sent, before it is.
type counter struct {
	http.ResponseWriter
	registry *Registry
	request  *Request
}

func (c *counter) WriteHeader(status int) {
	if status >= 200 {
		c.sends(status, 0)
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	c.sends(http.StatusOK, len(p))
	return c.ResponseWriter.Write(p)
}

func (c *counter) sends(status, bytes int) {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	if c.request.Status == 0 {
		c.request.Status = status
	}
	c.request.Bytes += int64(bytes)
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
