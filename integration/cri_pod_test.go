// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// TestPods runs pods through containerd's CRI plugin: what the validation suite
// of Kubernetes does with a runtime, and more.
func TestPods(t *testing.T) {
	t.Cleanup(func() {
		for _, dir := range cgroupsOf("") { // see podPlain
			_ = os.Remove(dir)
		}
	})
	nodes(t, func(t *testing.T, n *node) {
		n.sub(t, "life", podLife)
		n.together(
			t,
			podCase{"exec sync", podExecSync},
			podCase{"port forward", podPortForward},
			podCase{"stop", podStop},
			podCase{"namespaces", podNamespaces},
			podCase{"crash loop", podCrashLoop},
			podCase{"sysctls", podSysctls},
			podCase{"exit codes", podExitCodes},
			podCase{"exec stream", podExecStream},
			podCase{"attach", podAttach},
			podCase{"logs", podLogs},
			podCase{"log reopen", podLogReopen},
			podCase{"images", podImages},
			podCase{"runtime", podRuntime},
			podCase{"lists", podLists},
			podCase{"attempts", podAttempts},
			podCase{"refusals", podRefusals},
			podCase{"events", podEvents},
			podCase{"stats", podStats},
			podCase{"plain", podPlain},
			podCase{"resources", podResources},
			podCase{"update", podUpdate},
			podCase{"shrink", podShrink},
			podCase{"out of memory", podOOM},
			podCase{"probes", podProbes},
			podCase{"pause killed", podPauseKilled},
			podCase{"two containers", podTwoContainers},
			podCase{"bad program", podBadProgram},
			podCase{"process", podProcess},
			podCase{"shared processes", podSharedProcesses},
			podCase{"reaping", podReaping},
			podCase{"shared memory", podIPC},
			podCase{"target", podTarget},
			podCase{"user namespace", podUserNamespaces},
			podCase{"capabilities", podCapabilities},
			podCase{"privileges", podPrivileges},
			podCase{"users", podUsers},
			podCase{"read-only root", podReadOnlyRoot},
			podCase{"paths", podPaths},
			podCase{"seccomp", podSeccomp},
			podCase{"AppArmor", podAppArmor},
			podCase{"volumes", podVolumes},
			podCase{"propagation", podPropagation},
			podCase{"read-only volumes", podReadOnlyVolumes},
			podCase{"image volumes", podImageVolumes},
			podCase{"files", podFiles},
			podCase{"both families", podDualStack},
		)
	})
}

