// SPDX-License-Identifier: Apache-2.0

package runtime_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

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
