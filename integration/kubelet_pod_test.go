// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/kubelet"
)

func kubeInit(t *testing.T, n *kubeNode) {
	pod := n.awaitReady(t, "web")
	var ends []*kubelet.Terminated
	for _, name := range []string{"first", "second"} {
		end := pod.Container(name).State.Terminated
		if end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
			t.Fatalf("init container %s did not complete: %v", name, pod)
		}
		ends = append(ends, end)
	}
	if ends[1].StartedAt.Before(ends[0].FinishedAt) {
		t.Errorf("the second init container starts at %v, before the first one's end at %v", ends[1].StartedAt, ends[0].FinishedAt)
	}
	for _, name := range []string{"server", "client"} {
		if c := pod.Container(name); c.RestartCount != 0 || c.State.Running == nil {
			t.Errorf("%s restarted or not running: %v", name, pod)
		}
	}
	if pod.Status.PodIP == "" {
		t.Fatal("the pod has no address")
	}
	response, err := http.Get("http://" + pod.Status.PodIP + ":8080/index.html")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if page, err := io.ReadAll(response.Body); err != nil || string(page) != "first\nsecond\n" {
		t.Errorf("the pod serves %q, %v", page, err)
	}
	if got := n.check(t, "web", "client", "hostname"); got != "web-node" {
		t.Errorf("hostname %q, want web-node", got)
	}
	if hosts := n.check(t, "web", "client", "cat", "/etc/hosts"); !strings.Contains(hosts, pod.Status.PodIP+"\tweb-node") {
		t.Errorf("/etc/hosts without the pod:\n%s", hosts)
	}
}

func kubeProbes(t *testing.T, n *kubeNode) {
	running := func(name string) func(*kubelet.Pod) bool {
		return func(p *kubelet.Pod) bool { return p.Container(name).State.Running != nil }
	}
	n.await(t, "probes", "ready", func(p *kubelet.Pod) bool { return p.Container("exec").Ready })
	n.check(t, "probes", "exec", "rm", "/tmp/ready")
	n.await(t, "probes", "unready but running", func(p *kubelet.Pod) bool {
		return !p.Container("exec").Ready && running("exec")(p)
	})
	n.check(t, "probes", "exec", "touch", "/tmp/ready")
	n.await(t, "probes", "ready again", func(p *kubelet.Pod) bool { return p.Container("exec").Ready })

	for name, script := range map[string]string{
		"exec": "rm /tmp/alive",
		"http": "rm /tmp/alive",
		"tcp":  "kill $(cat /tmp/pid)",
	} {
		n.await(t, "probes", name+" running", running(name))
		n.script(t, "probes", name, script)
	}
	for _, name := range []string{"exec", "http", "tcp"} {
		pod := n.await(t, "probes", name+" restarted", func(p *kubelet.Pod) bool {
			return p.Container(name).RestartCount > 0 && p.Container(name).LastState.Terminated != nil
		})
		if end := pod.Container(name).LastState.Terminated; end.ExitCode != 9 {
			t.Errorf("%s ended with %d, want 9, from its trap", name, end.ExitCode)
		}
	}
	// A probe past its time fails, and its process goes. The next one may be there.
	if pod := n.await(t, "probes", "slow running", running("slow")); pod.Container("slow").Ready {
		t.Error("a probe that takes too long succeeds")
	}
	if ps := n.check(t, "probes", "slow", "ps"); strings.Count(ps, "4242") > 2 {
		t.Errorf("processes of probes accumulate:\n%s", ps)
	}
}

func kubeCrashLoop(t *testing.T, n *kubeNode) {
	pod := n.await(t, "crash", "backing off", func(p *kubelet.Pod) bool {
		c := p.Container("crash")
		return c.RestartCount >= 2 && c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff" && c.LastState.Terminated != nil
	})
	end := pod.Container("crash").LastState.Terminated
	if end.ExitCode != 3 || end.Reason != "Error" || !strings.Contains(end.Message, "about to fail\n") {
		t.Errorf("last end: %+v, want exit code 3 and the log's end", end)
	}
	eventually(t, patience, func() string {
		// Between two attempts the one before may just be being removed.
		log, err := n.k.ContainerLog("crash", "crash", "previous=true")
		if err != nil || log != "to stdout\nabout to fail\n" && log != "about to fail\nto stdout\n" {
			return fmt.Sprintf("previous log %q, %v", log, err)
		}
		return ""
	})
	pod = n.await(t, "crash", "unable to start", func(p *kubelet.Pod) bool {
		return p.Container("missing").LastState.Terminated != nil
	})
	end = pod.Container("missing").LastState.Terminated
	if end.ExitCode != 128 || end.Reason != "StartError" || !strings.Contains(end.Message, "no such file") {
		t.Errorf("a missing program: %+v, want the runtime's message, StartError, 128", end)
	}
}

