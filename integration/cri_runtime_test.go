// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// podRuntime checks what the runtime says of itself.
func podRuntime(t *testing.T, n *node) {
	version, err := n.Version(n.ctx(t), &runtime.VersionRequest{Version: "v1"})
	if err != nil || version.GetRuntimeName() != "containerd" || version.GetRuntimeApiVersion() != "v1" {
		t.Errorf("version %v, %v", version, err)
	}
	s, err := n.RuntimeServiceClient.Status(n.ctx(t), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{runtime.RuntimeReady, runtime.NetworkReady} {
		if !slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *runtime.RuntimeCondition) bool {
			return c.GetType() == kind && c.GetStatus()
		}) {
			t.Errorf("conditions %v, want %s", s.GetStatus().GetConditions(), kind)
		}
	}
	// The kubelet asks before it uses user namespaces or recursive read-only
	// mounts; the empty name is the default handler.
	for _, name := range []string{"", n.handler, handlerPorts} {
		i := slices.IndexFunc(s.GetRuntimeHandlers(), func(h *runtime.RuntimeHandler) bool { return h.GetName() == name })
		if i < 0 {
			t.Errorf("no handler %q in %v", name, s.GetRuntimeHandlers())
			continue
		}
		if f := s.GetRuntimeHandlers()[i].GetFeatures(); !f.GetUserNamespaces() || !f.GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q has features %v", name, f)
		}
	}
	if !s.GetFeatures().GetSupplementalGroupsPolicy() {
		t.Errorf("features %v", s.GetFeatures())
	}
	if !json.Valid([]byte(s.GetInfo()["config"])) {
		t.Errorf("info %v", s.GetInfo())
	}
	config, err := n.RuntimeConfig(n.ctx(t), &runtime.RuntimeConfigRequest{})
	want := runtime.CgroupDriver_CGROUPFS
	if host.Systemd() {
		want = runtime.CgroupDriver_SYSTEMD
	}
	if got := config.GetLinux().GetCgroupDriver(); err != nil || got != want {
		t.Errorf("cgroup driver %v, %v; want %v", got, err, want)
	}
}

