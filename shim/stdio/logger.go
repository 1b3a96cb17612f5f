// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

const (
	// loggerReady is how long a logging program may take to become ready.
	loggerReady = 30 * time.Second
	// loggerPatience is how long a logging program may take to end after SIGTERM.
	// It is containerd's.
	loggerPatience = 12 * time.Second
	// loggerWords is how much of a failed program's standard error is reported.
	loggerWords = 1024
)

// logger is a logging program. Its fields belong to the loop.
type logger struct {
	s      *Streams
	pid    int // 0: it has ended
	ending bool
	kill   *loop.Timer
	onEnd  func()
}

// startLogger starts the program of u, with stdout and stderr (-1: none) to read
// from, and waits until it is ready. It is called in a job.
//
// The program gets its output on descriptors 3 and 4, and on 5 a pipe to say that
// it is ready: by closing it, so that one which has crashed counts as well; with
// binary-v2 by a byte, and an end without it is an error. Its environment is
// CONTAINER_ID and CONTAINER_NAMESPACE.
func (s *Streams) startLogger(u *uri, stdout, stderr int) (*logger, error) {
	ready, readyW, err := pipe()
	if err != nil {
		return nil, err
	}
	defer closeFD(&ready)
	defer closeFD(&readyW)
	words, wordsW := -1, -1
	if u.scheme == schemeBinaryV2 {
		// Not a pipe: nobody reads when the program is up, and it must not block then,
		// nor be killed.
		if words, err = unix.MemfdCreate("stderr", unix.MFD_CLOEXEC); err != nil {
			return nil, fault.Wrap(fault.Unknown, "logger", err)
		}
		defer closeFD(&words)
		wordsW = words
	}
	args := []string{u.path}
	for _, q := range u.query {
		args = append(args, q.key, q.value)
	}
	lg := &logger{s: s}
	started := make(chan struct{}) // closed when pid is known, which exited may be sooner
	pid, err := s.t.Spawn(&process.Command{
		Path: u.path, Args: args,
		Env:   []string{"CONTAINER_ID=" + s.cfg.ID, "CONTAINER_NAMESPACE=" + s.cfg.Namespace},
		Files: []int{-1, -1, wordsW, stdout, stderr, readyW},
	}, func(process.Exit) {
		<-started
		lg.exited()
	})
	lg.pid = max(pid, 0)
	close(started)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, "logger", err)
	}
	closeFD(&readyW)
	err = s.l.Await(ready, unix.EPOLLIN, loggerReady)
	if err == nil && u.scheme == schemeBinaryV2 {
		var b [1]byte
		if n, _ := unix.Read(ready, b[:]); n != 1 {
			err = fault.New(fault.Unknown, "ended before it was ready"+said(words))
		}
	}
	if err != nil {
		s.l.Post(lg.end)
		return nil, fault.In("logger "+u.path, err)
	}
	return lg, nil
}

// said returns what a program has written to its standard error.
func said(fd int) string {
	var b [loggerWords]byte
	n, _ := unix.Pread(fd, b[:], 0)
	text := strings.TrimSpace(string(b[:max(n, 0)]))
	if text == "" {
		return ""
	}
	return ": " + text
}

func (lg *logger) exited() {
	lg.pid = 0
	lg.kill.Stop()
	if lg.onEnd != nil { // the streams are the loop's since Begin
		lg.onEnd()
		lg.s.loggerEnded()
	}
}

// end asks the program to end, and makes it when it does not. The pid is exact:
// a child that the loop has not been told about is not reaped.
func (lg *logger) end() {
	if lg.pid == 0 || lg.ending {
		return
	}
	lg.ending = true
	_ = unix.Kill(lg.pid, unix.SIGTERM) // at worst it has ended already
	lg.kill = lg.s.l.After(loggerPatience, func() {
		if lg.pid > 0 {
			_ = unix.Kill(lg.pid, unix.SIGKILL)
		}
	})
}
