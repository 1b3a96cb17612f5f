// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/cri"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/store"
	kubelet "github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// The tests compare what berth says with what containerd's CRI plugin says. Numbers in
// comments are acceptance statements of the images' specification.

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	host.EnterOffline()
	os.Exit(m.Run())
}

// node is a containerd with its CRI plugin, and berth's service in the same namespace.
type node struct {
	t *testing.T
	*images.Service
	cri     *cri.Service
	d       *host.Daemon
	kubelet *kubelet.Client
}

func newNode(t *testing.T) *node {
	t.Helper()
	network, err := host.Network()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, d: host.Run(t, host.Options{CRI: true, Images: []string{}, TOML: fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/nowhere"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may lack CAP_SYS_RESOURCE
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%q]
    conf_dir = %q
`, host.Pause, host.Deps("cni"), network)})}
	if n.Service, err = images.New(images.Config{Client: n.d.Client(), Namespace: store.KubernetesNamespace, Mounts: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	n.cri = cri.New(n.Service)
	if n.kubelet, err = kubelet.Dial(n.d.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.kubelet.Close() })
	n.eventually(func() error { return n.kubelet.Ready(n.ctx()) })
	return n
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	n.t.Cleanup(cancel)
	return n.Store().Context(ctx)
}

func (n *node) eventually(ok func() error) {
	n.t.Helper()
	var err error
	for deadline := time.Now().Add(patience / 4); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	n.t.Fatal(err)
}

// add records an image as berth does.
func (n *node) add(img *image.Image, name string) {
	n.t.Helper()
	lease, err := n.d.Client().LeasesService().Create(n.ctx(), leases.WithRandomID())
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cs := leases.WithLease(n.ctx(), lease.ID), n.d.Client().ContentStore()
	put := cimages.HandlerFunc(func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		reader, err := img.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		return nil, content.WriteBlob(ctx, cs, desc.Digest.String(), io.NewSectionReader(reader, 0, reader.Size()), desc)
	})
	err = cimages.Walk(ctx, cimages.Handlers(put, cimages.SetChildrenLabels(cs, cimages.ChildrenHandler(cs))), img.Manifest())
	if err == nil {
		err = n.Store().Replace(ctx, cimages.Image{Name: name, Target: img.Manifest()})
	}
	if err := errors.Join(err, n.d.Client().LeasesService().Delete(n.ctx(), lease)); err != nil {
		n.t.Fatal(err)
	}
}

// load imports an archive as ctr does.
func (n *node) load(archive string) {
	n.t.Helper()
	f, err := os.Open(host.Deps(archive))
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	all, err := n.d.Client().Import(n.ctx(), f)
	if err == nil {
		err = client.NewImage(n.d.Client(), all[0]).Unpack(n.ctx(), "overlayfs")
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func sorted(list []*runtime.Image) []*runtime.Image {
	slices.SortFunc(list, func(a, b *runtime.Image) int { return cmp.Compare(a.GetId(), b.GetId()) })
	for _, img := range list {
		img.Spec = nil // CRI leaves it empty
		slices.Sort(img.RepoTags)
		slices.Sort(img.RepoDigests)
	}
	return list
}

// agree waits until both list the same.
func (n *node) agree(want int, except ...gocmp.Option) []*runtime.Image {
	n.t.Helper()
	var ours []*runtime.Image
	n.eventually(func() error {
		all, err := n.cri.ListImages(n.ctx(), "")
		if err != nil {
			return err
		}
		answer, err := n.kubelet.Images.ListImages(n.ctx(), &runtime.ListImagesRequest{})
		if err != nil {
			return err
		}
		ours = sorted(all)
		if diff := gocmp.Diff(sorted(answer.GetImages()), ours, append(except, protocmp.Transform())...); diff != "" || len(ours) != want {
			return fmt.Errorf("%d images, want %d (-CRI +berth):\n%s", len(ours), want, diff)
		}
		return nil
	})
	return ours
}

// A8, and the other way around: whoever makes, pins or removes an image, both see it.
func TestAgree(t *testing.T) {
	n := newNode(t)
	server, err := registry.Start(t.Context(), registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	kinds := []image.Kind{
		{Name: "multi", Build: image.MultiPlatform},
		{Name: "attested", Build: image.Attested},
		{Name: "docker", Build: image.Schema2},
		{Name: "user", Build: userImage("1000:0")},
	}
	ids := map[string]string{}
	for _, kind := range kinds {
		img, err := kind.Build(server.Address + "/" + kind.Name + ":1")
		if err == nil {
			err = img.Push(n.ctx())
		}
		if err != nil {
			t.Fatal(err)
		}
		answer, err := n.kubelet.Images.PullImage(n.ctx(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: img.Ref}})
		if err != nil {
			t.Fatal(err)
		}
		ids[img.Ref] = answer.GetImageRef()
	}
	n.agree(len(kinds))
	for ref, id := range ids {
		status, err := n.cri.ImageStatus(n.ctx(), ref)
		if err != nil || status.GetId() != id {
			t.Errorf("%s: %v, %v, want %s", ref, status, err, id)
		}
	}
	user, err := userImage("app:app")("berth.test/user:1")
	if err != nil {
		t.Fatal(err)
	}
	n.add(user, "berth.test/user:1")
	n.agree(len(kinds) + 1)
	n.load("images/busybox.tar")
	n.eventually(func() error { // CRI has made it its own
		if records := n.records(host.Busybox); records != 2 {
			return fmt.Errorf("%d records", records)
		}
		return nil
	})
	n.agreeButDigests(len(kinds) + 2)

	if err := n.Pin(n.ctx(), "berth.test/user:1"); err != nil {
		t.Error(err)
	}
	list := n.agreeButDigests(len(kinds) + 2)
	if i := slices.IndexFunc(list, func(i *runtime.Image) bool { return i.GetPinned() }); i < 0 || list[i].GetRepoTags()[0] != "berth.test/user:1" {
		t.Errorf("pinned: %v", list)
	}
	if err := n.Unpin(n.ctx(), "berth.test/user:1"); err != nil {
		t.Error(err)
	}
	n.agreeButDigests(len(kinds) + 2)

	for i, name := range []string{"berth.test/user:1", server.Address + "/docker:1"} {
		spec := &runtime.ImageSpec{Image: name}
		if i == 0 {
			_, err = n.kubelet.Images.RemoveImage(n.ctx(), &runtime.RemoveImageRequest{Image: spec})
		} else {
			err = n.cri.RemoveImage(n.ctx(), name)
		}
		if err != nil {
			t.Error(err)
		}
		n.agreeButDigests(len(kinds) + 1 - i)
	}
}

// agreeButDigests is agree for images that came without a registry: berth gives each
// repository the digest, CRI only those that somebody has recorded.
func (n *node) agreeButDigests(want int) []*runtime.Image {
	n.t.Helper()
	return n.agree(want, protocmp.IgnoreFields(&runtime.Image{}, "repo_digests"))
}

// records counts those of an image.
func (n *node) records(name string) int {
	n.t.Helper()
	found, err := n.Store().ResolveAll(n.ctx(), name)
	if err != nil {
		n.t.Fatal(err)
	}
	return len(found.All)
}

func userImage(user string) image.Builder {
	return func(ref string) (*image.Image, error) {
		return image.Build(ref, image.Variant{Config: v1.ImageConfig{User: user}})
	}
}

// A11, A18.
func TestUnknown(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"berth.test/none:1", "none", strings.Repeat("ab", 32), "sha256:" + strings.Repeat("ab", 32)} {
		if img, err := n.cri.ImageStatus(n.ctx(), name); img != nil || err != nil {
			t.Errorf("%s: %v, %v", name, img, err)
		}
		if err := n.cri.RemoveImage(n.ctx(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A19, by CRI's own image volume.
func TestVolume(t *testing.T) {
	n := newNode(t)
	n.load("images/busybox.tar")
	n.load("images/pause.tar")
	n.load("images/web.tar")
	n.eventually(func() error {
		_, err := n.Store().ResolveAll(n.ctx(), host.Web)
		return err
	})
	pod, err := n.kubelet.Run(n.ctx(), "", &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "test"}, LogDirectory: t.TempDir(),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    "/" + n.d.Namespace,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(pod.Stop(n.ctx()), pod.Remove(n.ctx())); err != nil {
			t.Error(err)
		}
	})
	id, err := pod.Create(n.ctx(), &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "container"}, Image: &runtime.ImageSpec{Image: host.Busybox}, Command: []string{"true"},
		Mounts: []*runtime.Mount{{ContainerPath: "/volume", Image: &runtime.ImageSpec{Image: host.Web}, Readonly: true}},
		Linux:  &runtime.LinuxContainerConfig{},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = n.cri.RemoveImage(n.ctx(), host.Web)
	if !errors.Is(err, cri.ErrMounted) || !strings.Contains(err.Error(), id) {
		t.Errorf("mounted: %v", err)
	}
	if _, err := n.Remove(n.ctx(), host.Web, images.RemoveOptions{}); !errors.Is(err, images.ErrConflict) || !strings.Contains(err.Error(), id) {
		t.Errorf("mounted: %v", err)
	}
	if _, err := n.Prune(n.ctx(), map[string][]string{"dangling": {"false"}}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{host.Web, host.Busybox, host.Pause} {
		if _, err := n.Store().Resolve(n.ctx(), name); err != nil {
			t.Errorf("in use: %v", err)
		}
	}
	if err := n.kubelet.Remove(n.ctx(), id); err != nil {
		t.Fatal(err)
	}
	if err := n.cri.RemoveImage(n.ctx(), host.Web); err != nil {
		t.Errorf("not mounted any more: %v", err)
	}
	if _, err := n.Store().Resolve(n.ctx(), host.Web); !store.IsNotExist(err) {
		t.Error(err)
	}
}

// A14, A15.
func TestImage(t *testing.T) {
	id, err := reference.ParseID(strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("manifest")
	for _, c := range []struct {
		name string
		img  images.Image
		want *runtime.Image
	}{
		{"number", images.Image{User: "1000:0"}, &runtime.Image{Uid: &runtime.Int64Value{Value: 1000}}},
		{"name", images.Image{User: "app:app"}, &runtime.Image{Username: "app"}},
		{"nobody", images.Image{}, &runtime.Image{}},
		{"previous name", images.Image{PreviousName: "berth.test:5000/x", Digest: d}, &runtime.Image{RepoDigests: []string{"berth.test:5000/x@" + d.String()}}},
		{"previous name and digest", images.Image{PreviousName: "berth.test/x", Digest: d, RepoDigests: []string{"a@b"}}, &runtime.Image{RepoDigests: []string{"a@b"}}},
	} {
		c.img.ID = id
		c.want.Id = "sha256:" + id.Hex()
		got := cri.Image(&c.img)
		got.Spec = nil
		if diff := gocmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}