// podLists checks lists of pods and containers, and their status.
func podLists(t *testing.T, n *node) {
	label := map[string]string{"case": id(t)}
	labelled := func(c *runtime.PodSandboxConfig) {
		c.Labels, c.Annotations = label, map[string]string{"note": "kept"}
	}
	ready, stopped := n.pod(t, labelled), n.pod(t, labelled)
	if err := stopped.Stop(n.ctx(t)); err != nil {
		t.Fatal(err)
	}
	state := func(s runtime.PodSandboxState) *runtime.PodSandboxStateValue {
		return &runtime.PodSandboxStateValue{State: s}
	}
	for _, c := range []struct {
		name   string
		filter *runtime.PodSandboxFilter
		want   []string
	}{
		{"id", &runtime.PodSandboxFilter{Id: ready.ID}, []string{ready.ID}},
		{"part of an id", &runtime.PodSandboxFilter{Id: ready.ID[:13]}, []string{ready.ID}},
		{"label", &runtime.PodSandboxFilter{LabelSelector: label}, []string{ready.ID, stopped.ID}},
		{"ready", &runtime.PodSandboxFilter{LabelSelector: label, State: state(runtime.PodSandboxState_SANDBOX_READY)}, []string{ready.ID}},
		{"not ready", &runtime.PodSandboxFilter{LabelSelector: label, State: state(runtime.PodSandboxState_SANDBOX_NOTREADY)}, []string{stopped.ID}},
		{"another label", &runtime.PodSandboxFilter{Id: ready.ID, LabelSelector: map[string]string{"case": "none"}}, nil},
	} {
		answer, err := n.ListPodSandbox(n.ctx(t), &runtime.ListPodSandboxRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range answer.GetItems() {
			got = append(got, p.GetId())
			age := time.Since(time.Unix(0, p.GetCreatedAt()))
			if p.GetAnnotations()["note"] != "kept" || p.GetRuntimeHandler() != n.handler || age < 0 || age > patience {
				t.Errorf("%s: listed as %v", c.name, p)
			}
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("pods by %s: %v, want %v", c.name, got, c.want)
		}
	}
	podStatus(t, n, ready)
	for pod, running := range map[*cri.Pod]bool{ready: true, stopped: false} {
		answer, err := n.PodSandboxStatus(n.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
		if info := answer.GetInfo()["info"]; err != nil || strings.Contains(info, `"processStatus":"running"`) != running {
			t.Errorf("verbose status %q, %v; running is %v", info, err, running)
		}
	}

	config := in(ready, "trap 'exit 0' TERM; sleep 100000 & wait", func(c *runtime.ContainerConfig) {
		c.Labels, c.Annotations, c.Metadata.Attempt = label, map[string]string{"note": "kept"}, 3
	})
	running := startIn(t, n, ready, config)
	created, err := ready.Create(n.ctx(t), in(ready, "true"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		filter *runtime.ContainerFilter
		want   []string
	}{
		{"id", &runtime.ContainerFilter{Id: running}, []string{running}},
		{"pod", &runtime.ContainerFilter{PodSandboxId: ready.ID}, []string{running, created}},
		{"label", &runtime.ContainerFilter{LabelSelector: label}, []string{running}},
		{"state", &runtime.ContainerFilter{PodSandboxId: ready.ID, State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_CREATED}}, []string{created}},
		{"another pod", &runtime.ContainerFilter{Id: running, PodSandboxId: stopped.ID}, nil},
	} {
		answer, err := n.ListContainers(n.ctx(t), &runtime.ListContainersRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range answer.GetContainers() {
			got = append(got, c.GetId())
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("containers by %s: %v, want %v", c.name, got, c.want)
		}
	}
	answer, err := n.RuntimeServiceClient.ContainerStatus(n.ctx(t), &runtime.ContainerStatusRequest{ContainerId: running, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := answer.GetStatus()
	if s.GetMetadata().GetAttempt() != 3 || s.GetMetadata().GetName() != config.GetMetadata().GetName() || s.GetAnnotations()["note"] != "kept" ||
		s.GetLogPath() != logOf(ready, config) || s.GetImage().GetImage() == "" || s.GetCreatedAt() == 0 || s.GetStartedAt() < s.GetCreatedAt() {
		t.Errorf("status %v", s)
	}
	var info struct {
		Pid         int
		SandboxID   string
		RuntimeSpec json.RawMessage
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil || info.Pid == 0 || info.SandboxID != ready.ID || len(info.RuntimeSpec) == 0 {
		t.Errorf("verbose status %v, %v", answer.GetInfo(), err)
	}
}

// podStatus checks the status of a running pod.
func podStatus(t *testing.T, n *node, pod *cri.Pod) {
	t.Helper()
	answer, err := n.PodSandboxStatus(n.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := answer.GetStatus()
	if s.GetMetadata().GetName() != pod.Config.GetMetadata().GetName() || !maps.Equal(s.GetLabels(), pod.Config.GetLabels()) ||
		!maps.Equal(s.GetAnnotations(), pod.Config.GetAnnotations()) || s.GetRuntimeHandler() != n.handler ||
		s.GetNetwork().GetIp() == "" || s.GetLinux().GetNamespaces().GetOptions().GetPid() != runtime.NamespaceMode_CONTAINER {
		t.Errorf("status %v", s)
	}
	if age := time.Since(time.Unix(0, s.GetCreatedAt())); age < 0 || age > patience {
		t.Errorf("created at %v", time.Unix(0, s.GetCreatedAt()))
	}
	// What crictl shows; the kubelet's tools read some of it.
	var info struct {
		Pid         int
		RuntimeType string
		Config      struct{ Metadata struct{ Name string } }
		RuntimeSpec struct {
			Hostname string
			Linux    struct{ Namespaces []struct{ Type, Path string } }
		}
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		t.Fatalf("verbose status %q: %v", answer.GetInfo()["info"], err)
	}
	if info.Config.Metadata.Name != s.GetMetadata().GetName() || len(info.RuntimeSpec.Linux.Namespaces) == 0 {
		t.Errorf("verbose status %+v", info)
	}
	if (info.Pid == 0) != n.pauseless() {
		t.Errorf("verbose status has process %d", info.Pid)
	}
}

// podAttempts checks names: a pod's is its own until it is removed, and a later
// attempt is another pod.
func podAttempts(t *testing.T, n *node) {
	first := n.pod(t)
	if _, err := n.Client.Run(n.ctx(t), n.handler, first.Config); err == nil || !strings.Contains(err.Error(), "reserve") {
		t.Errorf("the same pod again: %v, want an error", err)
	}
	if err := first.Stop(n.ctx(t)); err != nil {
		t.Fatal(err)
	}
	second := n.pod(t, func(c *runtime.PodSandboxConfig) {
		c.Metadata.Name, c.Metadata.Uid, c.Metadata.Attempt = first.Config.Metadata.Name, first.Config.Metadata.Uid, 1
	})
	if s, err := second.Status(n.ctx(t)); err != nil || s.GetMetadata().GetAttempt() != 1 {
		t.Errorf("status %v, %v, want attempt 1", s, err)
	}
	if got := n.output(t, second, "echo runs"); got != "runs" {
		t.Errorf("container of the second attempt: %q", got)
	}
}

// podRefusals checks what must fail, and how, and what must not.
func podRefusals(t *testing.T, n *node) {
	pod := n.pod(t)
	created, err := pod.Create(n.ctx(t), in(pod, "true"))
	if err != nil {
		t.Fatal(err)
	}
	running := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	if err := n.Client.Start(n.ctx(t), running); err == nil {
		t.Error("a running container can be started")
	}
	if _, err := n.ExecSync(n.ctx(t), created, 0, "true"); err == nil {
		t.Error("a created container can be executed in")
	}
	if err := pod.Stop(n.ctx(t)); err != nil {
		t.Fatal(err)
	}
	if s := n.awaitState(t, running, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() == 0 && s.GetFinishedAt() == 0 {
		t.Errorf("stopped with its pod: %v", s)
	}
	if err := n.Client.Start(n.ctx(t), created); err == nil {
		t.Error("a container of a stopped pod can be started")
	}
	if _, err := n.ExecSync(n.ctx(t), running, 0, "true"); err == nil {
		t.Error("an ended container can be executed in")
	}
	n.refused(t, pod, in(pod, "true"), "not")
	if _, err := pod.Forward(n.ctx(t), cri.SPDY, 80, []byte("x")); err == nil {
		t.Error("a port of a stopped pod can be forwarded")
	}
	// What is not there can be stopped and removed; whatever it is called.
	for _, name := range []string{"nothing", "../../etc/passwd", strings.Repeat("x", 300)} {
		ctx := n.ctx(t)
		_, stop := n.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: name})
		_, remove := n.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: name})
		if err := errors.Join(stop, remove, n.Client.Stop(ctx, name, 0), n.Remove(ctx, name)); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := n.ContainerStatus(ctx, name); status.Code(err) != codes.NotFound {
			t.Errorf("status of container %q: %v, want not found", name, err)
		}
		if _, err := n.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: name}); status.Code(err) != codes.NotFound {
			t.Errorf("status of pod %q: %v, want not found", name, err)
		}
		if _, err := n.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: name, Config: in(pod, "true"), SandboxConfig: pod.Config}); err == nil {
			t.Errorf("a container can be made in pod %q", name)
		}
	}
	// A running pod is removed with all there is in it.
	full := n.pod(t)
	startIn(t, n, full, in(full, "sleep 100000"))
	if err := full.Remove(n.ctx(t)); err != nil {
		t.Errorf("remove a running pod: %v", err)
	}
	n.podRefused(t, "unheard-of", "unheard-of")
	n.podRefused(t, handlerBroken, "network")
}