func kubeOOM(t *testing.T, n *kubeNode) {
	pod := n.await(t, "oom", "failed", func(p *kubelet.Pod) bool { return p.Status.Phase == "Failed" })
	for name, want := range map[string]kubelet.Terminated{
		"hog":     {ExitCode: 137, Reason: "OOMKilled"},
		"message": {ExitCode: 7, Reason: "Error", Message: "last words\n"},
		"fine":    {Reason: "Completed"},
	} {
		end := *pod.Container(name).State.Terminated
		end.StartedAt, end.FinishedAt = want.StartedAt, want.FinishedAt
		if diff := cmp.Diff(want, end); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func kubeSidecars(t *testing.T, n *kubeNode) {
	pod := n.awaitReady(t, "sidecar")
	for _, name := range []string{"one", "two"} {
		if c := pod.Container(name); c.State.Running == nil || !c.Ready || c.RestartCount != 0 {
			t.Errorf("sidecar %s does not run: %v", name, pod)
		}
	}
	n.remove(t, "sidecar")
	want := "one begins\ninit\ntwo begins\nmain begins\nmain ends\ntwo ends\none ends\n"
	if got := n.read(t, "sidecar"); got != want {
		t.Errorf("order (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func kubeGraceful(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "graceful")
	n.remove(t, "graceful")
	want := "postStart\npreStop\nhook ends\nTERM\nend\n"
	if got := n.read(t, "graceful"); got != want {
		t.Errorf("order (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func kubeStubborn(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "stubborn")
	eventually(t, patience, func() string {
		if _, err := os.Stat(n.shared + "/stubborn.last"); err != nil {
			return err.Error()
		}
		return ""
	})
	n.remove(t, "stubborn")
	// One line: the signal came once.
	at, err := strconv.ParseFloat(strings.TrimSpace(n.read(t, "stubborn.term")), 64)
	if err != nil {
		t.Fatalf("time of SIGTERM: %v", err)
	}
	last, err := strconv.ParseFloat(strings.TrimSpace(n.read(t, "stubborn.last")), 64)
	if err != nil {
		t.Fatal(err)
	}
	if lived := last - at; lived < 2 || lived > 8 {
		t.Errorf("it lived %.2f s after SIGTERM, want its grace period of 3", lived)
	}
}

func kubeUserNamespace(t *testing.T, n *kubeNode) {
	pod := n.awaitReady(t, "userns")
	fields := strings.Fields(n.check(t, "userns", "main", "cat", "/proc/self/uid_map"))
	if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" || fields[2] != "65536" {
		t.Fatalf("mapping %q, want one of 65536 ids of its own", fields)
	}
	base, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]int{"main": 0, "user": 1234} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.pid(t, pod.Container(name))))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("\nUid:\t%d\t", base+id); !strings.Contains(string(status), want) {
			t.Errorf("%s on the host, want%s:\n%s", name, want, status)
		}
		if got := n.check(t, "userns", name, "id", "-u"); got != strconv.Itoa(id) {
			t.Errorf("user %s in %s, want %d", got, name, id)
		}
	}
	log, err := n.k.ContainerLog("userns", "main", "")
	if want := strings.Repeat("0:0\n", 6) + "written\n"; err != nil || log != want {
		t.Errorf("owners of files and output: %q, %v, want %q", log, err, want)
	}
	for _, ns := range []string{"user", "net", "ipc", "uts"} {
		a := n.check(t, "userns", "main", "readlink", "/proc/self/ns/"+ns)
		if b := n.check(t, "userns", "user", "readlink", "/proc/self/ns/"+ns); a != b {
			t.Errorf("%s namespaces of two containers: %s, %s", ns, a, b)
		}
	}
}

func kubeHostNamespaces(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "hostspaces")
	for _, ns := range []string{"net", "pid", "ipc", "mnt"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		got := n.check(t, "hostspaces", "main", "readlink", "/proc/self/ns/"+ns)
		if (got == own) != (ns != "mnt") {
			t.Errorf("%s namespace %s, the host's is %s", ns, got, own)
		}
	}
}

