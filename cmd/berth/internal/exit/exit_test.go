// SPDX-License-Identifier: Apache-2.0

package exit

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/child"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/plugin/runtime/network"
)

func TestOf(t *testing.T) {
	missing := errors.New(`start container c: runc create failed: exec: "nosuch": executable file not found in $PATH`)
	for _, c := range []struct {
		name string
		err  error
		want int
		text string // of the message
	}{
		{"success", nil, 0, ""},
		{"process", Process(7), 7, ""},
		{"process that was wrapped", fmt.Errorf("run: %w", Process(7)), 7, ""},
		{"process that was killed", Process(137), 137, ""},
		{"process without a fault", Process(0), 0, ""},
		{"berth", errors.New("no pod"), Failed, "no pod"},
		{"no command", Start(missing), NoCommand, "not found"},
		{"not executable", Start(errors.New(`exec /etc/passwd: permission denied`)), NotExecutable, "permission denied"},
		{"path that is not there", Start(errors.New(`exec failed: unable to start container process: exec: "/x": stat /x: no such file or directory`)), NoCommand, "/x"},
		{"no command, says crun", Start(errors.New("crun: executable file `/x` not found: No such file or directory")), NoCommand, "/x"},
		{"end meanwhile", Start(errors.New("exec failed: runc init error(s): nsexec-1[7]: failed to open /proc/6/ns/ipc: No such file or directory")), Failed, "nsexec"},
		{"another fault", Start(errors.New("no such file or directory: /etc/cni")), Failed, "cni"},
		{"no fault", Start(nil), 0, ""},
		{"interrupt", fmt.Errorf("%w: %w", Signal(unix.SIGINT), errors.New("context canceled")), 130, "SIGINT"},
		{"several", errors.Join(errors.New("first"), errors.New("second")), Failed, "first; second"},
		{"no containerd", errdefs.ErrUnavailable, Failed, "--address"},
		{"no registry for a short name", registry.ErrNoSearchRegistries, Failed, "the whole name"},
		{"no network", fmt.Errorf("create pod x: %w", network.ErrNotConfigured), Failed, "--network host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Of(c.err); got != c.want {
				t.Errorf("exit code %d, want %d", got, c.want)
			}
			got := Message(c.err)
			if !strings.Contains(got, c.text) || (got == "") != (c.text == "") || strings.Contains(got, "\n") {
				t.Errorf("message %q, want one line with %q", got, c.text)
			}
		})
	}
}

// It is not containerd that does not answer when a registry does not, or systemd.
func TestNoAdvice(t *testing.T) {
	for _, err := range []error{registry.ErrUnavailable, fmt.Errorf("signatures of x: %w", policy.ErrUnavailable), child.ErrSystemd} {
		if got := Message(err); got != err.Error() {
			t.Errorf("message %q, want %q", got, err)
		}
	}
}
