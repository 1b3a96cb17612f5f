// SPDX-License-Identifier: Apache-2.0

// Package fault gives the resident shim's errors a class that survives the
// wire. It stands in for containerd/errdefs, which the resident process does
// not link (docs/design.md, "Memory"); the codes are gRPC's, as ttrpc carries
// them. It knows nothing of transports.
package fault

import "errors"

// Code is a gRPC status code.
type Code uint32

// The classes that the shim answers with. The values are those of
// google.rpc.Code.
const (
	OK                 Code = 0
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	AlreadyExists      Code = 6
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	Unimplemented      Code = 12
	Internal           Code = 13
	Unavailable        Code = 14
)

type classed struct {
	code  Code
	msg   string
	cause error
}

func (e *classed) Error() string { return e.msg }
func (e *classed) Unwrap() error { return e.cause }

// New returns an error of class c.
func New(c Code, msg string) error { return &classed{code: c, msg: msg} }

// Wrap returns an error of class c that reads "what: err" and wraps err.
func Wrap(c Code, what string, err error) error {
	return &classed{code: c, msg: what + ": " + err.Error(), cause: err}
}

// In returns err with "what: " in front and its class kept. A nil err stays nil.
func In(what string, err error) error {
	if err == nil {
		return nil
	}
	return Wrap(CodeOf(err), what, err)
}

// CodeOf returns the class of the outermost classed error in err's chain: OK
// for nil, Unknown when there is none.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var e *classed
	if errors.As(err, &e) {
		return e.code
	}
	return Unknown
}
