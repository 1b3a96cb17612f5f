// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	berth "github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/record"
)

// sh runs a command in a container.
func (r *rig) sh(t *testing.T, c berth.Container, script string) string {
	t.Helper()
	got, err := r.ExecSync(ctx(t), string(c.ID), []string{"sh", "-c", script}, 0)
	if err != nil || got.ExitCode != 0 {
		t.Errorf("%s: %+v, %v", script, got, err)
	}
	return strings.TrimSpace(string(got.Stdout))
}

func namespace(t *testing.T, name string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// (P63, P64) Members have the namespaces of the pod.
func TestRuntimePodKinds(t *testing.T) {
	r := withService(t)
	for name, change := range map[string]func(*berth.PodRequest){
		"plain":      func(q *berth.PodRequest) { q.HostNetwork = false },
		"hostall":    func(q *berth.PodRequest) { q.HostPID, q.HostIPC = true, true },
		"sharepid":   func(q *berth.PodRequest) { q.SharePID = true },
		"userns":     func(q *berth.PodRequest) { q.HostNetwork, q.UserNS = false, &record.IDMappings{Auto: true} },
		"kubernetes": func(q *berth.PodRequest) { q.UID, q.Attempt = "uid", 2 },
	} {
		t.Run(name, func(t *testing.T) {
			q := hostPod(t)
			q.Name = "kinds-" + name
			change(&q)
			if !q.HostNetwork {
				q.Hostname, q.DNS = "inside", &network.DNS{Servers: []string{"192.0.2.1"}}
				q.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "1024 2048"}
			}
			p := r.pod(t, q)
			one, two := r.start(t, shell(p, "one", idle)), r.start(t, shell(p, "two", idle))
			for kind, shared := range map[string]bool{"net": true, "ipc": true, "uts": true, "user": true, "pid": q.SharePID || q.HostPID, "mnt": false} {
				a, b := r.sh(t, one, "readlink /proc/self/ns/"+kind), r.sh(t, two, "readlink /proc/self/ns/"+kind)
				if (a == b) != shared {
					t.Errorf("%s: %s and %s", kind, a, b)
				}
				host := kind == "net" && q.HostNetwork || kind == "uts" && q.HostNetwork || kind == "ipc" && q.HostIPC ||
					kind == "pid" && q.HostPID || kind == "user" && q.UserNS == nil
				if (a == namespace(t, kind)) != host {
					t.Errorf("%s: %s, the host's %s", kind, a, namespace(t, kind))
				}
			}
			if !q.HostNetwork {
				if got := r.sh(t, one, "hostname; cat /etc/hostname; cat /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_local_port_range"); strings.Join(strings.Fields(got), " ") != "inside inside nameserver 192.0.2.1 1024 2048" {
					t.Errorf("files: %q", got)
				}
			}
			if q.UserNS != nil {
				if got := r.sh(t, one, "cat /proc/self/uid_map; stat -c %u /bin/busybox"); strings.HasPrefix(got, "0 0") || !strings.HasSuffix(got, "\n0") {
					t.Errorf("ids: %q", got)
				}
			}
			if q.UID != "" && (p.FullName != "k8s_kinds-kubernetes_default_uid_2" || one.FullName != "k8s_one_kinds-kubernetes_default_uid_0") {
				t.Errorf("names %s, %s", p.FullName, one.FullName)
			}
			if err := r.RemovePod(ctx(t), p.Name, berth.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		})
	}
}

// What else a container can be asked for: mounts, an image, limits, security.
func TestRuntimeContainerRequest(t *testing.T) {
	r := withService(t)
	p := r.pod(t, hostPod(t))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	q := shell(p, "main", idle)
	q.Mounts = []berth.Mount{
		{Source: dir, Target: "/data", Readonly: true},
		{Image: q.Image, Target: "/image"},
		{Source: filepath.Join(dir, "made"), Target: "/made", Create: true},
	}
	q.Env, q.WorkDir, q.User = []string{"A=b"}, "/data", "0:7"
	q.Resources.Memory, q.Resources.Pids = 64<<20, 50
	q.Security = berth.Security{ReadonlyRootfs: true, NoNewPrivileges: true, DropCapabilities: []string{"ALL"}}
	long := strings.Repeat("x", 4096-len("long"))
	q.Labels = map[string]string{"long": long, "longer": long + "y"}
	q.Annotations = map[string]string{"note": strings.Repeat("n", 10_000)}
	c := r.start(t, q)
	if c.Labels["long"] != long || c.Labels["longer"] != long+"y" || c.Annotations["note"] != q.Annotations["note"] {
		t.Error("labels or annotations are not as they were")
	}
	if got := r.sh(t, c, "cat file; ls /image/bin/busybox; echo $A; id -g; touch /made/x; touch /x 2>/dev/null || touch /data/x 2>/dev/null || echo readonly; grep NoNew /proc/1/status; grep CapEff /proc/1/status"); strings.Join(strings.Fields(got), " ") != "bound/image/bin/busybox b 7 readonly NoNewPrivs: 1 CapEff: 0000000000000000" {
		t.Errorf("%q", got)
	}
	if err := r.Update(ctx(t), string(c.ID), berth.Resources{Memory: 4 << 20}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too little memory: %v", err)
	}
	if err := r.Update(ctx(t), string(c.ID), berth.Resources{OOMScoreAdj: new(int)}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("what is no limit: %v", err)
	}
	if err := r.Update(ctx(t), string(c.ID), berth.Resources{Memory: 96 << 20}); err != nil {
		t.Error(err)
	}
	st, err := r.PodStats(ctx(t), p.Name)
	if err != nil || len(st) != 1 || st[0].Memory.Usage == 0 || len(st[0].Containers) != 1 || st[0].Containers[0].Memory.Limit != 96<<20 || st[0].Containers[0].Layer == 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// (S57)
func TestRuntimePortForward(t *testing.T) {
	r := withService(t)
	q := hostPod(t)
	q.HostNetwork = false
	p := r.pod(t, q)
	r.start(t, shell(p, "main", "echo ready; nc -l -p 8080 -e cat"))
	mine, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- r.PortForward(ctx(t), p.Name, 8080, theirs) }()
	if _, err := mine.Write([]byte("echo")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(mine, answer); err != nil || !bytes.Equal(answer, []byte("echo")) {
		t.Errorf("%q, %v", answer, err)
	}
	_ = mine.Close()
	if err := <-done; err != nil && !strings.Contains(err.Error(), "closed pipe") {
		t.Error(err)
	}
	_, theirs = net.Pipe()
	if err := r.PortForward(ctx(t), p.Name, 9, theirs); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "9") {
		t.Errorf("nobody listens: %v", err)
	}
	if err := r.StopPod(ctx(t), p.Name, 0); err != nil {
		t.Fatal(err)
	}
	_, theirs = net.Pipe()
	if err := r.PortForward(ctx(t), p.Name, 8080, theirs); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a stopped pod: %v", err)
	}
}

