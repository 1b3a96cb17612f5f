// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// settleTime is how long pods idle before they are weighed: shims start
// themselves afresh a few seconds after work.
const settleTime = 4 * time.Second

// podDemo shows pods on the demonstration's containerd.
type podDemo struct {
	*demo
	*cri.Client
}

// pod is one of two containers: web, which answers, and shell, which asks.
type pod struct {
	*cri.Pod
	web, shell member
	began      time.Time
}

type member struct {
	id  string
	pid int // of its first process, as the host sees it
}

// pods shows a pod, and what the same pod costs with a pause container.
func (d *demo) pods(ctx context.Context) (err error) {
	c, err := cri.Dial(d.daemon.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	p := &podDemo{demo: d, Client: c}
	if err := p.await(ctx, host.Busybox, host.Web); err != nil {
		return err
	}
	heading("Pod demo-pod: two containers and no pause, through CRI as a kubelet does it")
	ours, err := p.start(ctx, "berth", "demo-pod")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(ctx, ours)) }()
	fmt.Printf("  started in %s\n", since(ours.began))
	if err := errors.Join(p.showShared(ctx, ours), p.showProcesses(ours), p.showImages(ctx)); err != nil {
		return err
	}
	return p.compare(ctx, ours)
}

// await waits until CRI has its network and knows images.
func (p *podDemo) await(ctx context.Context, images ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := poll(ctx, func() (struct{}, error) {
		err := p.Ready(ctx)
		for _, image := range images {
			err = errors.Join(err, p.known(ctx, image))
		}
		return struct{}{}, err
	})
	return err
}

func (p *podDemo) known(ctx context.Context, image string) error {
	answer, err := p.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: image}})
	if err == nil && answer.GetImage() == nil {
		err = fmt.Errorf("CRI does not know %s", image)
	}
	return err
}

// load imports an image made here for pods.
func (d *demo) load(image string) error {
	out, err := d.daemon.Ctr("-n", criNamespace, "images", "import", host.Deps("images/"+image+".tar")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("import %s: %w: %s", image, err, out)
	}
	return nil
}

// start makes a pod with a handler. The caller ends it with remove.
func (p *podDemo) start(ctx context.Context, handler, name string) (_ *pod, err error) {
	began := time.Now()
	sandbox, err := p.Run(ctx, handler, &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "demo"},
		Hostname:     name,
		LogDirectory: filepath.Join(p.daemon.Dir, "logs", name),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    p.cgroup(),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: ownProcesses()},
		},
	})
	if err != nil {
		return nil, err
	}
	made := &pod{Pod: sandbox, began: began}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(ctx, made))
		}
	}()
	if made.web, err = p.member(ctx, made, "web", host.Web, "/web", "-listen", "127.0.0.1:8080"); err != nil {
		return nil, err
	}
	made.shell, err = p.member(ctx, made, "shell", host.Busybox, "sleep", "1000")
	return made, err
}

func (p *podDemo) member(ctx context.Context, of *pod, name, image string, args ...string) (member, error) {
	id, err := of.Start(ctx, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: image},
		Command:  args,
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: ownProcesses()},
		},
	})
	if err != nil {
		return member{}, err
	}
	task, err := p.client.TaskService().Get(namespaces.WithNamespace(ctx, criNamespace), &tasks.GetRequest{ContainerID: id})
	return member{id: id, pid: int(task.GetProcess().GetPid())}, err
}

// ownProcesses are a kubelet's usual namespaces: each container sees its own
// processes, everything else is the pod's.
func ownProcesses() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
}

func (p *podDemo) cgroup() string {
	if host.Systemd() {
		return p.daemon.Namespace + ".slice"
	}
	return "/" + p.daemon.Namespace
}

// remove ends the pod, whatever is in it, also after ctx has ended.
func (p *podDemo) remove(ctx context.Context, of *pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := of.Stop(ctx); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if err := of.Remove(ctx); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}

// showShared shows what the two containers have in common and what not.
func (p *podDemo) showShared(ctx context.Context, of *pod) error {
	fmt.Printf("  %-18s %-18s %-18s\n", "namespace", "web", "shell")
	for _, ns := range []struct{ file, name string }{
		{"net", "network"}, {"ipc", "IPC"}, {"uts", "hostname"}, {"pid", "processes"}, {"mnt", "files"},
	} {
		web, err := namespace(of.web.pid, ns.file)
		if err != nil {
			return err
		}
		shell, err := namespace(of.shell.pid, ns.file)
		if err != nil {
			return err
		}
		verdict := "shared"
		if web != shell {
			verdict = "its own"
		}
		fmt.Printf("  %-18s %-18s %-18s %s\n", ns.name, web, shell, verdict)
	}
	// The server may not listen yet.
	_, err := poll(ctx, func() (string, error) { return p.exec(ctx, of, "wget", "-qO/dev/null", "http://127.0.0.1:8080/") })
	if err != nil {
		return err
	}
	for _, command := range []string{
		"wget -qO- http://127.0.0.1:8080/", "hostname", "echo a note > /dev/shm/note; ls /dev/shm",
	} {
		output, err := p.exec(ctx, of, "sh", "-c", command)
		if err != nil {
			return err
		}
		fmt.Printf("  in shell: %s\n    | %s\n", command, output)
	}
	note, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/dev/shm/note", of.web.pid))
	if err != nil {
		return err
	}
	fmt.Printf("  web finds in /dev/shm/note: %s\n", strings.TrimSpace(string(note)))
	return nil
}