func kubeSharedProcesses(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "shared")
	for seen, by := range map[string]string{"11111": "other", "22222": "main"} {
		if ps := n.check(t, "shared", by, "ps"); !strings.Contains(ps, "sleep "+seen) {
			t.Errorf("%s does not see the other's processes:\n%s", by, ps)
		}
	}
	eventually(t, patience, func() string {
		if states := n.script(t, "shared", "main", `grep -h "^State:" /proc/[0-9]*/status 2>/dev/null`); strings.Contains(states, "zombie") {
			return "orphans are not reaped:\n" + states
		}
		return ""
	})
	if first := n.check(t, "shared", "main", "cat", "/proc/1/cmdline"); strings.Contains(first, "sleep") {
		t.Errorf("a container is the first process: %q", first)
	}
	n.script(t, "shared", "main", `kill -KILL $(pidof sleep | tr " " "\n" | while read p; do grep -q 22222 /proc/$p/cmdline && sed -n "s/^PPid:.//p" /proc/$p/status; done)`)
	pod := n.await(t, "shared", "restarted in part", func(p *kubelet.Pod) bool {
		c := p.Container("other")
		return c.RestartCount == 1 && c.Ready
	})
	if c := pod.Container("main"); c.RestartCount != 0 || c.State.Running == nil {
		t.Errorf("one container's end is the other's: %v", pod)
	}
}

// kubeFirstProcessKilled: the end of the first process of a shared namespace is
// that of all, and of the sandbox.
func kubeFirstProcessKilled(t *testing.T, n *kubeNode) {
	n.berthOnly(t) // stock's socket stays
	pod := n.awaitReady(t, "shared")
	sandbox := n.sandbox(t, pod)
	main := n.pid(t, pod.Container("main"))
	if err := unix.Kill(firstOf(t, main), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, main)
	again := n.await(t, "shared", "made anew", func(p *kubelet.Pod) bool {
		return p.Ready() && p.Container("main").ContainerID != pod.Container("main").ContainerID &&
			p.Container("other").ContainerID != pod.Container("other").ContainerID
	})
	if got := n.sandbox(t, again); got == sandbox {
		t.Errorf("the sandbox %s has no first process and is still ready", got)
	}
}

// firstOf finds the first process of a process's namespace.
func firstOf(t *testing.T, pid int) int {
	t.Helper()
	space := func(dir string) string {
		link, _ := os.Readlink(dir + "/ns/pid")
		return link
	}
	want := space(fmt.Sprintf("/proc/%d", pid))
	if want == "" {
		t.Fatalf("process %d has ended", pid)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		status, err := os.ReadFile(dir + "/status")
		if err != nil || space(dir) != want {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				first, _ := strconv.Atoi(filepath.Base(dir))
				return first
			}
		}
	}
	t.Fatalf("no first process of %s", want)
	return 0
}

