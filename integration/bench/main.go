// SPDX-License-Identifier: Apache-2.0

// Command bench measures a shim beside containerd's own: one program, one run,
// one private containerd, the two in turn, so that what else the machine does
// falls on both alike. Pods are measured in a second containerd, one with the CRI
// plugin; the command line for images beside ctr's and podman's. It prints a table of medians and their ratios and writes the same as
// JSON.
//
// It needs root and what `make deps build` leaves behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// settings are the flags, resolved.
type settings struct {
	only  []string // parts to run
	a, b  host.Runtime
	json  string // file for the figures, "" for none
	trace bool

	rounds int // repetitions of each latency figure

	idle  int           // idle containers per runtime
	poll  time.Duration // how long they, and pods, are polled, once a second each
	execs int           // execs per idle container meanwhile
	nulls bool          // idle containers have no stdio instead of fifos
	pods  int           // idle pods per runtime and size

	outputs int   // repetitions of each output figure
	bytes   int64 // written per repetition
	line    int   // bytes per line, newline included

	pulls int // repetitions of each pull
}

var parts = []string{"latency", "memory", "output", "pods", "images"}

func main() {
	s, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	host.EnterOffline()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err = run(ctx, s)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := f.Bool("quick", false, "about a minute: fewer rounds and containers")
	full := f.Bool("full", false, "memory as the goals are stated: ten minutes of polls, 100 execs per container")
	only := f.String("only", strings.Join(parts, ","), "parts to run")
	a := f.String("a", "stock", "runtime to compare with: stock, berth or dropin")
	b := f.String("b", "berth", "runtime to measure: stock, berth or dropin")
	f.StringVar(&s.json, "json", host.Build("bench.json"), "write the figures to this file; empty for none")
	f.BoolVar(&s.trace, "trace", false, "also time the shim without containerd, and the OCI runtime alone")
	f.IntVar(&s.rounds, "rounds", 40, "repetitions of each latency figure")
	f.IntVar(&s.idle, "idle", 50, "idle containers per runtime")
	f.DurationVar(&s.poll, "poll", time.Minute, "how long idle containers and pods are polled for stats, once a second")
	f.IntVar(&s.execs, "execs", 20, "execs per idle container meanwhile")
	f.BoolVar(&s.nulls, "null", false, "idle containers without stdio instead of fifos")
	f.IntVar(&s.pods, "pods", 10, "idle pods of each size per runtime")
	f.IntVar(&s.outputs, "outputs", 5, "repetitions of each output figure")
	f.Int64Var(&s.bytes, "bytes", 200e6, "bytes written per repetition")
	f.IntVar(&s.line, "line", 100, "bytes per line written")
	f.IntVar(&s.pulls, "pulls", 8, "pulls of an image by each program")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *quick {
		shorten(s, given)
	}
	if *full {
		lengthen(s, given)
	}
	s.only = strings.Split(*only, ",")
	for _, part := range s.only {
		if !slices.Contains(parts, part) {
			return nil, fmt.Errorf("-only %s: not one of %v", part, parts)
		}
	}
	var err error
	if s.a, err = named(*a); err != nil {
		return nil, err
	}
	if s.b, err = named(*b); err != nil {
		return nil, err
	}
	if s.a.Label == s.b.Label {
		s.b.Label += "'"
	}
	if s.line < 2 || s.bytes < int64(s.line) || s.rounds < 1 || s.outputs < 1 || s.idle < 1 || s.pods < 1 || s.pulls < 1 {
		return nil, errors.New("-line, -bytes, -rounds, -outputs, -idle, -pods and -pulls must be positive, -bytes at least one line")
	}
	return s, nil
}

func shorten(s *settings, given map[string]bool) {
	if !given["rounds"] {
		s.rounds = 12
	}
	if !given["idle"] {
		s.idle = 10
	}
	if !given["poll"] {
		s.poll = 10 * time.Second
	}
	if !given["execs"] {
		s.execs = 10
	}
	if !given["pods"] {
		s.pods = 3
	}
	if !given["outputs"] {
		s.outputs = 2
	}
	if !given["pulls"] {
		s.pulls = 2
	}
}

func lengthen(s *settings, given map[string]bool) {
	if !given["poll"] {
		s.poll = 10 * time.Minute
	}
	if !given["execs"] {
		s.execs = 100
	}
}

func named(label string) (host.Runtime, error) {
	for _, r := range []host.Runtime{host.Stock, host.Native, host.DropIn} {
		if r.Label == label {
			return r, nil
		}
	}
	return host.Runtime{}, fmt.Errorf("no runtime %q: stock, berth or dropin", label)
}

func run(ctx context.Context, s *settings) error {
	for _, r := range []host.Runtime{s.a, s.b} {
		if _, err := os.Stat(r.Binary()); err != nil {
			return fmt.Errorf("%w (run `make deps build`)", err)
		}
	}
	d, err := host.New(host.Options{})
	if err != nil {
		return err
	}
	b := &bench{daemon: d, settings: s, report: newReport(s)}
	err = b.measure(ctx)
	b.report.print(os.Stdout)
	if err != nil {
		err = fmt.Errorf("%w\ncontainerd's log:\n%s", err, d.Log(20))
	} else if s.json != "" {
		err = b.report.save(s.json)
	}
	return errors.Join(err, d.Close())
}

// measure runs the parts, each in surroundings as fresh as the first's.
func (b *bench) measure(ctx context.Context) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	began := time.Now()
	for _, part := range b.settings.only {
		var err error
		switch part {
		case "latency":
			err = b.latency(ctx)
		case "memory":
			err = b.memory(ctx)
		case "output":
			err = b.output(ctx)
		case "pods":
			err = b.pods(ctx)
		case "images":
			err = b.images(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	if b.settings.trace {
		if err := b.traceAll(ctx); err != nil {
			return fmt.Errorf("trace: %w", err)
		}
	}
	b.report.Seconds = time.Since(began).Seconds()
	return nil
}

// progress shows where the program is, for a person who waits.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, filepath.Base(os.Args[0])+": "+format+"\n", args...)
}
