// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"

	"github.com/berthd/berth/images/removal"
)

// PruneReport is what a prune has done.
type PruneReport = removal.Report

// ErrPruning is the error of a Prune while another one is at work.
var ErrPruning = removal.ErrPruning

// Prune removes images that nobody uses: those without a name, or all of them with
// the filter "dangling=false". Further filters are "label", "label!" and "until". The
// report is valid with an error, too. It is ImagesPrune of the ImageService.
func (s *Service) Prune(ctx context.Context, filters map[string][]string) (PruneReport, error) {
	return s.remover.Prune(ctx, filters)
}