// podEvents checks that every step of a pod and a container is told once.
func podEvents(t *testing.T, n *node) {
	ctx, cancel := context.WithCancel(n.ctx(t))
	defer cancel()
	stream, err := n.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	type event struct {
		of   string
		kind runtime.ContainerEventType
	}
	events := make(chan event, 64) // more than one pod has
	pod := n.pod(t)
	go func() {
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			if e.GetPodSandboxStatus().GetId() == pod.ID || e.GetContainerId() == pod.ID {
				events <- event{e.GetContainerId(), e.GetContainerEventType()}
			}
		}
	}()
	container := startIn(t, n, pod, in(pod, "exit 3"))
	n.awaitState(t, container, runtime.ContainerState_CONTAINER_EXITED)
	if err := errors.Join(n.Remove(ctx, container), pod.Stop(ctx), pod.Remove(ctx)); err != nil {
		t.Fatal(err)
	}
	want := map[event]int{}
	for _, of := range []string{pod.ID, container} {
		for _, kind := range []runtime.ContainerEventType{
			runtime.ContainerEventType_CONTAINER_CREATED_EVENT, runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
			runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
		} {
			want[event{of, kind}] = 1
		}
	}
	got := map[event]int{}
	deadline := time.After(10 * time.Second)
	for len(got) < len(want) {
		select {
		case e := <-events:
			got[e]++
			continue
		case <-deadline:
		}
		break
	}
	// One more of something would come at once.
	time.Sleep(200 * time.Millisecond)
	cancel()
	for e := range events {
		got[e]++
	}
	if !maps.Equal(got, want) {
		t.Errorf("pod %s, container %s: events %v", pod.ID, container, got)
	}
}

