// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/berthd/berth/cmd/berth/internal/terminal"
)

// Listing is how a list is shown, as the flags say.
type Listing struct {
	Out    *os.File
	Format Format
	Quiet  bool // IDs alone
	Whole  bool // nothing is shortened
	Watch  bool
	Every  time.Duration
	// Changes is that of Watch.
	Changes bool
}

// List is what is shown: the JSON of Items, a table of them, or their IDs.
type List[T any] struct {
	Items []T
	Table Table
	IDs   []string
}

// BindOnce declares the flags of a command that lists what does not change.
func (l *Listing) BindOnce(flags *pflag.FlagSet) {
	l.bind(flags)
	flags.BoolVarP(&l.Quiet, "quiet", "q", false, "only IDs")
	flags.BoolVar(&l.Whole, "no-trunc", false, "do not shorten IDs")
}

// Bind declares the flags of a command that lists.
func (l *Listing) Bind(flags *pflag.FlagSet) {
	l.BindOnce(flags)
	flags.BoolVarP(&l.Watch, "watch", "w", false, "show it again when it changes, until interrupted")
	flags.DurationVar(&l.Every, "interval", time.Second, "how often to look, with --watch")
	l.Changes = true
}

// BindStats declares the flags of a command that measures.
func (l *Listing) BindStats(flags *pflag.FlagSet, once *bool) {
	l.bind(flags)
	flags.BoolVar(once, "no-stream", false, "measure once")
	flags.DurationVar(&l.Every, "interval", time.Second, "how often to measure")
}

func (l *Listing) bind(flags *pflag.FlagSet) {
	l.Format = Tables
	flags.VarP(&l.Format, "output", "o", "table, or json for programs")
}

// Time writes when something was: how long ago, unless it is going to be read later.
func (l *Listing) Time(t time.Time) string {
	if l.Watch && !terminal.Is(l.Out) && !t.IsZero() {
		return t.UTC().Format(time.RFC3339)
	}
	return Ago(time.Now(), t)
}

// ID writes an ID.
func (l *Listing) ID(id string) string {
	if l.Whole {
		return id
	}
	return ID(id)
}

// Show shows a list, with Watch until ctx ends.
func Show[T any](ctx context.Context, l *Listing, load func(context.Context) (*List[T], error)) error {
	if !l.Watch {
		list, err := load(ctx)
		if err != nil {
			return err
		}
		return show(l, list)
	}
	if l.Every <= 0 {
		l.Every = time.Second
	}
	if l.Format == Tables && !l.Quiet {
		w := Watch{Out: l.Out, Every: l.Every, Changes: l.Changes}
		return w.Run(ctx, func(ctx context.Context) (*Table, error) {
			list, err := load(ctx)
			if err != nil {
				return nil, err
			}
			return &list.Table, nil
		})
	}
	var before []byte
	return Every(ctx, l.Every, func(ctx context.Context) error {
		list, err := load(ctx)
		if err != nil {
			return err
		}
		now, err := json.Marshal(list)
		if err != nil || l.Changes && bytes.Equal(now, before) {
			return err
		}
		before = now
		return line(l, list)
	})
}

func show[T any](l *Listing, list *List[T]) error {
	switch {
	case l.Quiet:
		return writeIDs(l, list.IDs)
	case l.Format == AsJSON:
		return JSON(l.Out, list.Items)
	}
	return list.Table.Write(l.Out)
}

// line shows a list of many that are read by a program: one line for each.
func line[T any](l *Listing, list *List[T]) error {
	if l.Quiet {
		return writeIDs(l, list.IDs)
	}
	if list.Items == nil {
		list.Items = []T{}
	}
	return Line(l.Out, list.Items)
}

func writeIDs(l *Listing, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	whole := make([]string, len(ids))
	for i, id := range ids {
		whole[i] = l.ID(id)
	}
	_, err := fmt.Fprintln(l.Out, strings.Join(whole, "\n"))
	return err
}
