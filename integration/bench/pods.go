// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// criNamespace is where the CRI plugin keeps its containers.
const criNamespace = "k8s.io"

// podBench measures pods, in a containerd with the CRI plugin: stock's with a
// pause container beside berth's without one.
type podBench struct {
	*bench
	*cri.Client
}

// podTypes are the networks that pods are measured with. Only a pod that uses
// the host's is all of a shim's making: the rest of a bridged one's time is CNI's.
var podTypes = []struct {
	name    string
	network runtime.NamespaceMode
}{
	{"host network", runtime.NamespaceMode_NODE},
	{"bridged", runtime.NamespaceMode_POD},
}

// pods runs the part in a containerd of its own: the other parts' would poll
// the pods' statistics beside their measurements.
func (b *bench) pods(ctx context.Context) (err error) {
	conf, err := host.Network()
	if err != nil {
		return err
	}
	d, err := host.New(host.Options{CRI: true, Images: []string{}, TOML: host.PodTOML(conf)})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nits containerd's log:\n%s", err, d.Log(20))
		}
		err = errors.Join(err, d.Close())
	}()
	for _, image := range []string{"busybox", "pause"} {
		out, err := d.Ctr("-n", criNamespace, "images", "import", host.Deps("images/"+image+".tar")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("import %s: %w: %s", image, err, out)
		}
	}
	c, err := cri.Dial(d.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	p := &podBench{bench: &bench{daemon: d, settings: b.settings, report: b.report}, Client: c}
	if err := p.await(ctx); err != nil {
		return err
	}
	if err := p.lives(ctx); err != nil {
		return err
	}
	return p.weights(ctx)
}

// await waits until containerd knows the network and the images.
func (p *podBench) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for ; ; time.Sleep(10 * time.Millisecond) {
		err := errors.Join(p.Ready(ctx), p.known(ctx, host.Busybox), p.known(ctx, host.Pause))
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func (p *podBench) known(ctx context.Context, image string) error {
	answer, err := p.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: image}})
	if err == nil && answer.GetImage() == nil {
		err = fmt.Errorf("CRI does not know %s", image)
	}
	return err
}

// lives times each step in the life of a pod of one container.
func (p *podBench) lives(ctx context.Context) error {
	for _, t := range podTypes {
		progress("pods, %s: %d rounds", t.name, p.settings.rounds)
		err := p.turns(p.settings.rounds, func(r host.Runtime) error {
			return p.life(ctx, r, t.network, "pods, "+t.name)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (p *podBench) life(ctx context.Context, r host.Runtime, network runtime.NamespaceMode, part string) error {
	clock := newWatch()
	pod, err := p.run(ctx, r, network)
	if err != nil {
		return err
	}
	run := clock.lap()
	id, err := pod.Create(ctx, idleContainer(network, 0))
	if err != nil {
		return err
	}
	create := clock.lap()
	if err := p.Start(ctx, id); err != nil {
		return err
	}
	start := clock.lap()
	// The container's end is part of the pod's: nobody stops it before.
	if err := pod.Stop(ctx); err != nil {
		return err
	}
	stop := clock.lap()
	if err := pod.Remove(ctx); err != nil {
		return err
	}
	remove := clock.lap()
	p.report.add(r, part, "RunPodSandbox", run)
	p.report.add(r, part, "CreateContainer", create)
	p.report.add(r, part, "StartContainer", start)
	p.report.add(r, part, "pod start", run+create+start)
	p.report.add(r, part, "StopPodSandbox", stop)
	p.report.add(r, part, "RemovePodSandbox", remove)
	return p.quiet(ctx)
}

// run makes a pod with the runtime's handler, which is called by its label.
func (p *podBench) run(ctx context.Context, r host.Runtime, network runtime.NamespaceMode) (*cri.Pod, error) {
	p.last++
	name := "pod" + strconv.Itoa(p.last)
	hostname := name
	if network == runtime.NamespaceMode_NODE {
		hostname = "" // the host's, as the kubelet has it
	}
	return p.Client.Run(ctx, strings.TrimSuffix(r.Label, "'"), &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname:     hostname,
		LogDirectory: p.daemon.Dir + "/logs/" + name,
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: p.cgroup(),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: namespacesWith(network),
			},
		},
	})
}

func (p *podBench) cgroup() string {
	if host.Systemd() {
		return p.daemon.Namespace + ".slice"
	}
	return "/" + p.daemon.Namespace
}

func namespacesWith(network runtime.NamespaceMode) *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Network: network, Pid: runtime.NamespaceMode_CONTAINER}
}

