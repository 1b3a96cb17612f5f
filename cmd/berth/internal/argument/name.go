// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"crypto/rand"
	"path"
	"strings"
)

// MadeUp returns a name that nothing has, which tells what it is of: an image, or
// anything else.
func MadeUp(of string) string {
	name, _, _ := strings.Cut(path.Base(of), "@")
	name, _, _ = strings.Cut(name, ":")
	name = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return -1
	}, strings.ToLower(name)), "-")
	const most, random = 40, 6 // enough that names do not meet among thousands
	name = strings.Trim(name[:min(len(name), most)]+"-", "-")
	if name == "" {
		name = "c"
	}
	return name + "-" + strings.ToLower(rand.Text()[:random])
}