// podStats checks the use of resources, one by one, in lists, and as metrics.
func podStats(t *testing.T, n *node) {
	label := map[string]string{"case": id(t)}
	pod := n.pod(t, func(c *runtime.PodSandboxConfig) { c.Labels = label })
	empty := n.pod(t, func(c *runtime.PodSandboxConfig) { c.Labels = label })
	busy := startIn(t, n, pod, in(pod, "head -c 20000000 /dev/zero | md5sum; tail -f /dev/null", func(c *runtime.ContainerConfig) { c.Labels = label }))
	quiet := startIn(t, n, pod, idle("quiet"))
	ended := startIn(t, n, pod, in(pod, "true"))
	n.awaitState(t, ended, runtime.ContainerState_CONTAINER_EXITED)
	eventually(t, patience, func() string {
		answer, err := n.ContainerStats(n.ctx(t), &runtime.ContainerStatsRequest{ContainerId: busy})
		if err != nil {
			t.Fatal(err)
		}
		s := answer.GetStats()
		if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			return fmt.Sprintf("stats %v", s)
		}
		return ""
	})
	for _, c := range []struct {
		name   string
		filter *runtime.ContainerStatsFilter
		want   []string
	}{
		{"pod", &runtime.ContainerStatsFilter{PodSandboxId: pod.ID}, []string{busy, quiet}},
		{"id", &runtime.ContainerStatsFilter{Id: quiet}, []string{quiet}},
		{"label", &runtime.ContainerStatsFilter{LabelSelector: label}, []string{busy}},
	} {
		list, err := n.ListContainerStats(n.ctx(t), &runtime.ListContainerStatsRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list.GetStats() {
			if s.GetAttributes().GetId() == ended {
				continue // as containerd likes
			}
			got = append(got, s.GetAttributes().GetId())
			if s.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
				t.Errorf("by %s: stats %v", c.name, s)
			}
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("stats by %s: %v, want %v", c.name, got, c.want)
		}
	}
	eventually(t, patience, func() string {
		answer, err := n.PodSandboxStats(n.ctx(t), &runtime.PodSandboxStatsRequest{PodSandboxId: pod.ID})
		if err != nil {
			return err.Error()
		}
		s := answer.GetStats().GetLinux()
		if s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetProcess().GetProcessCount().GetValue() == 0 ||
			s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetNetwork().GetDefaultInterface().GetName() != "eth0" || len(s.GetContainers()) < 2 {
			return fmt.Sprintf("pod's stats %v", s)
		}
		return ""
	})
	if err := empty.Stop(n.ctx(t)); err != nil {
		t.Fatal(err)
	}
	list, err := n.ListPodSandboxStats(n.ctx(t), &runtime.ListPodSandboxStatsRequest{Filter: &runtime.PodSandboxStatsFilter{LabelSelector: label}})
	if err != nil || !slices.ContainsFunc(list.GetStats(), func(s *runtime.PodSandboxStats) bool { return s.GetAttributes().GetId() == pod.ID }) {
		t.Errorf("list of pods' stats %v, %v", list, err)
	}
}

