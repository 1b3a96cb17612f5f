// SPDX-License-Identifier: Apache-2.0

// Package filter owns the filters by which people choose images, as docker and moby
// have them: it reads them and compares images with them. It refuses to look images
// up: what an image is it is told.
package filter

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// The keys of filters.
const (
	KeyDangling  = "dangling"
	KeyLabel     = "label"
	KeyNotLabel  = "label!"
	KeyBefore    = "before"
	KeySince     = "since"
	KeyReference = "reference"
	KeyUntil     = "until"
)

// ForList and ForPrune are the keys that a list and a prune accept.
var (
	ForList  = []string{KeyDangling, KeyLabel, KeyNotLabel, KeyBefore, KeySince, KeyReference, KeyUntil}
	ForPrune = []string{KeyDangling, KeyLabel, KeyNotLabel, KeyUntil}
)

// Filter is what an image must be like. The zero value lets all pass.
type Filter struct {
	// Dangling, if not nil, says whether the image is to have no name.
	Dangling *bool
	// Labels are "key" or "key=value" that the image's configuration must have,
	// all of them; NotLabels are those of which it must have none.
	Labels, NotLabels []string
	// Before and Since are names of images: it must have come here before the one
	// and after the other, of all of them. The caller makes times of them; see
	// Image.
	Before, Since []string
	// References are patterns of which one must match one of its names.
	References []string
	// Until, if not zero, is when it must have come here at the latest.
	Until time.Time
}

// Parse reads filters, each with its values, of which only some are allowed. now is
// what relative times are relative to. What is unknown or not understood is
// ErrInvalidArgument.
func Parse(values map[string][]string, allowed []string, now time.Time) (Filter, error) {
	var f Filter
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(allowed, key) {
			return f, fmt.Errorf("filter %q: there is none (there are: %s): %w", key, strings.Join(allowed, ", "), errdefs.ErrInvalidArgument)
		}
		if err := f.set(key, values[key], now); err != nil {
			return f, fmt.Errorf("filter %s=%s: %w: %w", key, strings.Join(values[key], ","), err, errdefs.ErrInvalidArgument)
		}
	}
	return f, nil
}

func (f *Filter) set(key string, values []string, now time.Time) (err error) {
	switch key {
	case KeyLabel:
		f.Labels = values
	case KeyNotLabel:
		f.NotLabels = values
	case KeyBefore:
		f.Before = values
	case KeySince:
		f.Since = values
	case KeyReference:
		for _, pattern := range values {
			if _, err := path.Match(pattern, ""); err != nil {
				return err
			}
		}
		f.References = values
	case KeyDangling:
		text, err := single(values)
		if err != nil {
			return err
		}
		dangling, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		f.Dangling = &dangling
	case KeyUntil:
		text, err := single(values)
		if err == nil {
			f.Until, err = parseTime(text, now)
		}
		return err
	}
	return nil
}

func single(values []string) (string, error) {
	if len(values) != 1 {
		return "", fmt.Errorf("%d values instead of one", len(values))
	}
	return values[0], nil
}

// layouts are those that docker reads, besides seconds since 1970.
var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"}

func parseTime(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither a duration nor a time", text)
}

// Image is what an image is compared by.
type Image struct {
	// Names are those that people know it by; none: it is dangling.
	Names []string
	// Came is when it came here.
	Came time.Time
	// Labels are those of its configuration. They are asked for only if the filter
	// needs them.
	Labels func() map[string]string
	// Before and Since are when the images came that Filter.Before and Since name.
	Before, Since []time.Time
}

// Match tells whether an image passes.
func (f Filter) Match(img Image) bool {
	if f.Dangling != nil && *f.Dangling != (len(img.Names) == 0) {
		return false
	}
	if !f.Until.IsZero() && !img.Came.Before(f.Until) {
		return false
	}
	for _, t := range img.Before {
		if !img.Came.Before(t) {
			return false
		}
	}
	for _, t := range img.Since {
		if !img.Came.After(t) {
			return false
		}
	}
	return f.matchNames(img.Names) && f.matchLabels(img.Labels)
}

func (f Filter) matchNames(names []string) bool {
	return len(f.References) == 0 || slices.ContainsFunc(names, func(name string) bool {
		return slices.ContainsFunc(f.References, func(pattern string) bool { return MatchName(pattern, name) })
	})
}

// MatchName tells whether a pattern in the language of path.Match matches a name in
// any of the forms that people write it: whole or as short as possible, with and
// without its tag or digest.
func MatchName(pattern, name string) bool {
	forms := []string{name}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		forms = append(forms, named.Name(), reference.FamiliarString(named), reference.FamiliarName(named))
	}
	return slices.ContainsFunc(forms, func(form string) bool {
		ok, err := path.Match(pattern, form)
		return err == nil && ok
	})
}

func (f Filter) matchLabels(labels func() map[string]string) bool {
	if len(f.Labels)+len(f.NotLabels) == 0 {
		return true
	}
	have := labels()
	has := func(want string) bool {
		key, value, exact := strings.Cut(want, "=")
		got, ok := have[key]
		return ok && (!exact || got == value)
	}
	return !slices.ContainsFunc(f.NotLabels, has) &&
		!slices.ContainsFunc(f.Labels, func(want string) bool { return !has(want) })
}