func namespace(pid int, kind string) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
}

// exec runs a command in the shell's container and returns its output.
func (p *podDemo) exec(ctx context.Context, of *pod, args ...string) (string, error) {
	answer, err := p.ExecSync(ctx, of.shell.id, stopTime, args...)
	if err == nil && answer.GetExitCode() != 0 {
		err = fmt.Errorf("exit code %d: %s", answer.GetExitCode(), answer.GetStderr())
	}
	if err != nil {
		return "", fmt.Errorf("exec %v: %w", args, err)
	}
	return strings.TrimSpace(string(answer.GetStdout())), nil
}

// monitors are the processes that the pod has beside its containers' own.
func (of *pod) monitors() []host.Monitor {
	return host.Monitors([]string{of.ID, of.web.id, of.shell.id}, []int{of.web.pid, of.shell.pid})
}

// showProcesses lists all processes of the pod. One that is no shim's and no
// container's would be a pause.
func (p *podDemo) showProcesses(of *pod) error {
	fmt.Println("  its processes")
	whose := map[string]string{of.ID: "the pod's", of.web.id: "web's", of.shell.id: "shell's"}
	monitors := of.monitors()
	for _, m := range monitors {
		if m.Of == "" {
			return fmt.Errorf("pod %s: process %d, %s, is neither a shim nor a container's", of.ID, m.Pid, m.Name)
		}
		fmt.Printf("  %9d  %s, %s\n", m.Pid, m.Name, whose[m.Of])
	}
	if len(monitors) != 3 {
		return fmt.Errorf("pod %s: %d shims, want one for each container and one for the pod", of.ID, len(monitors))
	}
	fmt.Printf("  %9d  web\n  %9d  sleep (in shell)\n", of.web.pid, of.shell.pid)
	return nil
}

func (p *podDemo) showImages(ctx context.Context) error {
	answer, err := p.Images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return err
	}
	var names []string
	for _, image := range answer.GetImages() {
		names = append(names, image.GetRepoTags()...)
	}
	if slices.Contains(names, host.Pause) {
		return fmt.Errorf("the image store has %s", host.Pause)
	}
	slices.Sort(names)
	fmt.Printf("  all images in the store: %s\n", strings.Join(names, ", "))
	return nil
}

// compare shows what the pod's processes cost beside those of the same pod with
// a pause container.
func (p *podDemo) compare(ctx context.Context, ours *pod) (err error) {
	if err := p.load("pause"); err != nil {
		return err
	}
	defer func() {
		_, failed := p.Images.RemoveImage(context.WithoutCancel(ctx), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: host.Pause}})
		err = errors.Join(err, failed)
	}()
	if err := p.await(ctx, host.Pause); err != nil {
		return err
	}
	stock, err := p.start(ctx, "stock", "demo-paused")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(ctx, stock)) }()
	select {
	case <-time.After(settleTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	without, err := ours.weigh()
	if err != nil {
		return err
	}
	with, err := stock.weigh()
	if err != nil {
		return err
	}
	heading("Memory of a pod of two beside its containers, after %s", settleTime)
	fmt.Printf("  %-24s %9s %9s  processes\n", "", "private", "pss")
	fmt.Printf("  %-24s %6d kB %6d kB  %s\n", "containerd, with pause", with.private>>10, with.pss>>10, stock.programs())
	fmt.Printf("  %-24s %6d kB %6d kB  %s\n", "berth, without", without.private>>10, without.pss>>10, ours.programs())
	fmt.Printf("  %-24s %7.0f %% %7.0f %%\n", "ratio",
		100*float64(without.private)/float64(with.private), 100*float64(without.pss)/float64(with.pss))
	return nil
}

func (of *pod) weigh() (sum memory, err error) {
	for _, m := range of.monitors() {
		one, err := readMemory(m.Pid)
		if err != nil {
			return memory{}, err
		}
		sum.private += one.private
		sum.pss += one.pss
	}
	return sum, nil
}

// programs counts the pod's processes by name.
func (of *pod) programs() string {
	count := map[string]int{}
	for _, m := range of.monitors() {
		name := "shim"
		if m.Of == "" {
			name = m.Name
		}
		count[name]++
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[name], name))
	}
	return strings.Join(words, ", ")
}