func podLife(t *testing.T, n *node) {
	pod := n.pod(t)
	s, err := pod.Status(n.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if s.GetState() != runtime.PodSandboxState_SANDBOX_READY || s.GetNetwork().GetIp() == "" {
		t.Errorf("pod is %v with address %q, want ready with one", s.GetState(), s.GetNetwork().GetIp())
	}
	id, err := pod.Create(n.ctx(t), idle("main"))
	if err != nil {
		t.Fatal(err)
	}
	n.awaitState(t, id, runtime.ContainerState_CONTAINER_CREATED)
	if err := n.Client.Start(n.ctx(t), id); err != nil {
		t.Fatal(err)
	}
	n.awaitState(t, id, runtime.ContainerState_CONTAINER_RUNNING)
	list, err := n.ListContainers(n.ctx(t), &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: pod.ID}})
	if err != nil || len(list.GetContainers()) != 1 {
		t.Errorf("containers of the pod: %v, %v, want one", list.GetContainers(), err)
	}
	if got := n.check(t, id, "hostname"); got != "pod" {
		t.Errorf("hostname %q, want pod", got)
	}
	for range 2 { // what is stopped can be stopped
		if err := n.Client.Stop(n.ctx(t), id, 10*time.Second); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 0 || s.GetReason() != "Completed" {
		t.Errorf("exit code %d, reason %q, want 0, Completed", s.GetExitCode(), s.GetReason())
	}
	for range 2 {
		if err := n.Remove(n.ctx(t), id); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	for range 2 {
		if err := pod.Stop(n.ctx(t)); err != nil {
			t.Errorf("stop pod: %v", err)
		}
	}
	if s, err := pod.Status(n.ctx(t)); err != nil || s.GetState() != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod is %v, %v", s.GetState(), err)
	}
	for range 2 {
		if err := pod.Remove(n.ctx(t)); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
}

func podExitCodes(t *testing.T, n *node) {
	pod := n.pod(t)
	for _, c := range []struct {
		script string
		code   int32
		reason string
	}{
		{"exit 0", 0, "Completed"},
		{"exit 3", 3, "Error"},
		{"exit 255", 255, "Error"},
	} {
		id := startIn(t, n, pod, shell("c"+strconv.Itoa(int(c.code)), c.script))
		s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
		if s.GetExitCode() != c.code || s.GetReason() != c.reason {
			t.Errorf("%q: exit code %d, reason %q, want %d, %q", c.script, s.GetExitCode(), s.GetReason(), c.code, c.reason)
		}
		if s.GetStartedAt() == 0 || s.GetFinishedAt() == 0 {
			t.Errorf("%q: started at %d, finished at %d", c.script, s.GetStartedAt(), s.GetFinishedAt())
		}
	}
}

// podCrashLoop restarts a failing container 50 times as the kubelet does: a new
// container for each attempt, the old one removed.
func podCrashLoop(t *testing.T, n *node) {
	const attempts = 50
	pod := n.pod(t)
	for i := range attempts {
		config := shell("crash", fmt.Sprintf("echo attempt %d; exit %d", i, i+1))
		config.Metadata.Attempt = uint32(i)
		config.LogPath = fmt.Sprintf("crash/%d.log", i)
		if err := os.MkdirAll(pod.Config.GetLogDirectory()+"/crash", 0o755); err != nil {
			t.Fatal(err)
		}
		id := startIn(t, n, pod, config)
		s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
		if s.GetExitCode() != int32(i+1) {
			t.Fatalf("attempt %d exits with %d, want %d", i, s.GetExitCode(), i+1)
		}
		if out, _ := awaitLog(t, logOf(pod, config), fmt.Sprintf("attempt %d", i)); strings.Count(out, "\n") != 1 {
			t.Errorf("attempt %d: log %q", i, out)
		}
		if err := n.Remove(n.ctx(t), id); err != nil {
			t.Fatal(err)
		}
	}
}

func podExecSync(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, idle("main"))
	// 52: exit codes; both streams apart
	got, err := n.ExecSync(n.ctx(t), id, 0, "sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if got.GetExitCode() != 3 || string(got.GetStdout()) != "out\n" || string(got.GetStderr()) != "err\n" {
		t.Errorf("got %v, want code 3, out, err", got)
	}
	// 52: timeout, and the process is gone
	began := time.Now()
	_, err = n.ExecSync(n.ctx(t), id, time.Second, "sleep", "4321")
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("exec past its timeout: %v, want deadline exceeded", err)
	}
	elapsed(t, began, time.Second, 10*time.Second)
	if ps := n.check(t, id, "ps"); strings.Contains(ps, "4321") {
		t.Errorf("the process lives on after the timeout:\n%s", ps)
	}
	// 53: a child that keeps the pipes. containerd makes an error of it if the
	// shim does not end the output; but nobody waits for the child.
	began = time.Now()
	got, err = n.ExecSync(n.ctx(t), id, 0, "sh", "-c", "sleep 60 & echo x")
	if err == nil && string(got.GetStdout()) != "x\n" || err != nil && !strings.Contains(err.Error(), "drain") {
		t.Errorf("exec with a child that keeps the pipes: %v, %v", got, err)
	}
	elapsed(t, began, 0, 15*time.Second) // the drain above and 10 s in Delete
	// As much output as fits into an answer.
	big, err := n.ExecSync(n.ctx(t), id, 0, "sh", "-c", "head -c 12000000 /dev/zero; exit 5")
	if err != nil || big.GetExitCode() != 5 || len(big.GetStdout()) != 12000000 {
		t.Errorf("big output: %d bytes, code %d, %v", len(big.GetStdout()), big.GetExitCode(), err)
	}
	// 55: a command that does not exist
	if _, err := n.ExecSync(n.ctx(t), id, 0, "/no/such/command"); err == nil {
		t.Error("exec of a missing command succeeds")
	}
	if out := n.check(t, id, "echo", "still there"); out != "still there" {
		t.Errorf("exec afterwards: %q", out)
	}
}

