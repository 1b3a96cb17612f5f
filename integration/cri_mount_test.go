// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
)

// podVolumes checks folders and files of the host in containers.
func podVolumes(t *testing.T, n *node) {
	pod := n.pod(t)
	dir := t.TempDir()
	write(t, dir+"/volume/file", "from the host\n")
	if err := os.Symlink("volume", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	got := n.output(t, pod, `
		cat /volume/file /link/file /single
		echo inside > /volume/new
		ls -d /missing/
		(echo x > /read-only/refused) 2>/dev/null || echo read-only
		cat /read-only/new`,
		mounts(
			&runtime.Mount{HostPath: dir + "/volume", ContainerPath: "/volume"},
			&runtime.Mount{HostPath: dir + "/volume", ContainerPath: "/read-only", Readonly: true},
			&runtime.Mount{HostPath: dir + "/link", ContainerPath: "/link"},
			&runtime.Mount{HostPath: dir + "/volume/file", ContainerPath: "/single"},
			&runtime.Mount{HostPath: dir + "/new/folder", ContainerPath: "/missing"},
		))
	if want := strings.Repeat("from the host\n", 3) + "/missing/\nread-only\ninside"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if text, err := os.ReadFile(dir + "/volume/new"); err != nil || string(text) != "inside\n" {
		t.Errorf("written inside: %q, %v", text, err)
	}
	if s, err := os.Stat(dir + "/new/folder"); err != nil || !s.IsDir() {
		t.Errorf("a missing folder of the host: %v, %v; want it made", s, err)
	}
	id, err := pod.Create(n.ctx(t), in(pod, "true", mounts(&runtime.Mount{HostPath: dir + "/volume", ContainerPath: "/volume", Readonly: true})))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := n.ContainerStatus(n.ctx(t), id); err != nil || len(s.GetMounts()) != 1 || !s.GetMounts()[0].GetReadonly() {
		t.Errorf("status has mounts %v, %v", s.GetMounts(), err)
	}
	// A volume in place of one of the pod's files: the volume wins.
	got = n.output(t, pod, "cat /etc/hosts", mounts(&runtime.Mount{HostPath: dir + "/volume/file", ContainerPath: "/etc/hosts"}))
	if got != "from the host" {
		t.Errorf("hosts of one's own: %q", got)
	}
	got = n.output(t, pod, "ls /dev/shm", mounts(&runtime.Mount{HostPath: dir + "/volume", ContainerPath: "/dev/shm"}))
	if got != "file\nnew" {
		t.Errorf("shared memory of one's own: %q", got)
	}
}

// bound makes a folder that is a mount of its own, with a propagation.
func bound(t *testing.T, propagation uintptr) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", propagation, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tmpfs mounts one on a new folder.
func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// podPropagation checks which mounts of the host and of a container the other
// one sees.
func podPropagation(t *testing.T, n *node) {
	pod := n.pod(t, func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	for _, c := range []struct {
		name            string
		propagation     runtime.MountPropagation
		inwards, onward bool
	}{
		{"private", runtime.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"slave", runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"shared", runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		dir := bound(t, unix.MS_SHARED)
		write(t, dir+"/inner/before", "")
		tmpfs(t, dir+"/early")
		write(t, dir+"/early/file", "")
		id := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; mkdir /volume/own; mount -t tmpfs own /volume/own; touch /volume/own/file; sleep 100000 & wait",
			security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }),
			mounts(&runtime.Mount{HostPath: dir, ContainerPath: "/volume", Propagation: c.propagation})))
		eventually(t, patience, func() string {
			if n.check(t, id, "sh", "-c", "ls /volume/own/file /volume/early/file 2>/dev/null | wc -l") != "2" {
				return "not there: the container's mount, and the host's that was there before"
			}
			return ""
		})
		tmpfs(t, dir+"/late")
		write(t, dir+"/late/file", "")
		if got := n.check(t, id, "ls", "/volume/late") == "file"; got != c.inwards {
			t.Errorf("%s: a later mount of the host's is seen: %v, want %v", c.name, got, c.inwards)
		}
		if _, err := os.Stat(dir + "/own/file"); (err == nil) != c.onward {
			t.Errorf("%s: the container's mount on the host: %v, want %v", c.name, err, c.onward)
		}
		n.check(t, id, "umount", "/volume/own")
	}
	// What is asked for but cannot be.
	private := bound(t, unix.MS_PRIVATE)
	n.refused(t, pod, in(pod, "true", mounts(&runtime.Mount{
		HostPath: private, ContainerPath: "/volume", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL,
	})), "not a shared mount")
	n.refused(t, pod, in(pod, "true", mounts(&runtime.Mount{
		HostPath: private, ContainerPath: "/volume", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	})), "not a shared or slave mount")
}

// podReadOnlyVolumes checks read-only volumes with another mount in them.
func podReadOnlyVolumes(t *testing.T, n *node) {
	pod := n.pod(t)
	dir := t.TempDir()
	tmpfs(t, dir+"/inner")
	const script = `for f in /volume/f /volume/inner/f; do (echo x > $f) 2>/dev/null && echo $f; done; true`
	for _, c := range []struct {
		name  string
		mount *runtime.Mount
		want  string
	}{
		{"writable", &runtime.Mount{}, "/volume/f\n/volume/inner/f"},
		{"read-only", &runtime.Mount{Readonly: true}, "/volume/inner/f"},
		{"recursively", &runtime.Mount{Readonly: true, RecursiveReadOnly: true}, ""},
	} {
		c.mount.HostPath, c.mount.ContainerPath = dir, "/volume"
		if got := n.output(t, pod, script, mounts(c.mount)); got != c.want {
			t.Errorf("%s: can write %q, want %q", c.name, got, c.want)
		}
	}
	n.refused(t, pod, in(pod, "true", mounts(&runtime.Mount{HostPath: dir, ContainerPath: "/volume", RecursiveReadOnly: true})), "conflicts with RW mount")
	n.refused(t, pod, in(pod, "true", mounts(&runtime.Mount{
		HostPath: bound(t, unix.MS_SHARED), ContainerPath: "/volume", Readonly: true, RecursiveReadOnly: true,
		Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	})), "ropagation")
}

// podImageVolumes checks images as volumes.
func podImageVolumes(t *testing.T, n *node) {
	volume := func(path, sub string) *runtime.Mount {
		return &runtime.Mount{
			ContainerPath: path, Image: &runtime.ImageSpec{Image: host.Busybox},
			ImageSubPath: sub, Readonly: true,
		}
	}
	const script = `
		cat /volume/etc/passwd | head -1
		cat /users/passwd | head -1
		(echo x > /volume/new) 2>/dev/null || echo read-only`
	want := "root:x:0:0:root:/root:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\nread-only"
	for _, users := range []func(*runtime.NamespaceOption){func(*runtime.NamespaceOption) {}, ownUsers} {
		pod := n.pod(t, sharing(users))
		for range 2 { // the second container uses the first one's mount
			if got := n.output(t, pod, script, mounts(volume("/volume", ""), volume("/users", "etc"))); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		n.refused(t, pod, in(pod, "true", mounts(volume("/volume", "no/such"))), "no/such")
		missing := volume("/volume", "")
		missing.Image.Image = "berth.test/missing:1"
		n.refused(t, pod, in(pod, "true", mounts(missing)), "berth.test/missing:1")
	}
}
