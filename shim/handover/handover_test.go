// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/integration/programs"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/handover"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
	"github.com/berthd/berth/shim/wire"
)

func TestStateRoundTrip(t *testing.T) {
	for name, want := range map[string]handover.State{
		"whole":        {Plan: []byte("p"), Server: []byte("s"), Events: []byte("e"), Container: []byte("c")},
		"no container": {Plan: []byte("p"), Server: []byte("s"), Events: []byte("e")},
		"empty parts":  {Plan: []byte("p"), Server: []byte{}, Container: []byte{}},
	} {
		t.Run(name, func(t *testing.T) {
			var got handover.State
			if err := got.Decode(want.Append(nil)); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestStateOfANewerProgram(t *testing.T) {
	plan := wire.AppendBytes(nil, 2, []byte("p"))
	for name, tc := range map[string]struct {
		state []byte
		want  fault.Code
	}{
		"a part that this program does not know": {wire.AppendBytes(wire.AppendVarint(plan, 1, 1), 99, []byte("new")), fault.OK},
		"a later version":                        {wire.AppendVarint(plan, 1, handover.Version+1), fault.FailedPrecondition},
		"no version":                             {plan, fault.FailedPrecondition},
		"no plan":                                {wire.AppendVarint(nil, 1, 1), fault.InvalidArgument},
		"torn":                                   {[]byte{0x0a}, fault.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			var s handover.State
			if err := s.Decode(tc.state); fault.CodeOf(err) != tc.want {
				t.Errorf("got %v, want class %d", err, tc.want)
			}
		})
	}
}

func TestCheckRefusesABrokenProgram(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	table := process.New(l)
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	defer func() {
		l.Post(l.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	program := func(name, text string) string {
		return programs.Write(t, filepath.Join(t.TempDir(), name), text)
	}
	for name, tc := range map[string]struct{ path, want string }{
		"good":       {program("good", "#!/bin/sh\ntest \"$1\" = check-state && test \"$(cat)\" = state\n"), ""},
		"fails":      {program("bad", "#!/bin/sh\nexit 3\n"), "ended with 3"},
		"no program": {program("text", "nonsense"), "exec"},
		"missing":    {"/no/such/shim", "/no/such/shim"},
	} {
		t.Run(name, func(t *testing.T) {
			err := handover.Check(table, tc.path, []byte("state"))
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want FailedPrecondition with %q", err, tc.want)
			}
		})
	}
}