// transports are the ways to reach the streaming server.
var transports = []cri.Transport{cri.SPDY, cri.WebSocket}

func podExecStream(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, idle("main"))
	for _, over := range transports {
		t.Run(over.String(), func(t *testing.T) { execStream(t, n, id, over) })
	}
	// 23 and the end of stdin, which only SPDY hands on.
	var out bytes.Buffer
	err := n.Exec(n.ctx(t), id, cri.Streams{Stdin: strings.NewReader("to the end"), Stdout: &out}, "cat")
	if err != nil || out.String() != "to the end" {
		t.Errorf("exec: %q, %v", out.String(), err)
	}
}

func execStream(t *testing.T, n *node, id string, over cri.Transport) {
	t.Helper()
	text := strings.Repeat("a line for the command\n", 20000)
	var out, errs bytes.Buffer
	err := n.Exec(n.ctx(t), id, cri.Streams{Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs, Over: over},
		"sh", "-c", fmt.Sprintf("head -c %d; echo problem >&2; exit 7", len(text)))
	var exit *cri.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("exec: %v, want exit code 7", err)
	}
	if out.String() != text || errs.String() != "problem\n" {
		t.Errorf("%d bytes of %d came back, stderr %q", out.Len(), len(text), errs.String())
	}
	out.Reset()
	if err := n.Exec(n.ctx(t), id, cri.Streams{Stdout: &out, Over: over}, "echo", "no stdin"); err != nil || out.String() != "no stdin\n" {
		t.Errorf("exec without stdin: %q, %v", out.String(), err)
	}

	// 23: a terminal and its size
	in, typing := io.Pipe()
	sizes := make(chan cri.Size, 1)
	sizes <- cri.Size{Width: 100, Height: 40}
	out.Reset()
	done := make(chan error, 1)
	go func() {
		done <- n.Exec(n.ctx(t), id, cri.Streams{Stdin: in, Stdout: &out, Terminal: true, Sizes: sizes, Over: over}, "sh", "-c",
			"until [ \"$(stty size)\" = '40 100' ]; do usleep 10000; done; read word; echo got $word; tty; echo $TERM")
	}()
	_, _ = typing.Write([]byte("hello\n"))
	if err := <-done; err != nil {
		t.Errorf("exec with terminal: %v; output %q", err, out.String())
	}
	close(sizes)
	_ = typing.Close()
	if !strings.Contains(out.String(), "got hello\r\n/dev/pts/") || !strings.HasSuffix(out.String(), "\r\nxterm\r\n") {
		t.Errorf("terminal shows %q", out.String())
	}
}

func podAttach(t *testing.T, n *node) {
	pod := n.pod(t)
	for _, over := range transports {
		t.Run(over.String(), func(t *testing.T) { attach(t, n, pod, over) })
	}
	t.Run("terminal", func(t *testing.T) { attachTerminal(t, n, pod) })
}

