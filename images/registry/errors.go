// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/reference"
)

// ErrUnavailable says that a registry cannot be reached, or cannot answer now.
// Its class is ErrUnavailable.
var ErrUnavailable = errdefs.ErrUnavailable.WithMessage("registry unavailable")

// failure is an error of a registry with its class. It is worded anew: what
// net/http and containerd say has whole URLs in it, and a URL to which a registry
// redirects is as good as a password.
type failure struct {
	class, cause error
	text         string
}

func (f *failure) Error() string { return f.text }

// Unwrap makes both class and cause known to errors.Is and errors.As.
func (f *failure) Unwrap() []error { return []error{f.class, f.cause} }

// Classify returns the error of an exchange with a registry with the class that
// fits it and a text that names the registry:
//
//	ErrUnavailable of this package   not reached, no answer in time, 5xx, redirects in a circle
//	ErrUnauthenticated               401, or the registry's UNAUTHORIZED
//	ErrPermissionDenied              403, DENIED
//	ErrNotFound                      404
//	ErrNotImplemented                405, UNSUPPORTED
//	ErrResourceExhausted             429, TOOMANYREQUESTS
//	ErrFailedPrecondition            its certificate, or that it has none, is not acceptable
//	those of package context         the caller's context
//
// Errors of Resolver and Tags have been here already. Other errors, and nil, are
// returned as they are.
func Classify(err error) error { return classify(err, "") }

// classify is Classify for an exchange with a host, as far as is known.
func classify(err error, host string) error {
	var done *failure
	if err == nil || errors.As(err, &done) {
		return err
	}
	var request *url.Error
	if errors.As(err, &request) {
		host = hostOf(request.URL)
	}
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case is(err, context.Canceled):
		return &failure{context.Canceled, err, "canceled"}
	case is(err, context.DeadlineExceeded):
		return &failure{context.DeadlineExceeded, err, named(host) + "no answer before the deadline"}
	case errors.Is(err, errRedirectLoop):
		return &failure{ErrUnavailable, err, named(host) + "redirects without end"}
	case errors.As(err, &status):
		return classifyStatus(err, status)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return &failure{errdefs.ErrUnauthenticated, err, named(host) + accessDenied}
	}
	if f := classifyConnection(err, host); f != nil {
		return f
	}
	if errdefs.IsNotFound(err) {
		return &failure{errdefs.ErrNotFound, err, named(host) + "not found"}
	}
	if request != nil {
		return &failure{errdefs.ErrUnknown, err, named(host) + request.Err.Error()}
	}
	return err
}

// accessDenied is all that can be said: registries hide what a client may not see.
const accessDenied = "access denied: the repository does not exist or needs a login"

// is is errors.Is for a value itself: timeouts of net and net/http say that they
// are the context's.
func is(err, target error) bool {
	if err == target {
		return true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return e.Unwrap() != nil && is(e.Unwrap(), target)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			if is(inner, target) {
				return true
			}
		}
	}
	return false
}

func hostOf(address string) string {
	parsed, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return parsed.Host
}

func named(host string) string {
	if host == "" {
		return "registry: "
	}
	return "registry " + host + ": "
}

// classifyConnection is for errors before an answer, or amid one; nil for others.
func classifyConnection(err error, host string) error {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		record  tls.RecordHeaderError
		alert   tls.AlertError
		network net.Error
		lookup  *net.DNSError
	)
	switch {
	case errors.As(err, &verify):
		return &failure{errdefs.ErrFailedPrecondition, err, named(host) + "certificate not accepted: " + verify.Err.Error()}
	case errors.As(err, &unknown):
		return &failure{errdefs.ErrFailedPrecondition, err, named(host) + "certificate not accepted: " + unknown.Error()}
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return &failure{errdefs.ErrFailedPrecondition, err, named(host) + "speaks plain HTTP, which is not allowed for it"}
	case errors.As(err, &alert):
		return &failure{errdefs.ErrFailedPrecondition, err, named(host) + "TLS: " + alert.Error()}
	case errors.As(err, &lookup):
		return &failure{ErrUnavailable, err, named(host) + lookup.Error()}
	case errors.As(err, &network) && network.Timeout():
		return &failure{ErrUnavailable, err, named(host) + "no answer in time"}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &failure{ErrUnavailable, err, named(host) + "connection closed"}
	}
	var operation *net.OpError
	if errors.As(err, &operation) {
		return &failure{ErrUnavailable, err, named(host) + operation.Error()}
	}
	return nil
}

// classifyStatus is for an answer that says no. What the registry words beats the
// number.
func classifyStatus(err error, status remoteerrors.ErrUnexpectedStatus) error {
	var said docker.Errors
	if !errors.As(err, &said) {
		_ = json.Unmarshal(status.Body, &said) // then it said nothing
	}
	class := classOfStatus(status.StatusCode)
	for _, one := range said {
		if c := classOfCode(one); c != nil {
			class = c
			break
		}
	}
	text := named(hostOf(status.RequestURL)) + status.Status
	if class == errdefs.ErrUnauthenticated || class == errdefs.ErrPermissionDenied {
		text = named(hostOf(status.RequestURL)) + accessDenied + " (" + status.Status + ")"
	}
	if words := strings.TrimSpace(said.Error()); len(said) > 0 {
		text += ": " + shorten(words)
	}
	return &failure{class, err, text}
}

// shorten bounds what a registry can put into an error and a log.
func shorten(words string) string {
	const most = 300
	words = strings.Join(strings.Fields(words), " ")
	if len(words) > most {
		words = strings.ToValidUTF8(words[:most], "") + "…"
	}
	return words
}

func classOfStatus(code int) error {
	switch {
	case code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		return errdefs.ErrNotImplemented
	case code == http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case code >= 500, code == http.StatusRequestTimeout:
		return ErrUnavailable
	case code >= 400:
		return errdefs.ErrInvalidArgument
	}
	return errdefs.ErrUnknown
}

// classOfCode is nil for codes that say less than the status.
func classOfCode(err error) error {
	var coded docker.ErrorCoder
	if !errors.As(err, &coded) {
		return nil
	}
	switch coded.ErrorCode() {
	case docker.ErrorCodeUnsupported:
		return errdefs.ErrNotImplemented
	case docker.ErrorCodeUnauthorized:
		return errdefs.ErrUnauthenticated
	case docker.ErrorCodeDenied:
		return errdefs.ErrPermissionDenied
	case docker.ErrorCodeUnavailable:
		return ErrUnavailable
	case docker.ErrorCodeTooManyRequests:
		return errdefs.ErrResourceExhausted
	}
	return nil
}

// explain says what failed at which registry. The caller's own context beats what
// it broke.
func explain(ctx context.Context, at reference.Reference, what string, err error) error {
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	return fmt.Errorf("%s: %w", what, classify(err, at.Host()))
}
