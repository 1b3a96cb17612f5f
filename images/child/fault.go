// SPDX-License-Identifier: Apache-2.0

package child

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/decryption"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/unpack"
)

// faults are the kinds of errors that callers tell apart, in the order in which they
// are looked for. Errors are not sent: only their kind and their text.
var faults = []struct {
	name string
	kind error
}{
	{"rejected", policy.ErrRejected},
	{"policy", policy.ErrInvalid},
	{"signatures", policy.ErrUnavailable},
	{"unavailable", registry.ErrUnavailable},
	{"stalled", pull.ErrStalled},
	{"corrupt", pull.ErrCorrupt},
	{"large", unpack.ErrTooLarge},
	{"encrypted", decryption.ErrUndecryptable},
	{"not-found", errdefs.ErrNotFound},
	{"unauthenticated", errdefs.ErrUnauthenticated},
	{"permission-denied", errdefs.ErrPermissionDenied},
	{"resource-exhausted", errdefs.ErrResourceExhausted},
	{"invalid-argument", errdefs.ErrInvalidArgument},
	{"failed-precondition", errdefs.ErrFailedPrecondition},
	{"not-implemented", errdefs.ErrNotImplemented},
	{"data-loss", errdefs.ErrDataLoss},
	{"class-unavailable", errdefs.ErrUnavailable},
	{"deadline", context.DeadlineExceeded},
	{"canceled", context.Canceled},
	{"unknown", errdefs.ErrUnknown},
}

func faultOf(err error) string {
	for _, f := range faults {
		if errors.Is(err, f.kind) {
			return f.name
		}
	}
	return "unknown"
}

// failure is a child's error.
type failure struct {
	kind error
	text string
}

// Error implements error.
func (f failure) Error() string { return f.text }

// Unwrap tells the kind.
func (f failure) Unwrap() error { return f.kind }

func fault(name, text string) error {
	for _, f := range faults {
		if f.name == name {
			return failure{f.kind, text}
		}
	}
	return failure{errdefs.ErrUnknown, text}
}
