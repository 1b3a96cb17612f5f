// SPDX-License-Identifier: Apache-2.0

package filter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/filter"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestUntil(t *testing.T) {
	for text, want := range map[string]time.Time{
		"90m":                  now.Add(-90 * time.Minute),
		"0s":                   now,
		"1782907200":           now,
		"2026-07-01T12:00:00Z": now,
		"2026-07-01T12:00:00":  now,
		"2026-07-01T12:00":     now,
		"2026-07-01":           now.Add(-12 * time.Hour),
	} {
		f, err := filter.Parse(map[string][]string{"until": {text}}, filter.ForPrune, now)
		if err != nil || !f.Until.Equal(want) {
			t.Errorf("%s: %v, %v, want %v", text, f.Until, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for key, values := range map[string][]string{
		"nonsense": {"x"}, "before": {"x"}, "dangling": {"maybe"}, "until": {"soon"}, "label ": {"x"},
	} {
		if _, err := filter.Parse(map[string][]string{key: values}, filter.ForPrune, now); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	for _, key := range []string{"dangling", "until"} {
		if _, err := filter.Parse(map[string][]string{key: {"1", "1"}}, filter.ForPrune, now); !errdefs.IsInvalidArgument(err) {
			t.Errorf("two values of %s: %v", key, err)
		}
	}
}

func TestMatchName(t *testing.T) {
	const name, digest = "docker.io/library/busybox:1.36", "berth.test:5000/team/app@sha256:" + zeros
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"busybox", name, true},
		{"busybox:1.36", name, true},
		{"busybox:1.*", name, true},
		{"bu*", name, true},
		{"docker.io/library/busybox", name, true},
		{"docker.io/library/busybox:*", name, true},
		{"busybox:2*", name, false},
		{"library/busybox", name, false},
		{"*", name, true},
		{"*", digest, false}, // does not stand for a slash
		{"berth.test:5000/*/app", digest, true},
		{"berth.test:5000/team/app@*", digest, true},
		{"free*", "free text", true},
	} {
		if got := filter.MatchName(c.pattern, c.name); got != c.want {
			t.Errorf("%q matches %q: %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// FuzzParse: whatever is given, it is understood or refused by its class.
func FuzzParse(f *testing.F) {
	for _, key := range filter.ForList {
		f.Add(key, "true")
		f.Add(key, "[")
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		got, err := filter.Parse(map[string][]string{key: {value}}, filter.ForList, now)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
		if err == nil {
			_ = got.Match(filter.Image{Names: []string{value}, Labels: func() map[string]string { return nil }})
		}
	})
}
