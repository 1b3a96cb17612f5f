// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

const patience = 30 * time.Second

func start(t *testing.T, o registry.Options) *registry.Registry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o.Dir = t.TempDir()
	r, err := registry.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// stocked is a registry with an image.
func stocked(t *testing.T, o registry.Options) (*registry.Registry, *image.Image) {
	t.Helper()
	r := start(t, o)
	img, err := image.New(r.Address+"/a/b:1", []image.File{{Path: "file", Mode: 0o644, Data: []byte("content")}}, v1.ImageConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), img.Ref, img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	return r, img
}

// get asks for a manifest, which is as good as any content.
func get(t *testing.T, r *registry.Registry, change func(*http.Request)) (int, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/v2/a/b/manifests/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Accept", v1.MediaTypeImageManifest)
	if change != nil {
		change(q)
	}
	pool := x509.NewCertPool()
	if r.CA != "" {
		ca, err := os.ReadFile(r.CA)
		if err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(ca)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	response, err := client.Do(q)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

func TestKinds(t *testing.T) {
	tests := map[string]registry.Options{
		"plain":     {},
		"TLS":       {TLS: true},
		"basic":     {Auth: registry.Basic},
		"token":     {Auth: registry.Token},
		"TLS token": {Auth: registry.Token, TLS: true},
	}
	for name, o := range tests {
		t.Run(name, func(t *testing.T) {
			r, img := stocked(t, o)
			if log := r.Log(); len(log) != 0 {
				t.Errorf("pushing is in the log: %+v", log)
			}
			want := http.StatusOK
			if o.Auth != registry.None {
				want = http.StatusUnauthorized
			}
			if status, _, err := get(t, r, nil); err != nil || status != want {
				t.Errorf("anonymous: status %d, %v; want %d", status, err, want)
			}
			if o.Auth == registry.Basic {
				status, body, err := get(t, r, func(q *http.Request) { q.SetBasicAuth(registry.Username, registry.Password) })
				if err != nil || status != http.StatusOK || int64(len(body)) != img.Manifest().Size {
					t.Errorf("logged in: status %d, %d bytes, %v", status, len(body), err)
				}
			}
			if n := r.Count(http.MethodGet, "/manifests/1"); n == 0 {
				t.Error("nothing is in the log")
			}
		})
	}
}

func TestFaults(t *testing.T) {
	r, img := stocked(t, registry.Options{})
	size := int(img.Manifest().Size)
	_, good, err := get(t, r, nil)
	if err != nil || len(good) != size {
		t.Fatalf("%d bytes, %v; want %d", len(good), err, size)
	}
	tests := map[string]struct {
		do     registry.Action
		status int
		size   int
		err    error // errors.ErrUnsupported: any
	}{
		"cut":           {registry.CutAfter(10), 200, 10, io.ErrUnexpectedEOF},
		"reset":         {registry.ResetAfter(10), 200, 0, syscall.ECONNRESET},
		"truncate":      {registry.Truncate(10), 200, 10, nil},
		"lengthen":      {registry.Lengthen(3), 200, size + 3, nil},
		"corrupt":       {registry.Corrupt, 200, size, nil},
		"answer":        {registry.Answer(429, "TOOMANYREQUESTS", "Retry-After", "1"), 429, 0, nil},
		"redirect loop": {registry.RedirectLoop, 0, 0, errors.ErrUnsupported},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			defer r.Inject(registry.Fault{Path: "/manifests/", Times: 20, Do: test.do})()
			status, body, err := get(t, r, nil)
			if status != test.status || test.size != 0 && len(body) != test.size {
				t.Errorf("status %d, %d bytes; want %d, %d", status, len(body), test.status, test.size)
			}
			if (err != nil) != (test.err != nil) || test.err != errors.ErrUnsupported && !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if name == "corrupt" && string(body) == string(good) {
				t.Error("the content is what it should be")
			}
		})
	}
	if _, body, err := get(t, r, nil); err != nil || string(body) != string(good) {
		t.Errorf("after the faults: %q, %v", body, err)
	}
}

func TestFaultTimes(t *testing.T) {
	r, _ := stocked(t, registry.Options{})
	r.Inject(registry.Fault{Method: http.MethodGet, Path: "/manifests/", Times: 2, Do: registry.Answer(500, "UNKNOWN")})
	for i, want := range []int{500, 500, 200} {
		if status, _, err := get(t, r, nil); err != nil || status != want {
			t.Errorf("request %d: status %d, %v; want %d", i, status, err, want)
		}
	}
}

// TestStall: who waits is let go by removing the fault.
func TestStall(t *testing.T) {
	for name, do := range map[string]registry.Action{"before": registry.Stall, "amid": registry.StallAfter(10)} {
		t.Run(name, func(t *testing.T) {
			r, img := stocked(t, registry.Options{})
			remove := r.Inject(registry.Fault{Do: do})
			done := make(chan int, 1)
			go func() {
				_, body, err := get(t, r, nil)
				if err != nil {
					t.Error(err)
				}
				done <- len(body)
			}()
			select {
			case n := <-done:
				t.Fatalf("did not stall: %d bytes", n)
			case <-time.After(100 * time.Millisecond):
			}
			remove()
			if n := <-done; int64(n) != img.Manifest().Size {
				t.Errorf("%d bytes, want %d", n, img.Manifest().Size)
			}
		})
	}
}
