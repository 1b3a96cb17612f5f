// SPDX-License-Identifier: Apache-2.0

package container

import "github.com/berthd/berth/shim/fault"

// State is where a container, or one of its processes, is in its life.
type State uint8

// The states. Creating is never seen from outside: the container is not known
// until it is created. A process that was registered by Exec and not yet started
// is Created.
const (
	Creating   State = iota
	Created          // init waits for Start
	Restorable       // created from a checkpoint: Start restores it
	Running
	Pausing
	Paused
	Stopped
)

func (s State) String() string {
	return [...]string{"creating", "created", "created from checkpoint", "running", "pausing", "paused", "stopped"}[s]
}

// Action is what a caller asks of a container.
type Action uint8

// The actions that depend on the state.
const (
	Start Action = 1 << iota
	Exec
	Pause
	Resume
	Update
	Checkpoint
	Kill
	Delete
)

var actionNames = map[Action]string{
	Start: "start", Exec: "exec in", Pause: "pause", Resume: "resume",
	Update: "update", Checkpoint: "checkpoint", Kill: "kill", Delete: "delete",
}

// allowed is the whole state table.
var allowed = [...]Action{
	Creating:   0,
	Created:    Start | Exec | Update | Kill | Delete,
	Restorable: Start | Update | Kill | Delete,
	Running:    Exec | Pause | Update | Checkpoint | Kill,
	Pausing:    Kill,
	Paused:     Resume | Update | Checkpoint | Kill,
	Stopped:    Delete,
}

// permit returns FailedPrecondition when a is not possible in s. The words are
// those that clients of the runc shim know.
func (s State) permit(a Action) error {
	if allowed[s]&a != 0 {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "cannot "+actionNames[a]+" a container in "+s.String()+" state")
}