func attach(t *testing.T, n *node, pod *cri.Pod, over cri.Transport) {
	t.Helper()
	config := in(pod, "while read word && [ $word != end ]; do echo got $word; done; echo the end; exit 4")
	config.Stdin, config.StdinOnce = true, true
	id := startIn(t, n, pod, config)
	in, typing := io.Pipe()
	out, shown := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- n.Attach(n.ctx(t), id, cri.Streams{Stdin: in, Stdout: shown, Over: over})
		_ = shown.Close()
	}()
	lines := make([]byte, 64)
	for _, word := range []string{"one", "two"} {
		if _, err := typing.Write([]byte(word + "\n")); err != nil {
			t.Fatal(err)
		}
		if got, err := out.Read(lines); err != nil || string(lines[:got]) != "got "+word+"\n" {
			t.Errorf("attached client reads %q, %v", lines[:got], err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if over == cri.WebSocket {
		_, _ = typing.Write([]byte("end\n"))
	}
	_ = typing.Close() // stdin is the container's only once
	s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
	if s.GetExitCode() != 4 {
		t.Errorf("exit code %d, want 4", s.GetExitCode())
	}
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	if got, _ := awaitLog(t, logOf(pod, config), "the end"); got != "got one\ngot two\nthe end\n" {
		t.Errorf("log %q", got)
	}
}

// attachTerminal attaches twice to a container with a terminal: it goes on when
// a client leaves.
func attachTerminal(t *testing.T, n *node, pod *cri.Pod) {
	t.Helper()
	config := in(pod, "while read word; do echo got $word; done")
	config.Stdin, config.Tty = true, true
	id := startIn(t, n, pod, config)
	for _, word := range []string{"one", "two"} {
		ctx, leave := context.WithCancel(n.ctx(t))
		typed, typing := io.Pipe()
		out, shown := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- n.Attach(ctx, id, cri.Streams{Stdin: typed, Stdout: shown, Terminal: true})
			_ = shown.Close()
		}()
		go func() { _, _ = typing.Write([]byte(word + "\n")) }()
		var seen strings.Builder
		piece := make([]byte, 64)
		for !strings.Contains(seen.String(), "got "+word) {
			got, err := out.Read(piece)
			if err != nil {
				t.Fatalf("%s: the terminal shows %q, then %v", word, seen.String(), err)
			}
			seen.Write(piece[:got])
		}
		go func() { _, _ = io.Copy(io.Discard, out) }()
		leave()
		<-done
		_ = typing.Close()
	}
	n.awaitState(t, id, runtime.ContainerState_CONTAINER_RUNNING)
}

func podStop(t *testing.T, n *node) {
	pod := n.pod(t)
	for _, c := range []struct {
		name, script string
		timeout      time.Duration
		low, high    time.Duration
		code         int32
	}{
		{"obeys", "trap 'exit 9' TERM; sleep 100000 & wait", 20 * time.Second, 0, 10 * time.Second, 9},
		{"ignores", "trap '' TERM; while :; do sleep 1; done", 2 * time.Second, 2 * time.Second, 10 * time.Second, 137},
		{"at once", "trap 'exit 9' TERM; sleep 100000 & wait", 0, 0, 10 * time.Second, 137},
	} {
		id := startIn(t, n, pod, shell(strings.ReplaceAll(c.name, " ", "-"), "echo ready; "+c.script))
		n.check(t, id, "usleep", "200000") // the trap is set
		began := time.Now()
		if err := n.Client.Stop(n.ctx(t), id, c.timeout); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		elapsed(t, began, c.low, c.high)
		if s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, s.GetExitCode(), c.code)
		}
	}
	// Who stops twice at once sends one signal.
	id := startIn(t, n, pod, in(pod, "trap 'echo signal' TERM; trap 'exit 0' USR1; echo ready; while :; do sleep 0.1; done"))
	n.check(t, id, "usleep", "200000")
	var stopping sync.WaitGroup
	for range 3 {
		stopping.Go(func() {
			if err := n.Client.Stop(n.ctx(t), id, 20*time.Second); err != nil {
				t.Errorf("stop at once: %v", err)
			}
		})
	}
	n.check(t, id, "sh", "-c", "sleep 0.7; kill -USR1 1")
	stopping.Wait()
	s, err := n.ContainerStatus(n.ctx(t), id)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(s.GetLogPath()); err != nil || strings.Count(string(text), "signal") != 1 {
		t.Errorf("stopped by three at once: log %q, %v, want one signal", text, err)
	}
	// A created container can be stopped and removed.
	id, err = pod.Create(n.ctx(t), idle("never-started"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(n.ctx(t), id); err != nil {
		t.Errorf("remove a created container: %v", err)
	}
}

func podUpdate(t *testing.T, n *node) {
	pod := n.pod(t)
	config := idle("main")
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	config.Linux.Resources.CpuShares = 512
	id := startIn(t, n, pod, config)
	_, err := n.UpdateContainerResources(n.ctx(t), &runtime.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 20000, CpuPeriod: 100000},
	})
	if err != nil {
		t.Fatal(err)
	}
	limit := "/sys/fs/cgroup/memory.max"
	quota, want := "/sys/fs/cgroup/cpu.max", "20000 100000"
	if !host.Unified() {
		limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
		quota, want = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "20000"
	}
	if got := n.check(t, id, "cat", limit); got != strconv.Itoa(96<<20) {
		t.Errorf("memory limit %s, want %d", got, 96<<20)
	}
	if got := n.check(t, id, "cat", quota); got != want {
		t.Errorf("cpu quota %q, want %q", got, want)
	}
	s, err := n.ContainerStatus(n.ctx(t), id)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuShares() != 512 {
		t.Errorf("status says %v, want the new memory limit and the old shares", got)
	}
}

