// SPDX-License-Identifier: Apache-2.0

package container

import (
	"strings"
	"testing"

	"github.com/berthd/berth/shim/fault"
)

// The table is the specification's; integration tests try each cell for real.
func TestStateTable(t *testing.T) {
	columns := []Action{Pause, Resume, Start, Exec, Update, Checkpoint, Kill, Delete}
	for state, row := range map[State]string{
		Created:    "- - x x x - x x",
		Restorable: "- - x - x - x x",
		Running:    "x - - x x x x -",
		Pausing:    "- - - - - - x -",
		Paused:     "- x - - x x x -",
		Stopped:    "- - - - - - - x", // Kill: "already finished", from the process
	} {
		for i, cell := range strings.Fields(row) {
			err := state.permit(columns[i])
			if (err == nil) != (cell == "x") {
				t.Errorf("%s: %s: got %v", state, actionNames[columns[i]], err)
			}
			if err == nil {
				continue
			}
			if fault.CodeOf(err) != fault.FailedPrecondition {
				t.Errorf("%s: %s: class %d", state, actionNames[columns[i]], fault.CodeOf(err))
			}
			for _, word := range []string{"cannot ", actionNames[columns[i]], " in " + state.String() + " state"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		}
	}
}

func TestExecIDs(t *testing.T) {
	for id, want := range map[string]fault.Code{
		"exec-1":                 fault.OK,
		"a_b.c":                  fault.OK,
		strings.Repeat("a", 200): fault.OK,
		strings.Repeat("a", 201): fault.InvalidArgument,
		"":                       fault.InvalidArgument,
		".":                      fault.InvalidArgument,
		"..":                     fault.InvalidArgument,
		"a/b":                    fault.InvalidArgument,
		"a\x00b":                 fault.InvalidArgument,
		"ä":                      fault.InvalidArgument,
	} {
		if err := checkExecID(id); fault.CodeOf(err) != want {
			t.Errorf("%q: got %v", id, err)
		}
	}
}

// Kill of a process without a child to signal: NotFound once it has been one, also if
// its end is held back for those of others.
func TestKillWithoutProcess(t *testing.T) {
	for name, c := range map[string]struct {
		p    Process
		want fault.Code
	}{
		"not started":         {Process{state: Created}, fault.FailedPrecondition},
		"ended, not told yet": {Process{state: Running, pid: 7}, fault.NotFound},
		"stopped":             {Process{state: Stopped, pid: 7}, fault.NotFound},
		"failed to start":     {Process{state: Stopped}, fault.NotFound},
	} {
		if err := c.p.Kill(15); fault.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want class %d", name, err, c.want)
		}
	}
}
