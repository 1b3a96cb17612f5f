// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/cmd/berth/internal/report"
)

// Inspect writes those of the references that there are, as a JSON array. The errors
// of the others come back joined.
func Inspect[T any](s *Session, refs []string, find func(string) (T, error)) error {
	var found []T
	var faults []error
	for _, ref := range refs {
		item, err := find(ref)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		found = append(found, item)
	}
	return errors.Join(append(faults, report.JSON(s.Out, found))...)
}

// Usage is an error of how a command was called.
func Usage(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
