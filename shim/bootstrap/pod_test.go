// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/pod"
	"github.com/berthd/berth/shim/sandbox"
)

// A pod that a living shim has is left alone by the delete of another one, which was
// refused the name.
func TestDeletePodOfAnother(t *testing.T) {
	for name, c := range map[string]struct {
		owner func(own, other identity) identity
		left  bool
	}{
		"another, alive": {func(_, other identity) identity { return other }, true},
		"another, dead":  {func(_, other identity) identity { return identity{other.pid, other.start + 1} }, false},
		"its own":        {func(own, _ identity) identity { return own }, false}, // killed, and a zombie then
	} {
		t.Run(name, func(t *testing.T) {
			h := &Host{Stdout: io.Discard, Stderr: io.Discard, PodState: t.TempDir(), SocketDir: t.TempDir()}
			inv := &Invocation{
				Namespace: "n", ID: "taken", Verb: "delete",
				Bundle: filepath.Join(t.TempDir(), sandboxController, "n", "taken"),
			}
			dir, err := sandbox.Dir(h.PodState, inv.Namespace, inv.ID)
			if err != nil {
				t.Fatal(err)
			}
			own, other := sleeper(t), sleeper(t)
			owner := c.owner(own, other)
			record := &pod.Record{Version: 1, Owner: pod.Process{Pid: owner.pid, StartTime: owner.start}, Namespaces: map[string]pod.Namespace{}}
			for _, typ := range []string{"network", "ipc", "uts", "pid", "user"} {
				record.Namespaces[typ] = pod.Namespace{Mode: pod.Node}
			}
			text, err := json.Marshal(record)
			if err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string][]byte{
				filepath.Join(inv.Bundle, plan.ServerFile): []byte(own.String()),
				filepath.Join(dir, sandbox.RecordFile):     text,
			} {
				err := os.MkdirAll(filepath.Dir(file), 0o700)
				if err == nil {
					err = os.WriteFile(file, text, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Run(inv); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(dir); (err == nil) != c.left {
				t.Errorf("the pod's directory: %v, want it left: %v", err, c.left)
			}
		})
	}
}

// sleeper starts a process that lasts until the test ends.
func sleeper(t *testing.T) identity {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	id, err := identityOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
