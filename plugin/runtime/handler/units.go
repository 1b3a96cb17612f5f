// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, in TOML a number or a text such as "4MiB". It is
// read as the shim reads its own settings.
type Size int64

var units = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
	{"", 1},
}

// UnmarshalText reads a number with an optional unit.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.factor {
			break
		}
		*s = Size(n * u.factor)
		return nil
	}
	return fmt.Errorf("%q is not a size such as 4MiB", text)
}

// Duration is a time span, in TOML a text such as "4m" or a number of seconds.
// It is a struct because a TOML number would go into an integer unread.
type Duration struct{ time.Duration }

// UnmarshalText reads a duration, or seconds when there is no unit.
func (d *Duration) UnmarshalText(text []byte) error {
	if n, err := strconv.ParseInt(string(text), 10, 32); err == nil {
		d.Duration = time.Duration(n) * time.Second
		return nil
	}
	span, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 4m", text)
	}
	d.Duration = span
	return nil
}
