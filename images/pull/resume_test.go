// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// interrupted is an image of three layers whose last one stalls in the middle.
type interrupted struct {
	*rig
	ref    reference.Reference
	layers []digest.Digest
	resume func() // ends the stall
}

// What the last layer has, and where it stalls, in bytes. containerd's client sends
// a layer in pieces of 1 MiB.
const (
	layerSize = 4 << 20
	stallAt   = 5 << 19
)

// interruptions has each test make layers of its own: what the one before it left for
// the garbage collector is not found.
var interruptions int

func interrupt(t *testing.T, r *rig, name string) *interrupted {
	t.Helper()
	interruptions++
	ref, img := r.push(t, name, image.Noise(3, layerSize-interruptions))
	i := &interrupted{rig: r, ref: ref, layers: layersOf(t, img)}
	i.resume = r.registry.Inject(registry.Fault{Path: i.layers[2].String(), Do: registry.StallAfter(stallAt)})
	return i
}

// awaitMiddle waits until two layers are complete and the third one is not.
func (i *interrupted) awaitMiddle(t *testing.T) {
	t.Helper()
	store := i.d.Client().ContentStore()
	ctx := i.context(t)
	key := remotes.MakeRefKey(ctx, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: i.layers[2]})
	i.await(t, func() bool {
		for _, l := range i.layers[:2] {
			if _, err := store.Info(ctx, l); err != nil {
				return false
			}
		}
		status, err := store.Status(ctx, key)
		return err == nil && status.Offset >= stallAt>>20<<20
	})
}

// goOn pulls what was interrupted, and checks what had to be fetched for it.
func (i *interrupted) goOn(t *testing.T) {
	t.Helper()
	i.resume()
	i.registry.Forget()
	i.pull(t, i.ref)
	for _, l := range i.layers[:2] {
		if n := i.registry.Count(http.MethodGet, l.String()); n > 0 {
			t.Errorf("a layer that was complete was asked for %d times", n)
		}
	}
	var sent int64
	for _, q := range i.registry.Log() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, i.layers[2].String()) {
			sent += q.Bytes
			if q.Range == "" {
				t.Error("the layer that was not complete was asked for from its beginning")
			}
		}
	}
	if want := int64(layerSize - stallAt>>20<<20 + 1<<20); sent == 0 || sent > want {
		t.Errorf("%d bytes of it were sent, want at most %d", sent, want)
	}
}

// A34.
func TestCancelledPullGoesOn(t *testing.T) {
	i := interrupt(t, open(t, nil), "cancelled:1")
	i.cancelInTheMiddle(t)
	leases, err := i.d.Client().LeasesService().List(i.context(t))
	if err != nil || len(leases) != 1 || leases[0].Labels[store.LabelPruneLease] == "" {
		t.Errorf("leases %v (%v), want one for prune", leases, err)
	}
	i.unnamed(t)
	i.goOn(t)
}

func (i *interrupted) cancelInTheMiddle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(i.context(t))
	done := make(chan error, 1)
	go func() {
		_, err := i.Pull(ctx, pull.Request{Reference: i.ref}, nil)
		done <- err
	}()
	i.awaitMiddle(t)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}

// A34: a prune in between.
func TestCancelledPullIsPruned(t *testing.T) {
	i := interrupt(t, open(t, nil), "pruned:1")
	i.cancelInTheMiddle(t)
	i.prune(t)
	i.clean(t)
	i.resume()
	i.pull(t, i.ref)
	for _, l := range i.layers[:2] {
		if n := i.registry.Fetches(l); n != 2 {
			t.Errorf("a layer was fetched %d times, want twice", n)
		}
	}
}

// The process that pulls is killed.
func TestKilledPullGoesOn(t *testing.T) {
	i := interrupt(t, open(t, nil), "killed:1")
	cmd := i.process(t, i.ref)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i.awaitMiddle(t)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	i.unnamed(t)
	i.goOn(t)
}

// containerd is killed.
func TestPullGoesOnInAnotherContainerd(t *testing.T) {
	i := interrupt(t, openOn(t, host.Run(t, host.Options{Images: []string{}}), nil), "restarted:1")
	done := make(chan error, 1)
	go func() {
		_, err := i.Pull(i.context(t), pull.Request{Reference: i.ref}, nil)
		done <- err
	}()
	i.awaitMiddle(t)
	if err := i.d.Kill(); err != nil {
		t.Fatal(err)
	}
	i.resume() // the pull cannot know otherwise that there is nobody to write to
	if err := <-done; err == nil {
		t.Error("the pull has succeeded without containerd")
	}
	if err := i.d.Start(); err != nil {
		t.Fatal(err)
	}
	i.renew()
	i.unnamed(t)
	i.goOn(t)
	// The one that was cut off could not clean up, and this process still runs.
	i.prune(t)
}

// The process that pulls is killed at any moment; in the end the image is whole and
// nothing else is there.
func TestKilledAtAnyMoment(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "any:1", image.Noise(5, 4<<20))
	for n := range 12 {
		cmd := r.process(t, ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(n*40)*time.Millisecond, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		record, missing := r.records.Named(r.context(t), ref)
		switch {
		case missing == nil:
			// Whether or not it could say so: what has a name is complete.
			r.check(t, ref)
			equal(t, "target", record.Target.Digest, img.Manifest().Digest)
			if err := r.d.Client().ImageService().Delete(r.context(t), ref.Text()); err != nil {
				t.Fatal(err)
			}
		case err == nil:
			t.Errorf("it has ended well without a record: %v", missing)
		case !errdefs.IsNotFound(missing):
			t.Fatal(missing)
		}
	}
	r.pull(t, ref)
}

// A layer that stands half written, and is not what it should be, is fetched anew.
func TestSpoiltBeginning(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "spoilt:1", image.Noise(1, 1<<20))
	ctx, done, err := r.d.Client().WithLease(r.context(t))
	if err != nil {
		t.Fatal(err)
	}
	layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: layersOf(t, img)[0]}
	w, err := r.d.Client().ContentStore().Writer(ctx, content.WithRef(remotes.MakeRefKey(ctx, layer)))
	if err != nil {
		t.Fatal(err)
	}
	_, errWrite := w.Write(make([]byte, 1<<19))
	if err := errors.Join(errWrite, w.Close()); err != nil {
		t.Fatal(err)
	}
	r.pull(t, ref)
	if err := done(ctx); err != nil {
		t.Error(err)
	}
}

// envPull says that the program pulls in place of tests.
const envPull = "BERTH_TEST_PULL"

// process is another process that pulls an image as the rig does.
func (r *rig) process(t testing.TB, ref reference.Reference) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envPull+"=1", "SOCKET="+r.d.Socket, "NAMESPACE="+r.config.Namespace, "REF="+ref.Text(), "DIR="+r.dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// actPull is what such a process does.
func actPull() error {
	c, err := client.New(os.Getenv("SOCKET"))
	if err != nil {
		return err
	}
	defer c.Close()
	ref, err := reference.Parse(os.Getenv("REF"))
	if err != nil {
		return err
	}
	config, err := settings(c, os.Getenv("NAMESPACE"), os.Getenv("DIR"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err = pull.New(config).Pull(ctx, pull.Request{Reference: ref}, nil); err != nil {
		return fmt.Errorf("in another process: %w", err)
	}
	return nil
}