func kubeSecurity(t *testing.T, n *kubeNode) {
	n.awaitReady(t, "secure")
	for _, c := range []struct{ container, script, want string }{
		{"main", "id -u; id -g; id -G", "1234\n2345\n2345 3456 4567"},
		{"main", `sed -nE "s/^(CapBnd|NoNewPrivs|Seccomp):.//p" /proc/self/status`, "0000000000000400\n1\n2"},
		{"main", "touch /x 2>&1; stat -c %g /data; touch /data/x; stat -c %g /data/x", "touch: /x: Read-only file system\n3456\n3456"},
		{"main", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "70"},
		{"main", `sed -nE "s/^[^ ]+ (.proc.bus|.sys.firmware) [^ ]+ (ro)\\b.*/\\1 \\2/p" /proc/mounts | sort`, "/proc/bus ro\n/sys/firmware ro"},
		{"privileged", `id -u; sed -nE "s/^(NoNewPrivs|Seccomp):.//p" /proc/self/status; test -c /dev/kmsg && echo all devices`, "0\n0\n0\nall devices"},
		{"privileged", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; touch /x && echo writable", "70\nwritable"},
	} {
		if got := n.script(t, "secure", c.container, c.script); got != c.want {
			t.Errorf("%s: %s\n got %q\nwant %q", c.container, c.script, got, c.want)
		}
	}
}

func kubeVolumes(t *testing.T, n *kubeNode) {
	pod := n.awaitReady(t, "volumes")
	n.script(t, "volumes", "main", "echo part > /part/file; echo disk > /disk/file")
	for _, c := range []struct{ container, script, want string }{
		{"other", "cat /disk/a/b/file /disk/file", "part\ndisk"},
		{"main", "echo $NAME $ADDRESS $LIMIT; hostname", "volumes-node " + pod.Status.PodIP + " " + strconv.Itoa(48<<20) + "\nnamed"},
		{"main", "cat /etc/resolv.conf", "search berth.test\nnameserver 192.0.2.53\noptions ndots:3"},
		{"main", "grep -w alias /etc/hosts | cut -f1", "192.0.2.7"},
		{"main", "cat /about/labels", `of="tests"`},
		{"main", "head -c 2000000 /dev/zero 2>/dev/null > /memory/file || true; stat -c %s /memory/file", strconv.Itoa(1 << 20)},
		{"main", "test -x /image/web && touch /image/x 2>&1; touch /readonly/x 2>&1; true", "touch: /image/x: Read-only file system\ntouch: /readonly/x: Read-only file system"},
		{"main", "df -k /dev/shm | awk 'NR == 2 {print $2}'; echo x > /dev/shm/x", "65536"},
		{"other", "cat /dev/shm/x", "x"},
	} {
		if got := n.script(t, "volumes", c.container, c.script); got != c.want {
			t.Errorf("%s: %s\n got %q\nwant %q", c.container, c.script, got, c.want)
		}
	}
	// Later its image is to be collected.
	n.remove(t, "volumes")
}

// kubeResources looks at the cgroup that the kubelet and the runtime make
// together, and resizes a container in place. A manifest that keeps its pod's uid
// is a change of the pod.
func kubeResources(t *testing.T, n *kubeNode) {
	pod := n.awaitReady(t, "guaranteed")
	c := pod.Container("main")
	pid := n.pid(t, c)
	before := born(t, pid)
	limits := func() string { return n.limits(t, pid) }
	if got, want := limits(), fmt.Sprintf("%d 10000 100000", 32<<20); got != want {
		t.Errorf("limits %s, want %s", got, want)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimPrefix(c.ContainerID, "containerd://")
	if want := "/" + n.d.Namespace + "/kubepods/pod" + pod.Metadata.UID + "/" + id; !strings.Contains(string(groups), want+"\n") {
		t.Errorf("cgroups, want %s:\n%s", want, groups)
	}

	podLimit := func() string {
		name, controller := "memory.limit_in_bytes", "memory"
		if host.Unified() {
			name = "memory.max"
		}
		text, err := os.ReadFile(filepath.Dir(cgroupOf(t, pid, controller)) + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got, want := podLimit(), strconv.Itoa((32+16)<<20); got != want {
		t.Errorf("the pod's memory limit is %s, want %s, with its overhead", got, want)
	}

	n.apply(t, "guaranteed", "$CPU", "200m", "$MEMORY", "48Mi")
	eventually(t, patience, func() string {
		if got, want := limits(), fmt.Sprintf("%d 20000 100000", 48<<20); got != want {
			return fmt.Sprintf("limits after the resize: %s, want %s", got, want)
		}
		return ""
	})
	pod = n.await(t, "guaranteed", "resized", func(p *kubelet.Pod) bool {
		return p.Container("main").Resources.Limits["memory"] == "48Mi"
	})
	if got, want := podLimit(), strconv.Itoa((48+16)<<20); got != want {
		t.Errorf("after the resize the pod's memory limit is %s, want %s", got, want)
	}
	if got := pod.Container("main"); got.RestartCount != 0 || got.ContainerID != c.ContainerID || born(t, pid) != before {
		t.Errorf("the resize restarted the container: %v", pod)
	}
}

// limits are a process's: bytes of memory, CPU quota and its period.
func (n *kubeNode) limits(t *testing.T, pid int) string {
	t.Helper()
	file := func(controller, name string) string {
		dir := cgroupOf(t, pid, controller)
		text, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if host.Unified() {
		return file("", "memory.max") + " " + file("", "cpu.max")
	}
	return file("memory", "memory.limit_in_bytes") + " " + file("cpu", "cpu.cfs_quota_us") + " " + file("cpu", "cpu.cfs_period_us")
}

// kubeStats: sensible figures of what uses a known share. The kubelet reads most
// of them from cgroups itself, and the network's where it finds a container that
// is a sandbox: it has none of pods without.
func kubeStats(t *testing.T, n *kubeNode) {
	received := uint64(100)
	if n.pauseless {
		received = 0
	}
	eventually(t, patience, func() string { return judge(n.k, received) })
	metrics, err := n.k.Get("/metrics/resource")
	if want := `container_cpu_usage_seconds_total{container="busy",namespace="default",pod="stats-node"}`; err != nil || !strings.Contains(string(metrics), want) {
		t.Errorf("metrics without %s: %v\n%s", want, err, metrics)
	}
}

// kubeCheckpoint: the container goes on, and the archive is nobody else's.
func kubeCheckpoint(t *testing.T, n *kubeNode) {
	w := n.witness(t)
	path, err := n.k.Checkpoint("steady", "idle")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Size() < 10000 {
		t.Errorf("the archive has mode %v and %d bytes", info.Mode(), info.Size())
	}
	w.confirm(t, n)
}

// kubeRuntimeStats: the same figures from the runtime.
func kubeRuntimeStats(t *testing.T, n *kubeNode) {
	if err := n.k.Kill(); err != nil {
		t.Fatal(err)
	}
	n.k.RuntimeStats = true
	if err := n.k.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string { return judge(n.k, 100) })
}

// judge returns what is wrong with the figures.
func judge(k *kubelet.Kubelet, received uint64) string {
	const mega = 1 << 20
	all, err := k.Stats()
	if err != nil {
		return err.Error()
	}
	pod, err := all.Pod("stats")
	if err != nil {
		return err.Error()
	}
	by := map[string]kubelet.ContainerStats{}
	for _, c := range pod.Containers {
		by[c.Name] = c
	}
	busy, full := by["busy"], by["full"]
	web, err := all.Pod("web")
	if err != nil {
		return err.Error()
	}
	rx := uint64(0)
	if web.Network != nil {
		rx = web.Network.RxBytes
	}
	processes := 0
	if pod.ProcessStats != nil {
		processes = pod.ProcessStats.ProcessCount
	}
	for _, f := range []struct {
		what           string
		got, low, high uint64
	}{
		{"nanocores at a limit of 50m", busy.CPU.UsageNanoCores, 25e6, 75e6},
		{"nanocores of an idle container", full.CPU.UsageNanoCores, 0, 20e6},
		{"nanoseconds of the pod", pod.CPU.UsageCoreNanoSeconds, busy.CPU.UsageCoreNanoSeconds * 9 / 10, 100e9},
		{"bytes of memory, with 16 MiB of a volume", full.Memory.UsageBytes, 16 * mega, 40 * mega},
		{"working set", full.Memory.WorkingSetBytes, 16 * mega, 40 * mega},
		{"available memory of 64 MiB", full.Memory.AvailableBytes, 24 * mega, 48 * mega},
		{"working set of the pod", pod.Memory.WorkingSetBytes, 16 * mega, 50 * mega},
		{"bytes of the root file system with a file of 8 MiB", full.Rootfs.UsedBytes, 8 * mega, 9 * mega},
		{"bytes of an untouched root file system", busy.Rootfs.UsedBytes, 1, mega},
		{"inodes of a root file system", full.Rootfs.InodesUsed, 1, 100},
		{"processes of the pod", uint64(processes), 3, 8},
		{"bytes received by another pod", rx, received, 100 * mega},
	} {
		if f.got < f.low || f.got > f.high {
			return fmt.Sprintf("%s: %d, want %d to %d", f.what, f.got, f.low, f.high)
		}
	}
	return ""
}
