// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"strings"

	"github.com/berthd/berth/plugin/runtime"
)

// Filter is what --filter selects, of pods or of containers. What is empty selects
// all.
type Filter struct {
	ID, Name, Pod, Namespace, State, Owner string

	Labels map[string]string
}

// ParseFilter reads KEY=VALUE pairs. For a label the value is a pair itself.
func ParseFilter(pairs []string) (Filter, error) {
	var f Filter
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		if value == "" {
			return f, invalid("--filter %q, want KEY=VALUE", pair)
		}
		at := map[string]*string{
			"id": &f.ID, "name": &f.Name, "pod": &f.Pod, "namespace": &f.Namespace,
			"state": &f.State, "status": &f.State, "owner": &f.Owner,
		}[key]
		switch {
		case key == "label":
			label, text, _ := strings.Cut(value, "=")
			if f.Labels == nil {
				f.Labels = map[string]string{}
			}
			f.Labels[label] = text
		case at == nil:
			return f, invalid("--filter %q, want id, name, pod, namespace, state, owner or label", pair)
		default:
			*at = value
		}
	}
	return f, nil
}

// Containers is the filter for containers.
func (f *Filter) Containers() (runtime.ContainerFilter, error) {
	r := runtime.ContainerFilter{ID: f.ID, Name: f.Name, Pod: f.Pod, Labels: f.Labels}
	for _, state := range []runtime.ContainerState{
		runtime.ContainerCreated, runtime.ContainerRunning, runtime.ContainerPaused, runtime.ContainerExited, runtime.ContainerUnknown,
	} {
		if strings.EqualFold(string(state), f.State) {
			r.State = state
		}
	}
	if f.State != "" && r.State == "" {
		return r, invalid("--filter state=%s, want created, running, paused, exited or unknown", f.State)
	}
	return r, nil
}

// Pods is the filter for pods.
func (f *Filter) Pods() (runtime.PodFilter, error) {
	r := runtime.PodFilter{ID: f.ID, Name: f.Name, Namespace: f.Namespace, Labels: f.Labels}
	for _, state := range []runtime.PodState{runtime.PodReady, runtime.PodNotReady, runtime.PodUnknown} {
		if strings.EqualFold(string(state), f.State) {
			r.State = state
		}
	}
	if f.State != "" && r.State == "" {
		return r, invalid("--filter state=%s, want ready, notready or unknown", f.State)
	}
	return r, nil
}
