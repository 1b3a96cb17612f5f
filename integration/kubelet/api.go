// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Pod is what the kubelet says of a pod: of the Kubernetes API's Pod, what tests
// look at.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
	}
	Status struct {
		Phase, Reason, PodIP string

		Conditions []struct {
			Type, Status, Reason string
		}
		InitContainerStatuses, ContainerStatuses []Container
	}
}

// Container is the status of a container.
type Container struct {
	Name, ContainerID, Image string

	Ready        bool
	RestartCount int
	State        State
	LastState    State // of the attempt before
	Resources    struct{ Limits map[string]string }
}

// State is one of the three, or none: not known yet.
type State struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *Terminated
}

// Terminated is the end of a container.
type Terminated struct {
	ExitCode, Signal      int
	Reason, Message       string
	StartedAt, FinishedAt time.Time
}

// Ready tells whether the pod's condition of that name holds.
func (p *Pod) Ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// Container returns the status of a container of any kind, an empty one if there
// is none yet.
func (p *Pod) Container(name string) Container {
	for _, list := range [][]Container{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return Container{Name: name}
}

// String is short: states by container.
func (p *Pod) String() string {
	parts := []string{fmt.Sprintf("pod %s %s ready=%v", p.Metadata.Name, p.Status.Phase, p.Ready())}
	for _, list := range [][]Container{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range list {
			parts = append(parts, fmt.Sprintf("%s ready=%v restarts=%d %v", c.Name, c.Ready, c.RestartCount, c.State))
		}
	}
	return strings.Join(parts, "; ")
}

// String tells which state it is and why.
func (s State) String() string {
	switch {
	case s.Waiting != nil:
		return "waiting: " + s.Waiting.Reason + " " + s.Waiting.Message
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("ended with %d, %s %s", s.Terminated.ExitCode, s.Terminated.Reason, s.Terminated.Message)
	}
	return "unknown"
}

// Summary is /stats/summary.
type Summary struct {
	Node struct{ NodeName string }
	Pods []PodStats
}

// PodStats are a pod's figures.
type PodStats struct {
	PodRef       struct{ Name, Namespace, UID string }
	Containers   []ContainerStats
	CPU          CPU
	Memory       Memory
	Network      *Network
	ProcessStats *struct {
		ProcessCount int `json:"process_count"`
	} `json:"process_stats"`
}

// ContainerStats are a container's figures.
type ContainerStats struct {
	Name         string
	CPU          CPU
	Memory       Memory
	Rootfs, Logs Disk
}

// CPU figures: nanoseconds of one core, per second and in all.
type CPU struct{ UsageNanoCores, UsageCoreNanoSeconds uint64 }

// Memory figures.
type Memory struct{ UsageBytes, WorkingSetBytes, AvailableBytes uint64 }

// Disk figures.
type Disk struct{ UsedBytes, InodesUsed uint64 }

// Network figures of a pod's interface to the outside.
type Network struct {
	Name             string
	RxBytes, TxBytes uint64
}

// Pod returns the figures of a pod of that name.
func (s *Summary) Pod(name string) (*PodStats, error) {
	for i := range s.Pods {
		if s.Pods[i].PodRef.Name == podName(name) {
			return &s.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("no figures of pod %s among %d", name, len(s.Pods))
}

// Get returns what a path of the kubelet's server answers.
func (k *Kubelet) Get(path string) ([]byte, error) {
	response, err := k.client.Get(k.url(path))
	if err != nil {
		return nil, err
	}
	return k.body(response)
}

func (k *Kubelet) body(response *http.Response) ([]byte, error) {
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", response.Request.URL.Path, response.Status, text)
	}
	return text, nil
}

func get[T any](k *Kubelet, path string) (*T, error) {
	text, err := k.Get(path)
	if err != nil {
		return nil, err
	}
	answer := new(T)
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("%s: %w in %q", path, err, text)
	}
	return answer, nil
}

// Pod returns the pod made from the manifest of that name.
func (k *Kubelet) Pod(name string) (*Pod, error) {
	pods, err := get[struct{ Items []Pod }](k, "/pods")
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if pods.Items[i].Metadata.Name == podName(name) {
			return &pods.Items[i], nil
		}
	}
	return nil, fmt.Errorf("the kubelet knows no pod %s", name)
}

// Running returns the names of the pods of which the runtime has anything left.
func (k *Kubelet) Running() ([]string, error) {
	pods, err := get[struct{ Items []Pod }](k, "/runningpods/")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, pod := range pods.Items {
		names = append(names, pod.Metadata.Name)
	}
	return names, nil
}

// Stats returns figures of all pods, not older than the last ten seconds.
func (k *Kubelet) Stats() (*Summary, error) { return get[Summary](k, "/stats/summary") }

// ContainerLog returns a container's output as `kubectl logs` shows it. The query is
// that of the API, for example "previous=true".
func (k *Kubelet) ContainerLog(pod, container, query string) (string, error) {
	text, err := k.Get(fmt.Sprintf("/containerLogs/default/%s/%s?%s", podName(pod), container, query))
	return string(text), err
}

// Checkpoint has a container's checkpoint made and returns the archive's path.
func (k *Kubelet) Checkpoint(pod, container string) (string, error) {
	path := fmt.Sprintf("/checkpoint/default/%s/%s", podName(pod), container)
	response, err := k.client.Post(k.url(path), "", nil)
	if err != nil {
		return "", err
	}
	text, err := k.body(response)
	if err != nil {
		return "", err
	}
	var answer struct{ Items []string }
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.Items) != 1 {
		return "", fmt.Errorf("%s: answer %q: %w", path, text, err)
	}
	return answer.Items[0], nil
}

func podName(manifest string) string { return manifest + "-" + Node }
