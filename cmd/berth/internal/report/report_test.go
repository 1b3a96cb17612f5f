// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/plugin/runtime/process/stats"
)

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0B", 1023: "1023B", 1024: "1.00KiB", 1536: "1.50KiB", 10 << 20: "10.0MiB", 123 << 20: "123MiB", 1<<20 - 1: "1.00MiB", 1 << 63: "8.00EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	if got := Limit(0); got != "" {
		t.Errorf("no limit: %q", got)
	}
}

func TestAgo(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{
		-time.Second: "0 seconds ago", 0: "0 seconds ago", 119 * time.Second: "119 seconds ago", 2 * time.Minute: "2 minutes ago",
		119 * time.Minute: "119 minutes ago", 47 * time.Hour: "47 hours ago", 48 * time.Hour: "2 days ago", 15 * 24 * time.Hour: "2 weeks ago",
		70 * 24 * time.Hour: "2 months ago", 800 * 24 * time.Hour: "2 years ago",
	} {
		if got := Ago(now, now.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	if got := Ago(now, time.Time{}); got != "" {
		t.Errorf("never: %q", got)
	}
}

func TestID(t *testing.T) {
	for id, want := range map[string]string{
		strings.Repeat("0a", 32): "0a0a0a0a0a0a", "my-container": "my-container", strings.Repeat("z", 64): strings.Repeat("z", 64), "": "",
	} {
		if got := ID(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	table := Table{Titles: []string{"NAME", "STATE", "NOTE"}, Rows: [][]string{{"a-long-name", "up", ""}, {"b", "down", "x\x1b[31m\ny"}}}
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	const want = `NAME          STATE   NOTE
a-long-name   up      -
b             down    x?[31m?y
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := JSON[[]string](&b, nil); err != nil || b.String() != "[]\n" {
		t.Errorf("nothing: %q, %v", b.String(), err)
	}
}

// rounds is a list that is different each time, and ends the watching after them.
func rounds(cancel func(), all ...[][]string) func(context.Context) (*List[string], error) {
	i := 0
	return func(context.Context) (*List[string], error) {
		list := &List[string]{Table: Table{Titles: []string{"NAME", "STATE"}, Rows: all[i]}}
		for _, row := range all[i] {
			list.Items, list.IDs = append(list.Items, row[0]), append(list.IDs, row[0])
		}
		if i++; i == len(all) {
			i--
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		return list, nil
	}
}

// Where there is no terminal, lines come when there is something new.
func TestWatch(t *testing.T) {
	a, b := []string{"a", "up"}, []string{"bb", "up"}
	for _, c := range []struct {
		name string
		l    Listing
		want string
	}{
		{"changes", Listing{Changes: true, Format: Tables}, "NAME   STATE\na      up\nbb     up\na      down\n"},
		{"JSON", Listing{Changes: true, Format: AsJSON}, `["a"]` + "\n" + `["a","bb"]` + "\n" + `["a","bb"]` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			c.l.Out, c.l.Watch, c.l.Every = out, true, time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if err := Show(ctx, &c.l, rounds(cancel, [][]string{a}, [][]string{a, b}, [][]string{{"a", "down"}, b})); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(out.Name())
			if diff := cmp.Diff(c.want, string(got)); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestWatchError(t *testing.T) {
	l := Listing{Out: os.Stdout, Watch: true, Format: Tables}
	fault := errors.New("fault")
	err := Show(t.Context(), &l, func(context.Context) (*List[string], error) { return nil, fault })
	if !errors.Is(err, fault) {
		t.Errorf("%v, want %v", err, fault)
	}
}

func TestLoad(t *testing.T) {
	var l Load
	start := time.Now()
	at := func(d time.Duration) stats.CPU { return stats.CPU{Usage: d} }
	if got := l.Percent("a", start, at(time.Second)); got != "" {
		t.Errorf("first: %q", got)
	}
	if got := l.Percent("a", start.Add(2*time.Second), at(2*time.Second)); got != "50.00%" {
		t.Errorf("second: %q", got)
	}
	if got := l.Percent("a", start.Add(2*time.Second), at(2*time.Second)); got != "" {
		t.Errorf("same time: %q", got)
	}
	if got := l.Percent("a", start.Add(3*time.Second), at(0)); got != "" {
		t.Errorf("counter that went back: %q", got)
	}
}
