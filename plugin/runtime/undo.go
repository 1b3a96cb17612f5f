// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/log"
)

// undoTimeout bounds what takes back a creation that failed.
const undoTimeout = time.Minute

// undo takes back, in reverse order, what a creation has done so far.
type undo []step

type step struct {
	what string
	do   func(context.Context) error
}

func (u *undo) add(what string, do func(context.Context) error) { *u = append(*u, step{what, do}) }

// run undoes everything, whatever becomes of ctx and of single steps, and tells
// whether all went well. What did not is logged: the error that callers see is the
// creation's.
func (u *undo) run(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	ok := true
	for _, s := range slices.Backward(*u) {
		if err := s.do(ctx); err != nil {
			ok = false
			log.G(ctx).WithError(fmt.Errorf("%s: %w", s.what, err)).Warn("undo a creation that failed")
		}
	}
	return ok
}
