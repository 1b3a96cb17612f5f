// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/plugin/labels"
)

// TestScale: how many calls find one pod among many containers, whatever their
// number (44), and how long that takes. BERTH_TEST_FULL=1 makes 10,000 of them, which
// takes a minute.
func TestScale(t *testing.T) {
	n := 500
	if os.Getenv("BERTH_TEST_FULL") != "" {
		n = 10_000
	}
	d := host.Run(t, host.Options{})
	w := newWorldOn(t, d, Options{})
	ctx := w.in(t.Context())
	spec, err := oci.GenerateSpec(ctx, w.client, &containers.Container{ID: "x"}, oci.WithProcessArgs("/bin/sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(chan int)
	var wg sync.WaitGroup
	for range 16 { // bbolt joins concurrent writes
		wg.Go(func() {
			for i := range ids {
				pod := labels.Pod{ID: fmt.Sprintf("full%d", i/5), Name: fmt.Sprint(i / 5), Namespace: "default", UID: fmt.Sprint(i / 5)}
				pod.FullName = pod.KubernetesName()
				m := labels.Metadata{
					Pod: pod, Name: pod.ContainerName(fmt.Sprintf("c%d", i), 0), CreatedAt: time.Now(), Created: true,
					ImageName: "busybox", Annotations: map[string]string{"a": "b"},
				}
				c := containers.Container{ID: fmt.Sprintf("member%d", i), Spec: encoded, Runtime: containers.RuntimeInfo{Name: w.o.Runtime}}
				if err := m.Encode(&c); err != nil {
					t.Error(err)
				}
				if _, err := w.client.ContainerService().Create(ctx, c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	start := time.Now()
	for i := range n {
		ids <- i
	}
	close(ids)
	wg.Wait()
	pod := w.pod(t, nil)
	for range 3 {
		w.container(t, pod, nil)
	}
	t.Logf("%d containers made in %v", n, time.Since(start))

	measure := func(what string, most int64, do func() error) {
		t.Helper()
		var took []time.Duration
		w.fail.arm(0, 0)
		const rounds = 9
		for range rounds {
			start := time.Now()
			if err := do(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		calls := int64(w.fail.calls.Load()) / rounds
		t.Logf("%s: median %v, max %v, %d calls", what, took[rounds/2], took[rounds-1], calls)
		if calls > most {
			t.Errorf("%s takes %d calls, want %d", what, calls, most)
		}
	}
	measure("pod by ID", 3, func() error {
		e, err := w.Pod(t.Context(), pod.Container.ID)
		if err == nil && len(e.Members) != 3 {
			err = fmt.Errorf("%d members", len(e.Members))
		}
		return err
	})
	measure("pod by name", 4, func() error { _, err := w.Pod(t.Context(), pod.Container.Metadata.Pod.FullName); return err })
	measure("container by ID", 1, func() error { _, err := w.Container(t.Context(), pod.Container.ID); return err })
	measure("container by name", 2, func() error { _, err := w.Container(t.Context(), pod.Container.Metadata.Name); return err })
	measure("create, commit and remove", 30, func() error {
		c := w.container(t, pod, nil)
		return w.Remove(t.Context(), c.Container.ID)
	})
	measure("list everything", 2, func() error { _, _, err := w.List(t.Context()); return err })
	measure("recover", 0, func() error { return w.Recover(t.Context()) })
}
