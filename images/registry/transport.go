// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

const (
	// maxAttempts and firstPause bound what a registry that is busy or broken for
	// a moment is given: 4 requests in 1.4 s, as long as it names no time itself.
	maxAttempts = 4
	firstPause  = 200 * time.Millisecond
	// maxPause is the longest that a registry is waited for when it names a time.
	// One that is out of service for longer is not waited for at all.
	maxPause = 10 * time.Second
	// maxRedirects is below the bound of net/http, whose error has no type.
	maxRedirects = 8
	// idleTime is how long a connection is kept for the next request. A pull makes
	// them in quick succession; after it nothing should be left.
	idleTime = 5 * time.Second
)

// errRedirectLoop says that a registry sent the client in a circle.
var errRedirectLoop = errors.New("too many redirects")

// updateClient returns the hook by which containerd lets a source's clients be
// changed.
func (r *Registry) updateClient(s source) func(*http.Client) error {
	attempts := maxAttempts
	if s.more {
		attempts = 1
	}
	return func(c *http.Client) error {
		base, ok := c.Transport.(*http.Transport)
		if !ok {
			return nil // it was here before
		}
		base.IdleConnTimeout = idleTime
		if r.config.Timeout > 0 {
			base.ResponseHeaderTimeout = r.config.Timeout
		}
		c.Transport = &transport{base, s.namespace, attempts}
		return nil
	}
}

// transport repeats requests that may succeed later, and tells apart what
// net/http's client does not: redirects in a circle, and content that breaks off.
type transport struct {
	base      http.RoundTripper
	namespace string // see source
	attempts  int    // at a request
}

func (t *transport) RoundTrip(q *http.Request) (*http.Response, error) {
	if redirects(q) > maxRedirects {
		return nil, errRedirectLoop
	}
	if t.namespace != "" {
		q = q.Clone(q.Context())
		query := q.URL.Query()
		query.Set("ns", t.namespace)
		q.URL.RawQuery = query.Encode()
	}
	for attempt := 1; ; attempt++ {
		response, err := t.base.RoundTrip(q)
		if err != nil {
			return nil, err
		}
		if !busy(response.StatusCode) || !repeatable(q) {
			response.Body = &content{response.Body, q}
			return response, nil
		}
		pause := pauseAfter(response, attempt)
		if attempt >= t.attempts || pause > maxPause {
			// As an error: containerd would start all over.
			defer response.Body.Close()
			return nil, remoteerrors.NewUnexpectedStatusErr(response)
		}
		_ = response.Body.Close() // nobody reads it
		if err := sleep(q.Context(), pause); err != nil {
			return nil, err
		}
		if q.GetBody != nil {
			if q.Body, err = q.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// redirects counts how often the client was sent elsewhere before this request.
func redirects(q *http.Request) (n int) {
	for q.Response != nil {
		q = q.Response.Request
		n++
	}
	return n
}

// busy tells whether the same request may succeed later.
func busy(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// repeatable tells whether a request changes nothing: it reads, or asks for a
// token, which alone has a body that can be had again.
func repeatable(q *http.Request) bool {
	return q.Method == http.MethodGet || q.Method == http.MethodHead || q.Method == http.MethodPost && q.GetBody != nil
}

// pauseAfter returns how long to wait before the next attempt.
func pauseAfter(response *http.Response, attempt int) time.Duration {
	asked := response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(asked); err == nil && seconds >= 0 {
		return time.Duration(min(seconds, 3600)) * time.Second // too long, but no overflow
	}
	if date, err := http.ParseTime(asked); err == nil {
		return max(time.Until(date), 0)
	}
	return firstPause << (attempt - 1)
}

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

// content is the body of an answer. However the connection breaks, reading says
// io.ErrUnexpectedEOF: for that alone containerd asks for the rest.
type content struct {
	io.ReadCloser
	request *http.Request
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && err != io.EOF && c.request.Context().Err() == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
