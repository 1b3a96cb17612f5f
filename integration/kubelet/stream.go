// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"net/url"

	"github.com/berthd/berth/integration/cri"
)

// Exec is cri.Client.Exec through the kubelet, as `kubectl exec` does it.
func (k *Kubelet) Exec(ctx context.Context, pod, container string, s cri.Streams, command ...string) error {
	return k.stream(ctx, "exec", pod, container, s, url.Values{"command": command})
}

// Attach is cri.Client.Attach through the kubelet.
func (k *Kubelet) Attach(ctx context.Context, pod, container string, s cri.Streams) error {
	return k.stream(ctx, "attach", pod, container, s, url.Values{})
}

func (k *Kubelet) stream(ctx context.Context, verb, pod, container string, s cri.Streams, query url.Values) error {
	for name, wanted := range map[string]bool{
		"input": s.Stdin != nil, "output": s.Stdout != nil, "error": s.Stderr != nil, "tty": s.Terminal,
	} {
		if wanted {
			query.Set(name, "1")
		}
	}
	path := fmt.Sprintf("/%s/default/%s/%s?%s", verb, podName(pod), container, query.Encode())
	return k.server(path).Stream(ctx, s)
}

// Forward is cri.Pod.Forward through the kubelet.
func (k *Kubelet) Forward(ctx context.Context, pod string, over cri.Transport, port int, request []byte) ([]byte, error) {
	return k.server("/portForward/default/"+podName(pod)).Forward(ctx, over, port, request)
}

func (k *Kubelet) server(path string) cri.Server { return cri.Server{URL: k.url(path), TLS: k.tls} }
