// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/stdio"
)

// consoleLimit is how long a runtime that has ended successfully may have left
// its terminal unsent. It sends before it ends; the rest is the scheduler's.
const consoleLimit = 10 * time.Second

// undo takes back the steps of a job that failed half way.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

// end runs the steps backwards, all of them, when *err is set, and joins their
// errors to it.
func (u *undo) end(err *error) {
	if *err == nil {
		return
	}
	for i := len(*u) - 1; i >= 0; i-- {
		if e := (*u)[i](); e != nil {
			*err = fault.Wrap(fault.CodeOf(*err), (*err).Error(), e)
		}
	}
}

// launch is what a job does to bring a process to life through the runtime, and
// what it found.
type launch struct {
	stdio   *Stdio
	streams *stdio.Streams
	master  int // of the terminal
	pid     int
}

// open opens the streams of a process; exec is empty for init.
func (l *launch) open(h Host, exec string, s *Stdio) (err error) {
	l.stdio, l.master = s, -1
	l.streams, err = stdio.Open(h.Loop, h.Children, h.streamsConfig(exec, s))
	return err
}

// streamsConfig says where the streams of a process go.
func (h *Host) streamsConfig(exec string, s *Stdio) *stdio.Config {
	p := h.Plan
	return &stdio.Config{
		Namespace: p.Namespace, ID: p.ID, Exec: exec,
		Terminal: s.Terminal, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr,
		UID: int(p.IoUID), GID: int(p.IoGID), Work: p.Work,
		Direct: p.Direct, SpoolMax: p.SpoolMaxBytes,
		Log: stdio.LogConfig{
			Drivers: p.LogDrivers, MaxSize: p.LogSizeMaxBytes, MaxFiles: int(p.LogMaxFiles), GlobalMax: p.LogGlobalMaxBytes,
			NoSync: p.LogNoSync, Labels: p.LogLabels, Tag: p.LogTag, AllowedDirs: p.LogAllowedDirs,
		},
		Warn: h.Logf,
	}
}

func (l *launch) abort() error {
	l.streams.Abort()
	if l.master >= 0 {
		unix.Close(l.master)
	}
	return nil
}

// run makes call, which starts a process through the runtime, and reads the pid
// that the runtime leaves in pidFile. With a terminal, call gets the path of the
// socket to send its master to.
func (l *launch) run(lp *loop.Loop, pidFile string, call func(console string) error) error {
	var console *runc.Console
	path := ""
	if l.stdio.Terminal {
		var err error
		path = "console-" + strings.TrimSuffix(filepath.Base(pidFile), ".pid") + ".sock"
		if console, err = runc.ListenConsole(path); err != nil {
			return fault.In("console socket", err)
		}
		defer console.Close()
	}
	if err := call(path); err != nil {
		return err
	}
	b, err := os.ReadFile(pidFile)
	if err == nil {
		l.pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return fault.Wrap(fault.Unknown, "pid of the new process", err)
	}
	if console != nil {
		if l.master, err = console.Receive(lp, consoleLimit); err != nil {
			return fault.In("terminal of the new process", err)
		}
	}
	return nil
}

// checkImage refuses a directory that holds no checkpoint. inventory.img is the
// first file that criu reads of one.
func checkImage(dir string) error {
	_, err := os.Stat(filepath.Join(dir, "inventory.img"))
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.InvalidArgument, "checkpoint "+dir+": no inventory.img")
	}
	if err != nil {
		return fault.Wrap(fault.Unknown, "checkpoint "+dir, err)
	}
	return nil
}
