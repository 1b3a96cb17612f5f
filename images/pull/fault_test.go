// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/unpack"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// schema1 answers with a manifest of Docker's schema 1.
func schema1(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	const text = `{"schemaVersion": 1, "name": "old", "tag": "1", "architecture": "amd64", "fsLayers": [], "history": []}`
	w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
	w.Header().Set("Docker-Content-Digest", digest.FromString(text).String())
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(text))
	}
}

// Each fault for a moment is got over, and each that stays is an error that says
// what is wrong and leaves nothing.
func TestFaults(t *testing.T) {
	tests := map[string]struct {
		action registry.Action
		is     func(error) bool // of the error if the fault stays
		once   bool             // that it is got over if it strikes once
	}{
		"cut":         {registry.CutAfter(0), errdefs.IsUnavailable, true},
		"truncate":    {registry.Truncate(0), nil, true},
		"lengthen":    {registry.Lengthen(10), isCorrupt, false},
		"corrupt":     {registry.Corrupt, isCorrupt, false},
		"401":         {registry.Answer(401, "UNAUTHORIZED"), errdefs.IsUnauthorized, false},
		"403":         {registry.Answer(403, "DENIED"), errdefs.IsPermissionDenied, false},
		"404":         {registry.Answer(404, "BLOB_UNKNOWN"), errdefs.IsNotFound, false},
		"429":         {registry.Answer(429, "TOOMANYREQUESTS"), errdefs.IsResourceExhausted, true},
		"500":         {registry.Answer(500, "UNKNOWN"), errdefs.IsUnavailable, true},
		"redirects":   {registry.RedirectLoop, errdefs.IsUnavailable, true},
		"unsupported": {registry.Answer(405, "UNSUPPORTED"), errdefs.IsNotImplemented, false},
	}
	n := 0
	eitherWay(t, func(t *testing.T, r *rig) {
		for name, test := range tests {
			for where, path := range map[string]func(*image.Image) string{
				"manifest": func(*image.Image) string { return "/manifests/" },
				"layer":    func(img *image.Image) string { return layersOf(t, img)[1].String() },
			} {
				t.Run(where+"/"+name, func(t *testing.T) {
					n++
					ref, img := r.push(t, "faulty:"+string(rune('a'+n%26))+name, image.Noise(3, 1<<20+n))
					if where == "manifest" && (name == "cut" || name == "truncate" || name == "lengthen") {
						t.Skip("what is said of a layer is not of a manifest, which is smaller than the fault")
					}
					before := r.left(t)
					remove := r.registry.Inject(registry.Fault{Path: path(img), Do: test.action})
					_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
					remove()
					switch {
					case err == nil:
						t.Fatal("succeeded")
					case test.is != nil && !test.is(err):
						t.Errorf("error has not the class it should have: %v", err)
					case !strings.Contains(err.Error(), ref.Text()):
						t.Errorf("error does not name the image: %v", err)
					}
					r.unnamed(t)
					equal(t, "what is left", r.left(t), before)

					if test.once {
						remove := r.registry.Inject(registry.Fault{Path: path(img), Times: 1, Do: test.action})
						r.pull(t, ref)
						remove()
					} else {
						r.pull(t, ref)
					}
					if err := r.d.Client().ImageService().Delete(r.context(t), ref.Text()); err != nil {
						t.Error(err)
					}
					r.prune(t)
				})
			}
		}
	})
}

func isCorrupt(err error) bool { return errors.Is(err, pull.ErrCorrupt) && errdefs.IsDataLoss(err) }

// A layer that is cut goes on where it was.
func TestCutLayerGoesOn(t *testing.T) {
	eitherWay(t, func(t *testing.T, r *rig) {
		const size, cut = 4 << 20, 3 << 20
		ref, img := r.push(t, "cut:1", image.Noise(1, size))
		layer := layersOf(t, img)[0]
		r.registry.Inject(registry.Fault{Path: layer.String(), Times: 1, Do: registry.CutAfter(cut)})
		r.pull(t, ref)
		var sent int64
		for _, q := range r.registry.Log() {
			if strings.Contains(q.Path, layer.String()) && q.Method == http.MethodGet {
				sent += q.Bytes
			}
		}
		if sent > size+size/4 {
			t.Errorf("%d bytes were sent for a layer of %d", sent, size)
		}
	})
}

