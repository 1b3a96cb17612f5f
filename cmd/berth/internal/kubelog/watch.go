// SPDX-License-Identifier: Apache-2.0

package kubelog

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lookAgain is for what the kernel does not tell, as of writers on other machines.
const lookAgain = time.Second

// watch sends when something in the directory of a log has changed, until stop.
// Something may be nothing.
func watch(path string) (changes <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), what); err != nil {
		_ = events.Close()
		return nil, nil, fmt.Errorf("log %s: %w", path, os.NewSyscallError("inotify_add_watch", err))
	}
	c := make(chan struct{}, 1) // one reminder is enough
	done := make(chan struct{})
	remind := func() {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(done)
		b := make([]byte, 1<<12) // some events; what they are does not matter
		for {
			_ = events.SetReadDeadline(time.Now().Add(lookAgain)) // fails once it is closed
			if _, err := events.Read(b); err != nil && !os.IsTimeout(err) {
				return
			}
			remind()
		}
	}()
	return c, func() {
		_ = events.Close() // ends the read
		<-done
	}, nil
}
