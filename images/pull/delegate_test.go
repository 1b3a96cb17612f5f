// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"math"
	"testing"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// eitherWay runs a test for layers that this process fetches, and for layers that
// containerd fetches.
func eitherWay(t *testing.T, f func(t *testing.T, r *rig)) {
	for name, bytes := range map[string]int64{"itself": math.MaxInt64, "containerd": 1} {
		t.Run(name, func(t *testing.T) {
			f(t, open(t, func(c *pull.Config) { c.DelegateBytes = bytes }))
		})
	}
}

// Containerd fetches each blob once, the progress tells it, and nothing is left of
// how it was done.
func TestDelegate(t *testing.T) {
	r := open(t, func(c *pull.Config) { c.DelegateBytes = 1 })
	ref, img := r.push(t, "large:1", image.Noise(3, 2<<20))
	moved := map[string]int64{}
	result, err := r.Pull(r.context(t), pull.Request{Reference: ref}, func(p transfer.Progress) {
		moved[p.Digest.String()] = p.Offset
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Skipped != 0 {
		t.Errorf("%d layers were here already", result.Skipped)
	}
	r.check(t, ref)
	equal(t, "names", r.names(t), []string{ref.Text()})
	for _, layer := range layersOf(t, img) {
		if n := r.registry.Fetches(layer); n != 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
		if moved[layer.String()] < 2<<20 {
			t.Errorf("%d bytes of a layer are told", moved[layer.String()])
		}
	}
	// The second time they are here.
	r.registry.Forget()
	if result, err = r.Pull(r.context(t), pull.Request{Reference: ref}, nil); err != nil || result.Skipped != 3 {
		t.Errorf("%d layers were here already: %v", result.Skipped, err)
	}
	for _, layer := range layersOf(t, img) {
		if n := r.registry.Fetches(layer); n != 0 {
			t.Errorf("a layer that was here was fetched %d times", n)
		}
	}
}

// Containerd asks for the credentials of the call, by itself it has none.
func TestDelegateCredentials(t *testing.T) {
	for name, auth := range map[string]server.Auth{"basic": server.Basic, "token": server.Token} {
		t.Run(name, func(t *testing.T) {
			r := open(t, func(c *pull.Config) { c.DelegateBytes = 1 })
			r.registry = serve(t, server.Options{Dir: t.TempDir(), Auth: auth})
			ref, img := r.push(t, "private:"+name, image.Noise(2, 2<<20))
			access := registry.Access{Credentials: &registry.Credentials{Username: server.Username, Password: server.Password}}
			if _, err := r.Pull(r.context(t), pull.Request{Reference: ref, Access: access}, nil); err != nil {
				t.Fatal(err)
			}
			for _, layer := range layersOf(t, img) {
				if n := r.registry.Fetches(layer); n != 1 {
					t.Errorf("a layer was fetched %d times", n)
				}
			}
		})
	}
}
