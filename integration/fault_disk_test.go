// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// TestFullDisk fills the disk under a log. 40: the container neither blocks nor
// dies; and when there is room again the log goes on.
func TestFullDisk(t *testing.T) {
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t)
		for _, scheme := range []string{"cri", "file"} {
			e.sub(t, scheme, func(t *testing.T) { fullDisk(t, e, scheme) })
		}
	})
}

func fullDisk(t *testing.T, e *env, scheme string) {
	disk, shared := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("the log is still in use: %v", err)
		}
	})
	log := disk + "/log"
	l := e.live(t, nil, oci.WithProcessArgs("sh", "-c", `
			echo first
			head -c 4000000 /dev/zero | tr '\0' '\n' | sed 's/$/a line/'
			echo $? > /shared/written
			until [ -e /shared/room ]; do usleep 10000; done
			echo last
			exit 3`),
		oci.WithMounts([]specs.Mount{{Destination: "/shared", Type: "bind", Source: shared, Options: []string{"rbind", "rw"}}}))
	l.io = cio.LogURI(&url.URL{Scheme: scheme, Path: log})
	l.through("start")
	var written string
	eventually(t, patience, func() string {
		text, _ := os.ReadFile(shared + "/written")
		if written = strings.TrimSpace(string(text)); written == "" {
			return "the container waits for the disk"
		}
		return ""
	})
	// The shim leaves a plain file to the container, which sees the error itself.
	if written != "0" && scheme != "file" {
		t.Errorf("the writer ends with %s", written)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	ended, err := l.task.Wait(e.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	write(t, shared+"/room", "")
	if s := <-ended; s.ExitCode() != 3 {
		t.Errorf("exit code %d, %v, want 3", s.ExitCode(), s.Error())
	}
	if _, err := l.task.Delete(e.ctx(t)); err != nil {
		t.Fatal(err)
	}
	l.checkDiskLog(log, scheme)
}

// checkDiskLog looks for the first and the last line. What came while the disk
// was full may be missing, in a CRI log by whole pieces.
func (l *life) checkDiskLog(path, scheme string) {
	l.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	got := string(text)
	if scheme == "cri" {
		pieces, err := cri.ReadLog(path)
		if err != nil {
			l.t.Fatal(err)
		}
		got = cri.Text(pieces, "stdout")
	}
	if !strings.HasPrefix(got, "first\na line\n") || !strings.HasSuffix(got, "last\n") {
		l.t.Errorf("log of %d bytes begins with %.20q and ends with %q", len(got), got, got[max(0, len(got)-20):])
	}
}