// podShrink asks for less memory than is used: an error, and nothing changed.
// With version 2 of cgroups the kernel makes room instead.
func podShrink(t *testing.T, n *node) {
	if host.Unified() {
		t.Skip("version 2 of cgroups does not refuse")
	}
	pod := n.pod(t)
	id := startIn(t, n, pod, in(pod, "head -c 30000000 /dev/zero > /dev/shm/held; tail -f /dev/null", func(c *runtime.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 128 << 20
	}))
	const limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	eventually(t, patience, func() string {
		if used := n.check(t, id, "cat", "/sys/fs/cgroup/memory/memory.usage_in_bytes"); len(used) < len("30000000") {
			return "used " + used
		}
		return ""
	})
	_, err := n.UpdateContainerResources(n.ctx(t), &runtime.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20},
	})
	if err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("update: %v, want an error that names memory", err)
	}
	if got := n.check(t, id, "cat", limit); got != strconv.Itoa(128<<20) {
		t.Errorf("limit %s, want %d", got, 128<<20)
	}
	s, err := n.ContainerStatus(n.ctx(t), id)
	if err != nil || s.GetResources().GetLinux().GetMemoryLimitInBytes() != 128<<20 {
		t.Errorf("status says %v, %v", s.GetResources(), err)
	}
}

// podProbes executes many commands and looks for what they leave in the shim.
func podProbes(t *testing.T, n *node) {
	pod := n.pod(t)
	id := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	shim := fmt.Sprintf(" %d:", n.shim(t, n.shimOf(pod, id)))
	of := func() (fds []string) {
		for _, line := range n.Count(t)["fds"] {
			if strings.Contains(line, shim) {
				fds = append(fds, line)
			}
		}
		return fds
	}
	n.check(t, id, "true")
	before := of()
	for range 20 {
		if got := n.check(t, id, "echo", "fine"); got != "fine" {
			t.Fatalf("probe: %q", got)
		}
	}
	eventually(t, patience, func() string {
		for _, line := range of() {
			if !slices.Contains(before, line) {
				return "the shim still has " + line
			}
		}
		return ""
	})
	if ps := strings.Count(n.check(t, id, "ps"), "\n"); ps > 4 {
		t.Errorf("%d processes left", ps)
	}
}

// shimOf is the id that the shim of a container was started with: containerd's
// own shim serves the pod.
func (n *node) shimOf(pod *cri.Pod, id string) string {
	if n.rt.Berth {
		return id
	}
	return pod.ID
}

