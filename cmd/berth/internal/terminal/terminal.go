// SPDX-License-Identifier: Apache-2.0

// Package terminal is the user's side of a process's terminal: raw mode, size, and
// signals that are the process's.
package terminal

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/berthd/berth/plugin/runtime"
)

// Is tells whether f is a terminal.
func Is(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// SizeOf returns the size of a terminal, zero if f is none.
func SizeOf(f *os.File) runtime.Size {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return runtime.Size{}
	}
	return runtime.Size{Width: uint16(width), Height: uint16(height)}
}

// Raw gives all keys to the process, if f is a terminal, until restore is called.
func Raw(f *os.File) (restore func(), err error) {
	if !Is(f) {
		return func() {}, nil
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, os.NewSyscallError("raw mode of the terminal", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), before) }, nil // it may be gone
}

// Sizes sends the size of a terminal, now and when it changes, until ctx ends.
func Sizes(ctx context.Context, f *os.File) <-chan runtime.Size {
	changed := make(chan os.Signal, 1) // the last size counts
	signal.Notify(changed, unix.SIGWINCH)
	sizes := make(chan runtime.Size)
	go func() {
		defer signal.Stop(changed)
		for {
			if size := SizeOf(f); size != (runtime.Size{}) {
				select {
				case sizes <- size:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// stayed are signals that are about this program, and those that Go's runtime uses.
var stayed = map[os.Signal]bool{
	unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGWINCH: true,
	unix.SIGTSTP: true, unix.SIGTTIN: true, unix.SIGTTOU: true, unix.SIGCONT: true,
}

// impatience is how many times somebody asks to end before berth itself does:
// the first process of a container may ignore signals.
const impatience = 3

// Forward hands signals to the process, by send, instead of letting them end this
// program, until stop is called. At the third to end it calls leave.
func Forward(send func(unix.Signal), leave func()) (stop func()) {
	received := make(chan os.Signal, 16) // signals are lost beyond, as in the kernel
	signal.Notify(received)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		asked := 0
		for {
			select {
			case <-done:
				return
			case s := <-received:
				if stayed[s] {
					continue
				}
				send(s.(unix.Signal))
				if s == unix.SIGINT || s == unix.SIGTERM {
					asked++
				}
				if asked == impatience {
					leave()
				}
			}
		}
	}()
	return func() {
		signal.Stop(received)
		close(done)
		<-ended
	}
}
