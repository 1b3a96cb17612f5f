// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"strings"
	"time"
)

// Bytes writes a size for people, with three digits: 12.3MiB.
func Bytes(n uint64) string {
	const step = 1024
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, i := float64(n), 0
	// Half of a unit's last digit below: 1023.6KiB would be written as 1024KiB.
	for value >= step-0.5 && i < len(units)-1 {
		value, i = value/step, i+1
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%d%s", n, units[i])
	case value < 9.995:
		return fmt.Sprintf("%.2f%s", value, units[i])
	case value < 99.95:
		return fmt.Sprintf("%.1f%s", value, units[i])
	}
	return fmt.Sprintf("%.0f%s", value, units[i])
}

// Limit is Bytes, or a dash for none.
func Limit(n uint64) string {
	if n == 0 {
		return ""
	}
	return Bytes(n)
}

// Percent writes a share.
func Percent(share float64) string { return fmt.Sprintf("%.2f%%", 100*share) }

// Ago writes how long ago something was, for people.
func Ago(now, then time.Time) string {
	if then.IsZero() {
		return ""
	}
	d := now.Sub(then)
	const day = 24 * time.Hour
	for _, c := range []struct {
		from, unit time.Duration
		name       string
	}{
		{730 * day, 365 * day, "year"},
		{60 * day, 30 * day, "month"},
		{14 * day, 7 * day, "week"},
		{2 * day, day, "day"},
		{2 * time.Hour, time.Hour, "hour"},
		{2 * time.Minute, time.Minute, "minute"},
	} {
		if d >= c.from {
			return fmt.Sprintf("%d %ss ago", d/c.unit, c.name)
		}
	}
	return fmt.Sprintf("%d seconds ago", max(0, d)/time.Second)
}

// ID shortens the long IDs that are made up. Others mean something to somebody.
func ID(id string) string {
	const long, short = 32, 12 // short: as docker, nerdctl and podman
	if len(id) < long || strings.Trim(id, "0123456789abcdef") != "" {
		return id
	}
	return id[:short]
}