// podPauseKilled kills the process of a sandbox: the pod is not ready any more,
// its containers run on, and all of it can be removed.
func podPauseKilled(t *testing.T, n *node) {
	if n.pauseless() {
		t.Skip("no process to kill; see TestPauseless")
	}
	pod := n.pod(t)
	id := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	answer, err := n.PodSandboxStatus(n.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil || info.Pid < 2 {
		t.Fatalf("process %d, %v", info.Pid, err)
	}
	if err := unix.Kill(info.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.awaitPod(t, pod, runtime.PodSandboxState_SANDBOX_NOTREADY)
	if got := n.check(t, id, "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
	n.refused(t, pod, in(pod, "true"), "not")
}

// 67: the reason of the end is told.
func podOOM(t *testing.T, n *node) {
	pod := n.pod(t)
	config := shell("hog", "exec tail /dev/zero")
	config.Linux.Resources.MemoryLimitInBytes = 20 << 20
	config.Linux.Resources.MemorySwapLimitInBytes = 20 << 20
	id := startIn(t, n, pod, config)
	s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
	if s.GetExitCode() != 137 || s.GetReason() != "OOMKilled" {
		t.Errorf("exit code %d, reason %q, want 137, OOMKilled", s.GetExitCode(), s.GetReason())
	}
}

func podTwoContainers(t *testing.T, n *node) {
	pod := n.pod(t)
	server := startIn(t, n, pod, shell("server", "while :; do echo hello | nc -l -p 8080; done"))
	other := startIn(t, n, pod, idle("other"))
	eventually(t, patience, func() string {
		got, err := n.ExecSync(n.ctx(t), other, 0, "nc", "127.0.0.1", "8080")
		if err != nil || string(got.GetStdout()) != "hello\n" {
			return fmt.Sprintf("through the pod's loopback: %v, %v", got, err)
		}
		return ""
	})
	for _, ns := range []string{"net", "ipc", "uts"} {
		if a, b := n.check(t, server, "readlink", "/proc/1/ns/"+ns), n.check(t, other, "readlink", "/proc/1/ns/"+ns); a != b {
			t.Errorf("%s namespaces %s and %s differ", ns, a, b)
		}
	}
	if got := n.check(t, other, "sh", "-c", "echo $$"); got == "" || strings.Contains(n.check(t, other, "ps"), "nc -l") {
		t.Error("one container sees the other's processes")
	}
	if err := n.Client.Stop(n.ctx(t), server, 0); err != nil {
		t.Fatal(err)
	}
	if got := n.check(t, other, "echo", "alive"); got != "alive" {
		t.Errorf("the other container after the first one's end: %q", got)
	}
}

func podSharedProcesses(t *testing.T, n *node) {
	pod := n.pod(t, sharing(sharedPIDs))
	// 16: what a container leaves behind in a shared process namespace is gone.
	first := startIn(t, n, pod, in(pod, "(trap '' TERM; sleep 987654) & sleep 100000"))
	second := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	eventually(t, patience, func() string {
		if ps := n.check(t, second, "ps"); !strings.Contains(ps, "987654") {
			return "processes seen:\n" + ps
		}
		return ""
	})
	// The first process is the pod's own, and no container's.
	want := "pause"
	if n.pauseless() {
		want = "berth-init"
	}
	if got := n.check(t, second, "cat", "/proc/1/comm"); got != want {
		t.Errorf("the first process is %q, want %q", got, want)
	}
	if err := n.Client.Stop(n.ctx(t), first, time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if ps := n.check(t, second, "ps"); strings.Contains(ps, "987654") {
			return "processes left by the first container:\n" + ps
		}
		return ""
	})
}

// 12: a program that does not exist.
func podBadProgram(t *testing.T, n *node) {
	pod := n.pod(t)
	config := container("main", "/no/such/program")
	id, err := pod.Create(n.ctx(t), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Client.Start(n.ctx(t), id); err == nil || !strings.Contains(err.Error(), "no such") {
		t.Errorf("start: %v, want the runtime's message", err)
	}
	s := n.awaitState(t, id, runtime.ContainerState_CONTAINER_EXITED)
	if s.GetExitCode() == 0 || s.GetReason() != "StartError" {
		t.Errorf("exit code %d, reason %q", s.GetExitCode(), s.GetReason())
	}
}
