// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
)

// podLogs checks the log that containerd writes from the shim's output.
func podLogs(t *testing.T, n *node) {
	pod := n.pod(t)
	// The streams are written one after the other, so their order is known only
	// within each.
	config := shell("main", `
		echo out 1; echo err 1 >&2; echo out 2; echo err 2 >&2
		head -c 20000 /dev/zero | tr '\0' x; echo
		printf 'no newline'`)
	id := startIn(t, n, pod, config)
	n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
	want := "out 1\nout 2\n" + strings.Repeat("x", 20000) + "\nno newline"
	var pieces []cri.Piece
	eventually(t, patience, func() string {
		var err error
		if pieces, err = cri.ReadLog(logOf(pod, config)); err != nil {
			return err.Error()
		}
		if out := strings.TrimSuffix(cri.Text(pieces, "stdout"), "\n"); out != want {
			return fmt.Sprintf("%d bytes of stdout, want %d", len(out), len(want))
		}
		return ""
	})
	if got := cri.Text(pieces, "stderr"); got != "err 1\nerr 2\n" {
		t.Errorf("stderr %q", got)
	}
	for _, p := range pieces {
		if len(p.Text) > 16384 {
			t.Errorf("a piece of %d bytes", len(p.Text))
		}
	}
}

// podLogReopen renames the log under a writing container again and again, as the
// kubelet does to rotate it: each line is in exactly one file.
func podLogReopen(t *testing.T, n *node) {
	const lines, rotations = 60000, 8
	pod := n.pod(t)
	config := shell("main", fmt.Sprintf("seq 1 %d; tail -f /dev/null", lines))
	id := startIn(t, n, pod, config)
	path := logOf(pod, config)
	var files []string
	for i := range rotations {
		awaitGrowth(t, path)
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		if err := n.Reopen(n.ctx(t), id); err != nil {
			t.Fatalf("reopen: %v", err)
		}
		if got, err := cri.ReadLog(files...); err == nil && strings.HasSuffix(cri.Text(got, "stdout"), fmt.Sprintf("\n%d\n", lines)) {
			break // all is written
		}
	}
	files = append(files, path)
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	eventually(t, patience, func() string {
		pieces, err := cri.ReadLog(files...)
		if err != nil {
			return err.Error()
		}
		got := cri.Text(pieces, "stdout")
		if got != want.String() {
			return fmt.Sprintf("%d bytes in %d files, want %d", len(got), len(files), want.Len())
		}
		return ""
	})
}

// awaitGrowth waits until a file exists and has something in it.
func awaitGrowth(t *testing.T, path string) {
	t.Helper()
	eventually(t, patience, func() string {
		s, err := os.Stat(path)
		if err != nil {
			return err.Error()
		}
		if s.Size() == 0 {
			return path + " is empty"
		}
		return ""
	})
}
