// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/integration/host"
)

func TestMain(m *testing.M) {
	host.EnterOffline()
	os.Exit(m.Run())
}

// A handler's settings reach the shim through containerd.
func TestRuntimeOfContainerd(t *testing.T) {
	d := host.Run(t, host.Options{})
	ctx, cancel := context.WithTimeout(d.Context(context.Background()), time.Minute)
	defer cancel()
	defer d.Settle(t, d.Count(t))
	c := d.Client()

	for name, path := range map[string]string{"plain": "runc", "by path": host.Deps("bin/runc")} {
		f, err := (&Handler{Name: "x", Path: path}).Features(ctx, c)
		if err != nil || !f.IDMap || !f.RecursiveReadOnly || !f.Checkpoint {
			t.Errorf("%s: features %+v, %v", name, f, err)
		}
	}
	if f, err := (&Handler{Name: "x", Path: "/nowhere/runc"}).Features(ctx, c); err == nil || f != (Features{}) {
		t.Errorf("features of a missing runtime %+v, %v", f, err)
	}

	image, err := c.GetImage(ctx, host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	h := Handler{Name: "big", Path: host.Deps("bin/runc"), MinMemory: 64 << 20}
	r, err := h.Runtime(Use{})
	if err != nil {
		t.Fatal(err)
	}
	for limit, refused := range map[uint64]bool{32 << 20: true, 64 << 20: false} {
		container, err := c.NewContainer(ctx, "h", client.WithNewSnapshot("h", image), client.WithRuntime(r.Name, r.Options),
			client.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("true"), oci.WithMemoryLimit(limit), oci.WithCgroup("/"+d.Namespace+"/h")))
		if err != nil {
			t.Fatal(err)
		}
		task, err := container.NewTask(ctx, cio.NullIO)
		switch {
		case refused && (err == nil || !strings.Contains(err.Error(), "33554432") || !strings.Contains(err.Error(), "67108864")):
			t.Errorf("limit %d: %v", limit, err)
		case !refused && err != nil:
			t.Errorf("limit %d: %v", limit, err)
		}
		if task != nil {
			_, _ = task.Delete(ctx, client.WithProcessKill)
		}
		if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
	}
}