// A30.
func TestStall(t *testing.T) {
	r := open(t, nil)
	ref, img := r.push(t, "stalling:1", image.Noise(2, 1<<20))
	remove := r.registry.Inject(registry.Fault{Path: layersOf(t, img)[1].String(), Do: registry.StallAfter(1 << 19)})
	const timeout = time.Second
	start := time.Now()
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref, Timeout: timeout}, nil)
	took := time.Since(start)
	if !errors.Is(err, pull.ErrStalled) || !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "1s") {
		t.Errorf("error %v, want ErrStalled", err)
	}
	if took < timeout || took > 5*timeout {
		t.Errorf("it took %v", took)
	}
	r.unnamed(t)
	remove()
	// What had come by then is not fetched again.
	first := layersOf(t, img)[0]
	r.registry.Forget()
	r.pull(t, ref)
	if n := r.registry.Fetches(first); n != 0 {
		t.Errorf("the layer that was complete was fetched %d times", n)
	}
}

// A31, and A30 without a timeout: a registry may take its time until it begins, and
// without a timeout always.
func TestSlowStartIsNoStall(t *testing.T) {
	eitherWay(t, func(t *testing.T, r *rig) {
		for name, test := range map[string]struct {
			stall   registry.Action
			timeout time.Duration
		}{
			"before the first byte": {registry.Stall, 50 * time.Millisecond},
			"without a timeout":     {registry.StallAfter(1 << 10), 0},
		} {
			t.Run(name, func(t *testing.T) {
				ref, img := r.push(t, "patient:"+strings.ReplaceAll(name, " ", "-"), image.Noise(1, 1<<16+len(name)))
				remove := r.registry.Inject(registry.Fault{Path: layersOf(t, img)[0].String(), Do: test.stall})
				done := make(chan error, 1)
				go func() {
					_, err := r.Pull(r.context(t), pull.Request{Reference: ref, Timeout: test.timeout}, nil)
					done <- err
				}()
				select {
				case err := <-done:
					t.Errorf("ended meanwhile: %v", err)
				case <-time.After(500 * time.Millisecond): // that nothing happens takes time
					remove()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

// Whatever is in a layer stays in its snapshot.
func TestHostileLayers(t *testing.T) {
	r := open(t, nil)
	outside := "/berth-outside"
	before, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range image.Kinds {
		if !kind.Hostile {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			ref, _ := r.push(t, kind.Name+":1", kind.Build)
			left := r.left(t)
			if _, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil); err != nil {
				t.Logf("refused: %v", err)
				equal(t, "what is left", r.left(t), left)
			} else {
				r.check(t, ref)
			}
			if _, err := os.Lstat(outside); !os.IsNotExist(err) {
				t.Errorf("%s exists (%v)", outside, err)
			}
			if after, err := os.ReadFile("/etc/passwd"); err != nil || string(after) != string(before) {
				t.Errorf("/etc/passwd was changed (%v)", err)
			}
		})
	}
}

// A bomb is stopped when it has taken what is allowed, and not much more.
func TestBomb(t *testing.T) {
	const limit = 64 << 20
	r := open(t, func(c *pull.Config) { c.Unpacker.Max = limit })
	ref, _ := r.push(t, "bomb:1", image.Bomb(10<<30))
	_, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil)
	if !errors.Is(err, unpack.ErrTooLarge) || !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v, want ErrTooLarge", err)
	}
	r.clean(t)

	// Many layers that are within the limit each are not together.
	ref, _ = r.push(t, "many:1", image.Noise(3, limit/2-1<<20))
	if _, err := r.Pull(r.context(t), pull.Request{Reference: ref}, nil); !errors.Is(err, unpack.ErrTooLarge) {
		t.Errorf("three layers: %v, want ErrTooLarge", err)
	}
	r.clean(t)
	ref, _ = r.push(t, "two:1", image.Noise(1, limit/2-1<<20))
	r.pull(t, ref)
}