// podPlain runs a pod and containers of which next to nothing is said, as the
// validation suite does: then a container shares all that there is to share, and
// neither it nor the pod has a cgroup that somebody made for them.
func podPlain(t *testing.T, n *node) {
	pod := n.pod(t, func(c *runtime.PodSandboxConfig) {
		c.Hostname, c.LogDirectory, c.Linux = "", "", &runtime.LinuxPodSandboxConfig{}
	})
	plain, limited := container("plain", "top"), container("limited", "top")
	plain.LogPath, plain.Linux = "", nil
	limited.LogPath, limited.Linux = "", &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
	}}
	ids := []string{startIn(t, n, pod, plain), startIn(t, n, pod, limited)}
	for _, id := range ids { // at once
		answer, err := n.ContainerStats(n.ctx(t), &runtime.ContainerStatsRequest{ContainerId: id})
		if s := answer.GetStats(); err != nil || s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 {
			t.Errorf("stats %v, %v", s, err)
		}
	}
	podMetrics(t, n, pod)
	// With a pause container, or of old, containerd makes an error of a pod without a cgroup.
	if n.pauseless() && !n.older(t) {
		list, err := n.ListPodSandboxStats(n.ctx(t), &runtime.ListPodSandboxStatsRequest{Filter: &runtime.PodSandboxStatsFilter{Id: pod.ID}})
		if err != nil || len(list.GetStats()) != 1 || len(list.GetStats()[0].GetLinux().GetContainers()) != len(ids) {
			t.Errorf("the pod's stats: %v, %v", list, err)
		}
	}
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := n.check(t, ids[0], "hostname"); got != own {
		t.Errorf("hostname %q, want the host's, %q", got, own)
	}
	if got := n.check(t, ids[0], "cat", "/proc/1/cmdline"); got == "" || strings.HasPrefix(got, "top") {
		t.Errorf("the first process is %q, want the pod's", got)
	}
	// Not a namespace's first process, it has SIGTERM's usual meaning.
	if err := n.Client.Stop(n.ctx(t), ids[0], 2*patience); err != nil {
		t.Error(err)
	}
	if s := n.awaitState(t, ids[0], runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 128+15 {
		t.Errorf("exit code %d, want that of SIGTERM", s.GetExitCode())
	}
	for _, id := range ids { // one of them runs
		if err := n.Remove(n.ctx(t), id); err != nil {
			t.Error(err)
		}
		if left := cgroupsOf(id); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// cgroupsOf are the cgroups of a container in a pod without one, and with "" what they
// are in.
func cgroupsOf(id string) []string {
	found, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", criNamespace, id))
	unified, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", criNamespace, id))
	return slices.DeleteFunc(append(found, unified...), func(path string) bool {
		var st unix.Statfs_t // host.Enter has a folder for crun that is none
		return unix.Statfs(path, &st) != nil || st.Type == unix.TMPFS_MAGIC
	})
}

// unmetered are the beginnings of names of metrics that containerd describes and does
// not always have: of block devices that nothing was read from, of swap where the
// machine does not account for it, and those that it leaves out for each runtime.
var unmetered = []string{
	"container_blkio_", "container_fs_reads_", "container_fs_writes_", "container_hugetlb_", "container_pressure_",
	"container_spec_cpu_quota", "container_spec_memory_reservation_limit_bytes", "container_spec_memory_swap_limit_bytes", "container_ulimits_soft",
}

// podMetrics checks that a pod with a container that has limits has every other metric
// that is described, and each with the labels of its description.
func podMetrics(t *testing.T, n *node, pod *cri.Pod) {
	t.Helper()
	descriptors, err := n.ListMetricDescriptors(n.ctx(t), &runtime.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := n.ListPodSandboxMetrics(n.ctx(t), &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(answer.GetPodMetrics(), func(m *runtime.PodSandboxMetrics) bool { return m.GetPodSandboxId() == pod.ID })
	if i < 0 {
		t.Fatalf("no metrics of pod %s among %d", pod.ID, len(answer.GetPodMetrics()))
	}
	metrics := answer.GetPodMetrics()[i]
	if len(metrics.GetContainerMetrics()) < 2 {
		t.Errorf("%d containers with metrics, want two", len(metrics.GetContainerMetrics()))
	}
	labels := map[string]int{} // their number, by the metric's name
	for _, m := range metrics.GetMetrics() {
		labels[m.GetName()] = len(m.GetLabelValues())
	}
	for _, c := range metrics.GetContainerMetrics() {
		for _, m := range c.GetMetrics() {
			labels[m.GetName()] = len(m.GetLabelValues())
		}
	}
	if len(descriptors.GetDescriptors()) == 0 {
		t.Error("no metrics are described")
	}
	for _, d := range descriptors.GetDescriptors() {
		got, found := labels[d.GetName()]
		delete(labels, d.GetName())
		if !found && (slices.ContainsFunc(unmetered, func(prefix string) bool { return strings.HasPrefix(d.GetName(), prefix) }) ||
			d.GetName() == "container_threads" && n.older(t)) { // it forgets them where cgroups are of version 1
			continue
		}
		if got != len(d.GetLabelKeys()) {
			t.Errorf("metric %s has %d labels, want %q", d.GetName(), got, d.GetLabelKeys())
		}
	}
	if len(labels) > 0 {
		t.Errorf("metrics without a description: %v", labels)
	}
}

// podResources checks that a pod's resources can be changed.
func podResources(t *testing.T, n *node) {
	pod := n.pod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 256, MemoryLimitInBytes: 64 << 20}
		c.Linux.Overhead = &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	container := startIn(t, n, pod, in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"))
	_, err := n.UpdatePodSandboxResources(n.ctx(t), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod.ID,
		Resources:    &runtime.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 96 << 20},
	})
	if err != nil {
		t.Errorf("update: %v", err)
	}
	answer, err := n.PodSandboxStatus(n.ctx(t), &runtime.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if info := answer.GetInfo()["info"]; !strings.Contains(info, fmt.Sprintf(`"memory_limit_in_bytes":%d`, 96<<20)) {
		t.Errorf("verbose status %s, want the new limit in it", info)
	}
	if got := n.check(t, container, "echo", "alive"); got != "alive" {
		t.Errorf("exec after the update: %q", got)
	}
	if _, err := n.UpdatePodSandboxResources(n.ctx(t), &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: "nothing"}); err == nil {
		t.Error("the resources of no pod can be changed")
	}
}
