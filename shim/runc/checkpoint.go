// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/shim/fault"
)

// Criu is what a checkpoint and its restore have in common.
type Criu struct {
	ID                  string
	ImagePath           string
	WorkPath            string
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string // "", soft, full, strict, ignore
	Timeout             time.Duration
}

func (c *Criu) args(args []string) []string {
	args = appendFlag(args, "--image-path", c.ImagePath)
	args = appendFlag(args, "--work-path", c.WorkPath)
	args = appendBool(args, "--tcp-established", c.OpenTCP)
	args = appendBool(args, "--ext-unix-sk", c.ExternalUnixSockets)
	args = appendBool(args, "--shell-job", c.Terminal)
	args = appendBool(args, "--file-locks", c.FileLocks)
	args = appendFlag(args, "--manage-cgroups-mode", c.CgroupsMode)
	for _, ns := range c.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return args
}

// Checkpoint says how a running container is dumped.
type Checkpoint struct {
	Criu
	ParentPath string
	Exit       bool // do not leave it running
}

func (c *Checkpoint) args() []string {
	args := c.Criu.args([]string{"checkpoint"})
	args = appendFlag(args, "--parent-path", c.ParentPath)
	args = appendBool(args, "--leave-running", !c.Exit)
	return append(args, c.ID)
}

// Checkpoint dumps a container. The error carries the end of CRIU's log.
func (r *Runtime) Checkpoint(c *Checkpoint) error {
	err := r.run(&call{verb: "checkpoint", args: c.args(), files: noFiles, limit: c.Timeout})
	return withCriuLog(err, c.WorkPath, c.ImagePath, "dump.log")
}

// Restoration says how a container comes back from a checkpoint.
type Restoration struct {
	Criu
	PidFile         string
	ConsoleSocket   string
	NoPivot         bool
	LSMProfile      string
	LSMMountContext string
	Files           [3]int
}

func (c *Restoration) args(bundle string) []string {
	args := c.Criu.args([]string{"restore", "--detach", "--bundle", bundle, "--pid-file", c.PidFile})
	args = appendFlag(args, "--console-socket", c.ConsoleSocket)
	args = appendBool(args, "--no-pivot", c.NoPivot)
	args = appendFlag(args, "--lsm-profile", c.LSMProfile)
	args = appendFlag(args, "--lsm-mount-context", c.LSMMountContext)
	return append(args, c.ID)
}

// inventory is the file without which a directory is no checkpoint.
const inventory = "inventory.img"

// Restore creates and runs the bundle's container from a checkpoint. A directory
// that holds none is InvalidArgument, and the runtime is not called. The
// restored init becomes a child of this process, the nearest subreaper.
func (r *Runtime) Restore(c *Restoration) error {
	if _, err := os.Stat(filepath.Join(c.ImagePath, inventory)); err != nil {
		return fault.Wrap(fault.InvalidArgument, "restore: not a checkpoint", err)
	}
	err := r.run(&call{
		verb: "restore", args: c.args(r.Bundle),
		files: ofProcess(c.Files, c.ConsoleSocket != ""), limit: c.Timeout,
	})
	return withCriuLog(err, c.WorkPath, c.ImagePath, "restore.log")
}

// criuTailLines of CRIU's log usually hold the reason and what led to it.
const criuTailLines = 5

// withCriuLog adds the last lines of CRIU's log to err. The log is in the work
// directory, which is the image directory when there is none.
func withCriuLog(err error, work, images, name string) error {
	if err == nil {
		return nil
	}
	if work == "" {
		work = images
	}
	b, rerr := os.ReadFile(filepath.Join(work, name))
	if rerr != nil || len(b) == 0 {
		return err // CRIU has not come that far
	}
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	lines = lines[max(0, len(lines)-criuTailLines):]
	return fault.New(fault.CodeOf(err), err.Error()+" ("+name+": "+string(bytes.Join(lines, []byte("; ")))+")")
}
