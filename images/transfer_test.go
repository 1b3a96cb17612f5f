// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// moving is a service with registries to pull from and push to.
type moving struct {
	*stored
	one, two *server.Registry
}

// newMoving returns a service that looks for short names in both registries, in
// their order.
func newMoving(t *testing.T, change func(*images.Config)) *moving {
	t.Helper()
	m := &moving{}
	dir := t.TempDir()
	for _, r := range []**server.Registry{&m.one, &m.two} {
		var err error
		if *r, err = server.Start(t.Context(), server.Options{Dir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*r).Close)
	}
	for path, text := range map[string]string{
		"registries.conf":    fmt.Sprintf("unqualified-search-registries = [%q, %q]\nshort-name-mode = \"disabled\"\n", m.one.Address, m.two.Address),
		"drop-ins/none.conf": "",
		"policy.json":        `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"auth.json":          "{}",
	} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	registries, err := registry.New(registry.Config{
		HostsDir: dir + "/hosts", CertsDir: dir + "/certs", AuthFile: dir + "/auth.json",
		RegistriesConf: dir + "/registries.conf", RegistriesConfDir: dir + "/drop-ins",
	})
	if err != nil {
		t.Fatal(err)
	}
	m.stored = newStored(t, func(c *images.Config) {
		c.Registry, c.Policy = registries, policy.Config{Path: dir + "/policy.json"}
		if change != nil {
			change(c)
		}
	})
	return m
}

// serve puts an image into a registry.
func (m *moving) serve(r *server.Registry, name string, build image.Builder) *image.Image {
	m.t.Helper()
	img, err := build(r.Address + "/" + name)
	if err == nil {
		err = r.Push(m.ctx(), img.Ref, img.Manifest(), img)
	}
	m.must(err)
	return img
}

// forget removes the images of a test.
func (m *moving) forget() {
	m.t.Helper()
	all, err := m.Store().Records(m.ctx())
	m.must(err)
	_, err = m.Store().Delete(m.ctx(), all...)
	m.must(err)
}

// A26.
func TestPullCandidates(t *testing.T) {
	m := newMoving(t, nil)
	img := m.serve(m.two, "team/x:1", image.Noise(1, 1000))
	result, err := m.Pull(m.ctx(), images.PullRequest{Name: "team/x:1"})
	m.must(err)
	if want := m.two.Address + "/team/x@" + img.Manifest().Digest.String(); result.Reference.Text() != want {
		t.Errorf("reference %s, want %s", result.Reference.Text(), want)
	}
	if n := m.one.Count("", "/team/x/"); n == 0 {
		t.Error("the first registry was not asked")
	}
	_, err = m.Pull(m.ctx(), images.PullRequest{Name: "team/none:1"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), m.two.Address) {
		t.Errorf("error %v, want NotFound of the last registry", err)
	}
	if diff := cmp.Diff([]string{"pull " + m.two.Address + "/team/x:1"}, m.heard()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	m.forget()
}

// Who has chosen a registry for a short name is not asked for it again.
func TestPullChosen(t *testing.T) {
	m := newMoving(t, nil)
	m.serve(m.two, "x:1", image.Noise(1, 1000))
	dir, asked := t.TempDir(), 0
	for name, text := range map[string]string{
		"registries.conf": fmt.Sprintf("unqualified-search-registries = [%q, %q]\nshort-name-mode = \"enforcing\"\n", m.one.Address, m.two.Address),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"auth.json":       "{}",
	} {
		m.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	registries, err := registry.New(registry.Config{
		HostsDir: dir + "/hosts", CertsDir: dir + "/certs", AuthFile: dir + "/auth.json", RegistriesConf: dir + "/registries.conf", Aliases: dir + "/aliases.conf",
		Choose: func(_ string, all []reference.Reference) (reference.Reference, error) {
			asked++
			return all[1], nil
		},
	})
	m.must(err)
	s, err := images.New(images.Config{Client: m.d.Client(), Namespace: m.ns, Registry: registries, Policy: policy.Config{Path: dir + "/policy.json"}})
	m.must(err)
	if meant, err := s.ResolveNames(m.ctx(), "x:1"); err != nil || len(meant.Candidates) != 2 || asked > 0 {
		t.Errorf("meaning: %+v, %v, asked %d times", meant, err, asked)
	}
	for range 2 {
		_, err = s.Pull(m.ctx(), images.PullRequest{Name: "x:1"})
		m.must(err)
	}
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
	m.forget()
}

func TestPullNames(t *testing.T) {
	m := newMoving(t, nil)
	img := m.serve(m.one, "x:1", image.Noise(1, 1000))
	_, err := m.Pull(m.ctx(), images.PullRequest{Name: "docker://" + img.Ref})
	m.must(err)
	for _, name := range []string{"", "oci://x", "UPPER", strings.Repeat("a", 64)} {
		if _, err := m.Pull(m.ctx(), images.PullRequest{Name: name}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want InvalidArgument", name, err)
		}
	}
	if _, err := m.Pull(m.ctx(), images.PullRequest{Name: img.Ref, Platforms: []string{"linux/amd64", "linux/arm64"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two platforms: %v, want InvalidArgument", err)
	}
	m.forget()
}

// A36.
func TestPullAll(t *testing.T) {
	m := newMoving(t, nil)
	for i, tag := range []string{"1", "2", "latest"} {
		m.serve(m.one, "many:"+tag, image.Noise(1, 1000+i))
	}
	all, err := m.PullAll(m.ctx(), images.PullRequest{Name: m.one.Address + "/many"})
	m.must(err)
	if len(all) != 3 {
		t.Errorf("%d results", len(all))
	}
	records, err := m.Store().Records(m.ctx())
	m.must(err)
	var names []string
	for _, r := range records {
		names = append(names, strings.TrimPrefix(r.Name, m.one.Address))
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"/many:1", "/many:2", "/many:latest"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}

	// And back to another registry.
	if _, err := m.PushAll(m.ctx(), images.PushRequest{Name: m.two.Address + "/many"}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "does not exist locally") {
		t.Errorf("push of no tag: %v", err)
	}
	for _, r := range records {
		r.Name = strings.Replace(r.Name, m.one.Address, m.two.Address, 1)
		m.must(m.Store().Replace(m.ctx(), r))
	}
	pushed, err := m.PushAll(m.ctx(), images.PushRequest{Name: m.two.Address + "/many"})
	m.must(err)
	if len(pushed) != 3 || m.two.Count(http.MethodPut, "/manifests/") != 3 {
		t.Errorf("%d were pushed, %d manifests written", len(pushed), m.two.Count(http.MethodPut, "/manifests/"))
	}
	for _, name := range []string{"/many:1", "/many@sha256:" + strings.Repeat("a", 64)} {
		if _, err := m.PullAll(m.ctx(), images.PullRequest{Name: m.one.Address + name}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("all tags of %s: %v", name, err)
		}
		if _, err := m.PushAll(m.ctx(), images.PushRequest{Name: m.one.Address + name}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("push all tags of %s: %v", name, err)
		}
	}
	m.forget()
}

func TestPrepare(t *testing.T) {
	m := newMoving(t, nil)
	img := m.serve(m.two, "team/index:1", image.MultiPlatform)
	look := func(platform string) string {
		t.Helper()
		found, err := m.Prepare(m.ctx(), images.PrepareRequest{Name: "team/index:1", Platform: platform})
		m.must(err)
		defer func() { m.must(found.Close()) }()
		if found.Target.Digest != img.Manifest().Digest || found.Reference.Text() != img.Ref {
			t.Errorf("found %s as %s", found.Target.Digest, found.Reference.Text())
		}
		got, err := found.Manifest.Platform(m.ctx())
		m.must(err)
		if platform != "" && got.Architecture != strings.TrimPrefix(platform, "linux/") {
			t.Errorf("for %s found %s", platform, got.Architecture)
		}
		return found.Config.String()
	}
	host, other := look(""), look("linux/arm64")
	if host == other {
		t.Error("both platforms have one configuration")
	}
	for _, q := range m.two.Log() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") && !strings.Contains(q.Path, host) && !strings.Contains(q.Path, other) {
			t.Errorf("fetched %s", q.Path)
		}
	}
	if left := m.left(m.ctx()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	result, err := m.Pull(m.ctx(), images.PullRequest{Name: "team/index:1"})
	m.must(err)
	if result.Config.String() != host {
		t.Errorf("pulled %s, foretold %s", result.Config, host)
	}

	if ok, err := m.CanPull(m.ctx(), images.PrepareRequest{Name: img.Ref}); !ok || err != nil {
		t.Errorf("can be pulled: %v, %v", ok, err)
	}
	for name, is := range map[string]func(error) bool{
		m.one.Address + "/none:1": errdefs.IsNotFound,
		"127.0.0.1:1/x:1":         errdefs.IsUnavailable,
		"UPPER":                   errdefs.IsInvalidArgument,
	} {
		if ok, err := m.CanPull(m.ctx(), images.PrepareRequest{Name: name}); ok || !is(err) {
			t.Errorf("%s can be pulled: %v, %v", name, ok, err)
		}
	}
	if _, err := m.Prepare(m.ctx(), images.PrepareRequest{Name: img.Ref, Platform: "linux/s390x"}); !errdefs.IsNotFound(err) {
		t.Errorf("of another platform: %v", err)
	}
	m.two.Inject(server.Fault{Path: host, Do: server.Corrupt})
	if _, err := m.Prepare(m.ctx(), images.PrepareRequest{Name: img.Ref}); !errdefs.IsDataLoss(err) {
		t.Errorf("of a registry that lies: %v, want DataLoss", err)
	}
	m.forget()
}

// A32: what is no slice is an error before anything else.
func TestPullCgroup(t *testing.T) {
	m := newMoving(t, func(c *images.Config) { c.PullCommand = []string{"/bin/false"} })
	img := m.serve(m.one, "x:1", image.Noise(1, 1000))
	for name, r := range map[string]images.PullRequest{
		"neither":      {Cgroup: "foo"},
		"no pod":       {Cgroup: "pod"},
		"pod's cgroup": {Cgroup: "pod", SandboxCgroup: "/kubepods/pod1"},
		"in a path":    {Cgroup: "a/b.slice"},
		"with a space": {Cgroup: "a b.slice"},
	} {
		r.Name = img.Ref
		if _, err := m.Pull(m.ctx(), r); !errors.Is(err, images.ErrPullCgroup) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want ErrPullCgroup", name, err)
		}
	}
	if log := m.one.Log(); len(log) > 0 {
		t.Errorf("the registry was asked: %v", log)
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return
	}
	for _, r := range []images.PullRequest{{Cgroup: "berth.slice"}, {Cgroup: "pod", SandboxCgroup: "/kubepods.slice/kubepods-pod1.slice"}} {
		r.Name = img.Ref
		if _, err := m.Pull(m.ctx(), r); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), ".scope") {
			t.Errorf("without systemd: %v, want Unavailable", err)
		}
	}
}

func TestUpdateConfig(t *testing.T) {
	m := newMoving(t, nil)
	m.must(m.UpdateConfig(1, 0))
	for _, bad := range [][2]int{{-1, 0}, {0, -1}} {
		if err := m.UpdateConfig(bad[0], bad[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v, want InvalidArgument", bad, err)
		}
	}
	img := m.serve(m.one, "x:1", image.Noise(4, 1<<16))
	release := m.one.Inject(server.Fault{Path: "/blobs/", Do: server.StallAfter(1 << 10)})
	done := make(chan error, 1)
	go func() {
		_, err := m.Pull(m.ctx(), images.PullRequest{Name: img.Ref})
		done <- err
	}()
	// The configuration is smaller than where it would stall.
	downloading := func() (n int) {
		for _, p := range m.PullMetrics().Running[img.Ref] {
			if p.Status == transfer.Downloading {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); downloading() == 0 || m.one.Count(http.MethodGet, "/blobs/") == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is downloaded")
		}
	}
	if n := downloading(); n != 1 {
		t.Errorf("%d layers at a time, want 1", n)
	}
	release()
	m.must(<-done)
	m.forget()
}
