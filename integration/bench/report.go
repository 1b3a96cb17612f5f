// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// report is what a run found, and what is written as JSON.
type report struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // the run took
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	A       string    `json:"a"` // the runtime compared with
	B       string    `json:"b"` // the runtime measured
	Rows    []*row    `json:"rows"`
}

// row is one figure, measured for two or more.
type row struct {
	Part   string              `json:"part"`
	Name   string              `json:"name"`
	Unit   string              `json:"unit"`
	Values map[string]*summary `json:"values"`          // by runtime or peer
	Ratio  float64             `json:"ratio,omitempty"` // of the medians, B's to A's or the peer's
	Goal   string              `json:"goal,omitempty"`  // bound of the ratio, or of B's median
	Met    *bool               `json:"met,omitempty"`
}

// summary is a sample and what is said of it.
type summary struct {
	N      int       `json:"n"`
	Min    float64   `json:"min"`
	Median float64   `json:"median"`
	P90    float64   `json:"p90"`
	Mean   float64   `json:"mean"`
	Sample []float64 `json:"sample"`
}

// conmonLabel is the peer of the CRI log's rows.
const conmonLabel = "conmon"

// figure is what is known of a figure beforehand.
type figure struct {
	name, unit string
	atMost     float64 // goal for the ratio, 0 for none
	atLeast    float64
	below      float64 // goal for B's median itself
}

// figures are what is known of the parts whose names begin so. The goals are
// those of docs/performance.md.
var figures = map[string][]figure{
	"latency": {
		{name: "create", unit: "ms"},
		{name: "start", unit: "ms"},
		{name: "create+start", unit: "ms", atMost: 0.65},
		{name: "exit", unit: "ms"},
		{name: "delete", unit: "ms", atMost: 0.40},
		{name: "whole life of true", unit: "ms"},
		{name: "exec of true", unit: "ms", atMost: 0.90},
	},
	"memory, fresh": {
		{name: "private dirty", unit: "KiB"},
		{name: "PSS", unit: "KiB"},
		{name: "RSS", unit: "KiB"},
		{name: "threads", unit: ""},
	},
	"memory, after": {
		{name: "private dirty", unit: "KiB", atMost: 0.22},
		{name: "PSS", unit: "KiB", atMost: 0.22},
		{name: "RSS", unit: "KiB"},
		{name: "threads", unit: ""},
	},
	"output": {
		{name: "fifo, rate", unit: "MB/s"},
		{name: "fifo, the shim's CPU", unit: "s", atMost: 0.5},
		{name: "fifo, the reader's CPU", unit: "s"},
		{name: "file, rate", unit: "MB/s"},
		{name: "file, the shim's CPU", unit: "s", atMost: 0.5},
		{name: "cri, rate", unit: "MB/s", atLeast: 1},
		{name: "cri, the shim's CPU", unit: "s", atMost: 1},
	},
	"pods, host network": {
		{name: "RunPodSandbox", unit: "ms", atMost: 0.35},
		{name: "pod start", unit: "ms", atMost: 0.60}, // CRI-O's is 0.47
	},
	"images": {
		{name: "pull and unpack (ctr)", unit: "ms", atMost: 1},
		{name: "pull and unpack (local)", unit: "ms", atMost: 1},
		{name: "pull and unpack (podman)", unit: "ms", atMost: 0.5},
		{name: "ls of 1,000 (ctr)", unit: "ms", below: 50},
	},
	"pod of one, fresh":   podMemory(0),
	"pod of one, after":   podMemory(0.35),
	"pod of three, fresh": podMemory(0),
	"pod of three, after": podMemory(0.65),
}

func podMemory(private float64) []figure {
	return []figure{
		{name: "processes", unit: ""},
		{name: "private dirty", unit: "KiB", atMost: private},
		{name: "PSS", unit: "KiB"},
		{name: "threads", unit: ""},
	}
}

func (f *figure) goal() string {
	switch {
	case f.atMost > 0:
		return fmt.Sprintf("<= %.2f", f.atMost)
	case f.atLeast > 0:
		return fmt.Sprintf(">= %.2f", f.atLeast)
	case f.below > 0:
		return fmt.Sprintf("< %.0f %s", f.below, f.unit)
	}
	return ""
}

