// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	made "github.com/berthd/berth/integration/image"
)

// registry serves images at pause:TAG to who knows the password.
type registry struct {
	*httptest.Server
	mu     sync.Mutex // guards following
	tags   map[string]ocispec.Descriptor
	blobs  map[string]blob
	broken bool
}

type blob struct {
	kind string
	data []byte
}

const password = "joe:secret"

func newRegistry(t testing.TB) *registry {
	r := &registry{tags: map[string]ocispec.Descriptor{}, blobs: map[string]blob{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *registry) add(t testing.TB, tag string, labels map[string]string) ocispec.Descriptor {
	t.Helper()
	i, err := made.New("pause:"+tag, []made.File{{Path: "pause", Mode: 0o755, Data: []byte("x")}},
		ocispec.ImageConfig{Entrypoint: []string{"/pause"}, Labels: labels, StopSignal: "SIGUSR1"})
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	manifest := r.store(t, i, i.Manifest())
	r.tags[tag] = i.Manifest()
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		r.store(t, i, d)
	}
	return i.Manifest()
}

func (r *registry) store(t testing.TB, from content.Provider, d ocispec.Descriptor) []byte {
	t.Helper()
	b, err := content.ReadBlob(t.Context(), from, d)
	if err != nil {
		t.Fatal(err)
	}
	r.blobs[d.Digest.String()] = blob{d.MediaType, b}
	return b
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		http.Error(w, "broken", http.StatusTeapot)
		return
	}
	if q.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(password)) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "who?", http.StatusUnauthorized)
		return
	}
	name := filepath.Base(q.URL.Path)
	if d, ok := r.tags[name]; ok {
		name = d.Digest.String()
	}
	b, ok := r.blobs[name]
	if !ok {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Type", b.kind)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(b.data).String())
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b.data))
}

// (11, 12, 13)
func TestPauseImage(t *testing.T) {
	w := newWorld(t)
	r := newRegistry(t)
	first := r.add(t, "1", nil)
	auth := filepath.Join(t.TempDir(), "auth.json")
	entry := base64.StdEncoding.EncodeToString([]byte(password))
	if err := os.WriteFile(auth, []byte(`{"auths":{"`+r.host()+`":{"auth":"`+entry+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.census(t)
	request := func(authFile string) *CreatePod {
		p := w.podRequest(t)
		p.Pause = &PauseImage{Reference: r.host() + "/pause:1", AuthFile: authFile}
		return p
	}
	for what, file := range map[string]string{"none": "", "missing": auth + "x"} {
		if _, err := w.CreatePod(t.Context(), request(file)); err == nil {
			t.Errorf("authentication file %s: no error", what)
		}
		w.wantCensus(t, before)
	}
	r.mu.Lock()
	r.broken = true
	r.mu.Unlock()
	_, err := w.CreatePod(t.Context(), request(auth))
	if err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("the registry's error: %v", err)
	}
	w.wantCensus(t, before)
	r.mu.Lock()
	r.broken = false
	r.mu.Unlock()

	// The tag moves, here and there, as soon as the image is here.
	moved := false
	hook := func(method string) {
		if moved || !strings.HasSuffix(method, "Images/Create") {
			return
		}
		moved = true
		r.add(t, "1", map[string]string{"moved": "yes"})
	}
	w.fail.hook.Store(&hook)
	pod := w.made(t)(w.CreatePod(t.Context(), request(auth)))
	w.fail.hook.Store(nil)
	record := pod.Container.Record
	if want := r.host() + "/pause@" + first.Digest.String(); record.Image != want {
		t.Errorf("image %s, want %s", record.Image, want)
	}
	m := pod.Container.Metadata
	if m.ImageName != r.host()+"/pause:1" || len(m.ImageID) != 64 || m.Settings.StopSignal != "SIGUSR1" || record.SnapshotKey == "" {
		t.Errorf("metadata %+v, snapshot %q", m, record.SnapshotKey)
	}
	if pod.Config == nil || pod.Config.Config.Entrypoint[0] != "/pause" {
		t.Errorf("config: %+v", pod.Config)
	}
	path, err := w.Mount(t.Context(), pod.Container.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "/pause"); err != nil {
		t.Error(err)
	}
	// It is there: neither registry nor file are needed.
	second := w.made(t)(w.CreatePod(t.Context(), request("")))
	if second.Container.Record.Image != record.Image {
		t.Errorf("second: %s", second.Container.Record.Image)
	}
	for _, c := range []*Creation{pod, second} {
		if err := w.RemovePod(t.Context(), c.Container.ID); err != nil {
			t.Error(err)
		}
	}
	w.wantCensusButImages(t, before)
	p := w.podRequest(t)
	p.Pause = &PauseImage{Reference: "a:b:c"}
	if _, err := w.CreatePod(t.Context(), p); !errors.Is(err, ErrInvalidImageName) {
		t.Errorf("malformed reference: %v", err)
	}
}

// (32)
func TestLabelsOfImage(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 5000)
	i, err := made.New("berth.test/labels:1", []made.File{{Path: "x", Data: []byte("x")}}, ocispec.ImageConfig{Labels: map[string]string{
		"fine": "1", "io.cri-containerd.kind": "container", "containerd.io/gc.root": "1", "io.berth.created": "true", "long": long,
	}})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := i.Archive(&archive); err != nil {
		t.Fatal(err)
	}
	ctr := w.d.Ctr("images", "import", "-")
	ctr.Stdin = &archive
	if out, err := ctr.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pod := w.pod(t, nil)
	request := w.request(pod.Container.Metadata.Pod)
	request.Image.Record = "berth.test/labels:1"
	c, err := w.CreateContainer(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort(t.Context())
	l := c.Container.Record.Labels
	for _, key := range []string{"io.cri-containerd.kind", "containerd.io/gc.root", "io.berth.created", "long"} {
		if v, ok := l[key]; ok {
			t.Errorf("label %s is %q", key, v)
		}
	}
	if l["fine"] != "1" || len(c.Container.Metadata.Labels) != 0 {
		t.Errorf("labels %v", l)
	}
}

func TestAuths(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.json")
	write := func(text string) auths {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := readAuths(path)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	code := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	a := write(`{"auths":{
		"https://index.docker.io/v1/":{"auth":"` + code("hub:1") + `"},
		"reg.test":{"username":"plain","password":"2"},
		"reg.test/team":{"auth":"` + code("team:3:4") + `"},
		"reg.test/team/app":{"identitytoken":"token"},
		"bad.test":{"auth":"?"}}}`)
	for _, c := range []struct{ host, name, user, secret string }{
		{"registry-1.docker.io", "docker.io/library/busybox:1", "hub", "1"},
		{"reg.test", "reg.test/x:1", "plain", "2"},
		{"reg.test", "reg.test/team/x:1", "team", "3:4"},
		{"reg.test", "reg.test/teams/x:1", "plain", "2"},
		{"reg.test", "reg.test/team/app/x:1", "", "token"},
		{"mirror.test", "reg.test/team/x:1", "", ""},
		{"other.test", "other.test/x:1", "", ""},
	} {
		user, secret, err := a.of(c.host, c.name)
		if diff := cmp.Diff([]string{c.user, c.secret}, []string{user, secret}); err != nil || diff != "" {
			t.Errorf("%s at %s: %v (-want +got):\n%s", c.name, c.host, err, diff)
		}
	}
	if _, _, err := a.of("bad.test", "bad.test/x:1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("malformed entry: %v", err)
	}
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readAuths(path); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") {
		t.Errorf("malformed file: %v", err)
	}
}
