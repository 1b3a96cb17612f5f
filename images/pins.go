// SPDX-License-Identifier: Apache-2.0

package images

import (
	"slices"

	"github.com/berthd/berth/images/pin"
)

func (s *Service) setPins(patterns []string) {
	if s.config.PauseImage != "" {
		patterns = append(slices.Clone(patterns), s.config.PauseImage)
	}
	compiled := pin.Compile(patterns)
	s.pins.Store(&compiled)
}

// pinned tells whether a name matches a pattern of the current list.
func (s *Service) pinned(name string) bool { return s.pins.Load().Match(name) }
