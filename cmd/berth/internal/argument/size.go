// SPDX-License-Identifier: Apache-2.0

// Package argument turns what users write on the command line, as they know it from
// docker, nerdctl and podman, into requests of berth's service. It asks nobody about
// them: what only the host knows is checked there.
package argument

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Size reads a number of bytes: 512, 64k, 1.5g, 512MB, 512Mi. All units are powers
// of 1024, as docker has them.
func Size(text string) (int64, error) {
	number := strings.ToLower(strings.TrimSpace(text))
	for _, end := range []string{"b", "i"} {
		number = strings.TrimSuffix(number, end)
	}
	scale := 1.0
	if i := strings.IndexByte("kmgtpe", last(number)); i >= 0 {
		scale = math.Pow(1024, float64(i+1))
		number = number[:len(number)-1]
	} else if strings.HasSuffix(strings.ToLower(text), "i") || strings.HasSuffix(strings.ToLower(text), "ib") {
		number = "" // of no unit
	}
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(value*scale >= 0 && value*scale < math.MaxInt64) {
		return 0, invalid("size %q, want as 512m or 2g", text)
	}
	return int64(value * scale), nil
}

func last(text string) byte {
	if text == "" {
		return 0
	}
	return text[len(text)-1]
}

// limit is Size, where -1 is none.
func limit(text string) (int64, error) {
	if text == "-1" {
		return -1, nil
	}
	return Size(text)
}

// Timeout reads seconds, as docker's, or a duration as 1m30s.
func Timeout(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, invalid("time %q, want seconds or as 1m30s", text)
	}
	return d, nil
}

// Since reads a time: how long before now, as 10m, or when, in RFC 3339, the date
// alone, or seconds since 1970. Empty is the zero time.
func Since(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		whole, rest := math.Modf(seconds)
		return time.Unix(int64(whole), int64(rest*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("time %q, want as 10m or 2026-01-31T12:00:00Z", text)
}

// Map reads KEY=VALUE pairs. What has no value has the empty one.
func Map(what string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		if key == "" {
			return nil, invalid("%s %q, want KEY=VALUE", what, pair)
		}
		m[key] = value
	}
	return m, nil
}
