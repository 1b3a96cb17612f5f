// SPDX-License-Identifier: Apache-2.0

// Package pin owns the patterns that name the images which garbage collection
// must spare. It refuses to know images: it judges names.
package pin

import (
	"slices"
	"strings"
)

// Patterns is a compiled list of patterns. The zero value matches nothing. It is
// a value and never changes; safe for concurrent use.
//
//   - "exact" matches the whole name;
//   - "begin*" matches what has begin anywhere in it: CRI-O does not tie such a
//     pattern to the beginning of a name, and configurations rely on that;
//   - "*part*" matches what has part anywhere in it.
//
// Case does not matter, and every other character stands for itself.
type Patterns struct {
	whole []string
	parts []string
}

// Compile reads patterns as the configuration has them. Empty ones are passed
// over. It is CRI-O's CompileRegexpsForPinnedImages.
func Compile(patterns []string) Patterns {
	var p Patterns
	for _, pattern := range patterns {
		pattern = strings.ToLower(strings.TrimSpace(pattern))
		inner, open := strings.CutSuffix(pattern, "*")
		if inner == "" && !open {
			continue
		}
		if !open {
			p.whole = append(p.whole, pattern)
			continue
		}
		p.parts = append(p.parts, strings.TrimPrefix(inner, "*"))
	}
	return p
}

// Match tells whether any pattern matches a name. It is CRI-O's
// FilterPinnedImage.
func (p Patterns) Match(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains(p.whole, name) ||
		slices.ContainsFunc(p.parts, func(part string) bool { return strings.Contains(name, part) })
}