// Parts of an image of two layers, as they are seen together.
func TestRuntimeImagePart(t *testing.T) {
	r := withService(t)
	var upper bytes.Buffer
	w := tar.NewWriter(&upper)
	for _, h := range []tar.Header{
		{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "data/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
		{Name: "data/link", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/.wh.ls", Typeflag: tar.TypeReg},
		{Name: "bin/new", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: "etc/only", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = w.Write([]byte("text"))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const image = "berth.test/layers:1"
	r.image(t, image, func(*ocispec.ImageConfig) {}, upper.Bytes())
	p := r.pod(t, hostPod(t))
	q := shell(p, "main", idle)
	for i, path := range []string{"bin", "etc", "data/file", "usr", ""} {
		q.Mounts = append(q.Mounts, berth.Mount{Image: image, SubPath: path, Target: fmt.Sprintf("/m/%d", i)})
	}
	c := r.start(t, q)
	for script, want := range map[string]string{
		"ls /m/0/new /m/0/busybox; ls /m/0/ls 2>/dev/null || echo gone": "/m/0/busybox /m/0/new gone",
		"ls /m/1":            "only",
		"cat /m/2":           "text",
		"ls /m/3":            "bin",
		"cat /m/4/data/file": "text",
		"touch /m/0/x 2>/dev/null || echo readonly": "readonly",
	} {
		if got := strings.Join(strings.Fields(r.sh(t, c, script)), " "); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	for path, is := range map[string]func(error) bool{
		"nosuch": errdefs.IsNotFound, "bin/ls": errdefs.IsNotFound, "etc/passwd": errdefs.IsNotFound, "data/file/x": errdefs.IsNotFound,
		"data/link": errdefs.IsInvalidArgument, "data/link/passwd": errdefs.IsInvalidArgument, "../x": errdefs.IsInvalidArgument,
	} {
		q := shell(p, "other", idle)
		q.Mounts = []berth.Mount{{Image: image, SubPath: path, Target: "/m"}}
		if _, err := r.CreateContainer(ctx(t), q); !is(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
