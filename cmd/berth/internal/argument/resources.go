// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/berthd/berth/plugin/runtime"
)

// Resources are the flags of a container's limits.
type Resources struct {
	memory, swap string
	cpus         float64
	r            runtime.Resources
	flags        *pflag.FlagSet
	names        []string // of all of them
}

// Bind declares the flags.
func (l *Resources) Bind(flags *pflag.FlagSet) {
	mine := pflag.NewFlagSet("", pflag.ContinueOnError)
	mine.StringVarP(&l.memory, "memory", "m", "", "most memory, a `SIZE` as 512m")
	mine.StringVar(&l.swap, "memory-swap", "", "most memory and swap together, a `SIZE`; -1 for any")
	mine.Float64Var(&l.cpus, "cpus", 0, "most processors, a `NUMBER` as 1.5")
	mine.Uint64Var(&l.r.CPUPeriod, "cpu-period", 0, "period of the quota, in `MICROSECONDS`")
	mine.Int64Var(&l.r.CPUQuota, "cpu-quota", 0, "time in each period, in `MICROSECONDS`")
	mine.Uint64VarP(&l.r.CPUShares, "cpu-shares", "c", 0, "`WEIGHT` beside others")
	mine.StringVar(&l.r.CPUs, "cpuset-cpus", "", "`LIST` of processors, as 0-3,5")
	mine.StringVar(&l.r.Mems, "cpuset-mems", "", "`LIST` of memory nodes")
	mine.Int64Var(&l.r.Pids, "pids-limit", 0, "most processes and threads, a `NUMBER`; -1 for any")
	mine.VisitAll(func(f *pflag.Flag) { l.names = append(l.names, f.Name) })
	flags.AddFlagSet(mine)
	l.flags = flags
}

// Request returns what the flags say.
func (l *Resources) Request() (runtime.Resources, error) {
	r := l.r
	var err error
	if l.memory != "" {
		if r.Memory, err = limit(l.memory); err != nil {
			return r, invalid("--memory %q, want as 512m", l.memory)
		}
	}
	if l.swap != "" {
		if r.Swap, err = limit(l.swap); err != nil {
			return r, invalid("--memory-swap %q, want as 1g", l.swap)
		}
	}
	if l.flags.Changed("cpus") {
		if l.flags.Changed("cpu-quota") || l.flags.Changed("cpu-period") {
			return r, invalid("--cpus is --cpu-quota and --cpu-period together: give one of them")
		}
		const period = 100_000 // the kernel's default, in microseconds
		r.CPUPeriod, r.CPUQuota = period, int64(math.Round(l.cpus*period))
		const least = 1000 // of the kernel
		if r.CPUQuota < least {
			return r, invalid("--cpus %v, want 0.01 or more", l.cpus)
		}
	}
	return r, nil
}

// Given tells whether any of the flags was used.
func (l *Resources) Given() bool {
	return slices.ContainsFunc(l.names, l.flags.Changed)
}

// Ulimit reads what --ulimit takes: NAME=SOFT[:HARD]; -1 and unlimited are none.
func Ulimit(text string) (runtime.Ulimit, error) {
	name, values, _ := strings.Cut(text, "=")
	soft, hard, both := strings.Cut(values, ":")
	l := runtime.Ulimit{Name: strings.ToLower(strings.TrimPrefix(name, "RLIMIT_"))}
	if !both {
		hard = soft
	}
	for _, v := range []struct {
		at   *uint64
		text string
	}{{&l.Soft, soft}, {&l.Hard, hard}} {
		if v.text == "-1" || v.text == "unlimited" {
			*v.at = math.MaxUint64
			continue
		}
		n, err := strconv.ParseUint(v.text, 10, 64)
		if err != nil {
			return l, invalid("--ulimit %q, want NAME=SOFT[:HARD]", text)
		}
		*v.at = n
	}
	return l, nil
}
