// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// note writes a line to the fifo in the bundle that containerd copies to its
// log. Without a reader it is lost: nothing waits for one. It must not go to
// stderr, which containerd reads as part of the answer.
func (inv *Invocation) note(level, format string, args ...any) {
	if level == "debug" && !inv.Debug {
		return
	}
	fd, err := unix.Open(filepath.Join(inv.Bundle, "log"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	line := fmt.Appendf(nil, "time=%q level=%s msg=%q runtime=%s namespace=%s container=%s\n",
		time.Now().UTC().Format(time.RFC3339Nano), level, fmt.Sprintf(format, args...), Name, inv.Namespace, inv.ID)
	_, _ = unix.Write(fd, line)
}
