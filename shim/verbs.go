// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"io"
	"os"

	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/plan"
)

// CheckState is the command handover.VerbCheck: it returns nil if this program
// could take over the state on stdin.
func CheckState() error {
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var s handover.State
	if err := s.Decode(b); err != nil {
		return err
	}
	var p plan.Plan
	return p.Decode(s.Plan)
}