func idleContainer(network runtime.NamespaceMode, number int) *runtime.ContainerConfig {
	name := "c" + strconv.Itoa(number)
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: host.Busybox},
		Command:  []string{"sleep", "1000000"},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: namespacesWith(network)},
		},
	}
}

// idlePod is a pod whose containers do nothing.
type idlePod struct {
	*cri.Pod
	runtime    host.Runtime
	size       string
	containers []string
}

// podSizes are the pods whose memory is measured.
var podSizes = []struct {
	name       string
	containers int
}{{"one", 1}, {"three", 3}}

// weights measures what stands beside the containers of idle pods (shims, and
// stock's pause): fresh, and after a while of statistics. Containerd itself asks
// each shim once a second.
func (p *podBench) weights(ctx context.Context) error {
	s := p.settings
	progress("pods: memory of %d of each size and runtime, %v of polls", s.pods, s.poll)
	var idle []*idlePod
	for _, size := range podSizes {
		err := p.turns(s.pods, func(r host.Runtime) error {
			pod, err := p.idle(ctx, r, size.containers)
			if err == nil {
				pod.size = size.name
				idle = append(idle, pod)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := p.weighAll(ctx, idle, "fresh"); err != nil {
		return err
	}
	if err := p.pollFor(ctx, s.poll); err != nil {
		return err
	}
	if err := p.weighAll(ctx, idle, fmt.Sprintf("after %v", s.poll)); err != nil {
		return err
	}
	var errs []error
	for _, pod := range idle {
		errs = append(errs, pod.Stop(ctx), pod.Remove(ctx))
	}
	return errors.Join(append(errs, p.quiet(ctx))...)
}

func (p *podBench) idle(ctx context.Context, r host.Runtime, containers int) (*idlePod, error) {
	const network = runtime.NamespaceMode_NODE
	pod, err := p.run(ctx, r, network)
	if err != nil {
		return nil, err
	}
	idle := &idlePod{Pod: pod, runtime: r}
	for i := range containers {
		id, err := pod.Start(ctx, idleContainer(network, i))
		if err != nil {
			return nil, err
		}
		idle.containers = append(idle.containers, id)
	}
	return idle, nil
}

// pollFor asks for all statistics once a second, as a kubelet might at most.
func (p *podBench) pollFor(ctx context.Context, d time.Duration) error {
	end := time.After(d)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-second.C:
			if _, err := p.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{}); err != nil {
				return fmt.Errorf("container stats: %w", err)
			}
			if _, err := p.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{}); err != nil {
				return fmt.Errorf("pod stats: %w", err)
			}
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *podBench) weighAll(ctx context.Context, idle []*idlePod, when string) error {
	for _, pod := range idle {
		inits, err := p.inits(ctx, pod)
		if err != nil {
			return err
		}
		part := fmt.Sprintf("pod of %s, %s", pod.size, when)
		monitors := host.Monitors(append(pod.containers, pod.ID), inits)
		if len(monitors) == 0 {
			return fmt.Errorf("no shim of pod %s", pod.ID)
		}
		sum := map[string]float64{}
		for _, m := range monitors {
			w, err := weight(m.Pid)
			if err != nil {
				return err
			}
			for _, f := range w {
				sum[f.name] += f.value
			}
		}
		p.report.add(pod.runtime, part, "processes", float64(len(monitors)))
		for _, name := range []string{"private dirty", "PSS", "threads"} {
			p.report.add(pod.runtime, part, name, sum[name])
		}
	}
	return nil
}

// inits are the containers' first processes.
func (p *podBench) inits(ctx context.Context, pod *idlePod) ([]int, error) {
	ctx = namespaces.WithNamespace(ctx, criNamespace)
	var pids []int
	for _, id := range pod.containers {
		answer, err := p.daemon.Client().TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err != nil {
			return nil, err
		}
		pids = append(pids, int(answer.GetProcess().GetPid()))
	}
	return pids, nil
}
