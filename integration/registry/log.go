// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"io"
	"log"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// unseenHeader marks requests of this package's own.
const unseenHeader = "X-Berth-Unseen"

// discard is for errors that servers have because clients go, which they do.
var discard = log.New(io.Discard, "", 0)

// Request is a request that the registry has answered, or has left unanswered.
type Request struct {
	Method, Path, Query string
	Range               string // the header, if any
	Auth                string // the scheme by which the client logged in, if any
	Status              int    // 0: no answer
	Bytes               int64  // of the body that were sent
}

// Log is what clients have asked for since the start or the last Forget, in the
// order in which the answers ended.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
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
	scheme, _, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	counted := &counter{ResponseWriter: w}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, Request{
			Method: q.Method, Path: q.URL.Path, Query: q.URL.RawQuery, Range: q.Header.Get("Range"),
			Auth: scheme, Status: counted.status, Bytes: counted.bytes,
		})
	}()
	if do := r.fault(q); do != nil {
		do(counted, q, next)
		return
	}
	next.ServeHTTP(counted, q)
}

// counter notes what is sent.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(status int) {
	if status >= 200 && c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