// known finds what is known of a figure: an unknown one has milliseconds and no
// goal.
func known(part, name string) figure {
	for of, list := range figures {
		if !strings.HasPrefix(part, of) {
			continue
		}
		for _, f := range list {
			if f.name == name {
				return f
			}
		}
	}
	return figure{name: name, unit: "ms"}
}

func newReport(s *settings) *report {
	var u unix.Utsname
	kernel := ""
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return &report{Time: time.Now(), Kernel: kernel, CPUs: runtime.NumCPU(), A: s.a.Label, B: s.b.Label}
}

// add takes one measurement.
func (r *report) add(rt host.Runtime, part, name string, value float64) {
	r.addPeer(rt.Label, part, name, value)
}

func (r *report) addPeer(label, part, name string, value float64) {
	i := slices.IndexFunc(r.Rows, func(w *row) bool { return w.Part == part && w.Name == name })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{Part: part, Name: name, Unit: known(part, name).unit, Values: map[string]*summary{}})
	}
	v := r.Rows[i].Values
	if v[label] == nil {
		v[label] = &summary{}
	}
	v[label].Sample = append(v[label].Sample, value)
}

// conclude fills in what follows from the samples.
func (r *report) conclude() {
	for _, w := range r.Rows {
		for _, s := range w.Values {
			s.conclude()
		}
		a, b := w.Values[r.base(w)], w.Values[r.B]
		if a == nil || b == nil || a.Median == 0 {
			continue
		}
		w.Ratio = b.Median / a.Median
		f := known(w.Part, w.Name)
		if w.Goal = f.goal(); w.Goal != "" {
			met := (f.atMost == 0 || w.Ratio <= f.atMost) && w.Ratio >= f.atLeast && (f.below == 0 || b.Median < f.below)
			w.Met = &met
		}
	}
}

// base is whom the row's B is compared with.
func (r *report) base(w *row) string {
	for _, peer := range []string{conmonLabel, ctrLabel, localLabel, podmanLabel} {
		if w.Values[peer] != nil {
			return peer
		}
	}
	return r.A
}

func (s *summary) conclude() {
	sorted := slices.Sorted(slices.Values(s.Sample))
	s.N = len(sorted)
	s.Min, s.Median, s.P90 = sorted[0], quantile(sorted, 0.5), quantile(sorted, 0.9)
	s.Mean = 0
	for _, v := range sorted {
		s.Mean += v / float64(s.N)
	}
}

// quantile interpolates between the two nearest values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func (r *report) print(to io.Writer) {
	r.conclude()
	fmt.Fprintf(to, "%s beside %s; linux %s, %d CPUs; %.0f s\n", r.B, r.A, r.Kernel, r.CPUs, r.Seconds)
	part := ""
	for _, w := range r.Rows {
		if w.Part != part {
			part = w.Part
			fmt.Fprintf(to, "\n%-34s %-7s %s  %-7s %s  ratio  goal\n", strings.ToUpper(part),
				"", header, "", header)
		}
		name := w.Name
		if w.Unit != "" {
			name += ", " + w.Unit
		}
		base := r.base(w)
		line := fmt.Sprintf("%-34s %-7s %s  %-7s %s  %5s  %s %s", name,
			base, w.Values[base].cells(), r.B, w.Values[r.B].cells(), w.ratio(), w.Goal, w.verdict())
		fmt.Fprintln(to, strings.TrimRight(line, " "))
	}
}

const header = "  n  median     min     p90"

func (s *summary) cells() string {
	if s == nil {
		return strings.Repeat(" ", len(header))
	}
	return fmt.Sprintf("%3d %7s %7s %7s", s.N, number(s.Median), number(s.Min), number(s.P90))
}

// number keeps three digits that mean something.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (w *row) ratio() string {
	if w.Ratio == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", w.Ratio)
}

func (w *row) verdict() string {
	switch {
	case w.Met == nil:
		return ""
	case *w.Met:
		return "met"
	}
	return "MISSED"
}

func (r *report) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
