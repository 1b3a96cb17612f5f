// SPDX-License-Identifier: Apache-2.0

// Package logdriver is a logging program of containerd's (binary:// as a container's
// output): it writes what comes to a log in Kubernetes' format, for shims that do not
// write it themselves.
package logdriver

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
)

// Descriptors that such a program inherits. It closes the last one when it is ready.
const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5
)

// Run logs until both streams end. The destination is cri:///path?max-size=N&max-files=N.
func Run(destination string) error {
	o, err := options(destination)
	if err != nil {
		return err
	}
	w, err := crilog.Open(o)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer w.Close()
	if err := os.NewFile(readyFD, "ready").Close(); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	signal.Ignore(unix.SIGTERM) // shims send it when the streams end, and not all is read
	var mu sync.Mutex           // guards w
	var streams sync.WaitGroup
	for fd, stream := range map[uintptr]crilog.Stream{stdoutFD: crilog.Stdout, stderrFD: crilog.Stderr} {
		streams.Go(func() {
			data, scratch := make([]byte, crilog.MaxLine), make([]byte, 2*crilog.MaxLine)
			for from := os.NewFile(fd, stream.String()); ; {
				n, err := from.Read(data)
				if n > 0 {
					mu.Lock()
					w.Write(stream, data[:n], time.Now(), scratch)
					mu.Unlock()
				}
				if err != nil { // the end, mostly: there is nobody to tell of others
					return
				}
			}
		})
	}
	streams.Wait()
	return nil
}

func options(destination string) (crilog.Options, error) {
	u, err := url.Parse(destination)
	if err != nil || u.Scheme != "cri" || u.Path == "" {
		return crilog.Options{}, fmt.Errorf("log driver: %q is not cri:///path", destination)
	}
	o := crilog.Options{Path: u.Path, Warn: func(text string) { fmt.Fprintln(os.Stderr, text) }}
	var errs []error
	number := func(key string) int {
		text := u.Query().Get(key)
		if text == "" {
			return 0
		}
		n, err := strconv.Atoi(text)
		errs = append(errs, err)
		return n
	}
	o.MaxSize, o.MaxFiles = int64(number("max-size")), number("max-files")
	return o, errors.Join(errs...)
}
