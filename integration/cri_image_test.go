// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// registry runs one on loopback until the test ends and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir+"/config.yml", fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir+"/images", address))
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	process := exec.Command(host.Deps("bin/registry"), "serve", dir+"/config.yml")
	process.Stdout, process.Stderr = log, log
	process.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none") // no collector here
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	})
	eventually(t, patience, func() string {
		response, err := http.Get("http://" + address.String() + "/v2/")
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Sprintf("registry: %v\n%s", err, text)
		}
		_ = response.Body.Close()
		return ""
	})
	return address.String()
}

// push makes an image of busybox whose containers run as a user.
func push(t *testing.T, ref, user string) *image.Image {
	t.Helper()
	text := []byte("root:x:0:0:root:/root:/bin/sh\nberth:x:1000:100:berth:/home:/bin/sh\n")
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := []image.File{
		{Path: "bin/busybox", Mode: 0o755, Data: busybox},
		{Path: "bin/sh", Mode: os.ModeSymlink | 0o777, Link: "busybox"},
		{Path: "etc/passwd", Mode: 0o644, Data: text},
		{Path: "etc/name", Mode: 0o644, Data: []byte(ref)}, // a digest of its own
	}
	img, err := image.New(ref, files, v1.ImageConfig{User: user, Cmd: []string{"sh", "-c", "busybox id -u; busybox id -g"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pusher, err := docker.NewResolver(docker.ResolverOptions{}).Pusher(ctx, ref)
	if err == nil {
		err = remotes.PushContent(ctx, pusher, img.Manifest(), img, nil, platforms.All, nil)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return img
}

// podImages checks the image service and what it pulls.
func podImages(t *testing.T, n *node) {
	address := registry(t)
	images := []struct {
		pull     string // by tag, without one, by digest
		user     string
		uid      int64
		username string
		ids      string
	}{
		{address + "/tagged:1", "1002", 1002, "", "1002\n0"},
		{address + "/untagged", "berth", 0, "berth", "1000\n100"},
		{address + "/digest", "10001:10002", 10001, "", "10001\n10002"},
	}
	refs := make([]string, len(images))
	pod := n.pod(t)
	for i := range images {
		c := &images[i]
		tagged := c.pull
		if !strings.Contains(tagged, "/tagged") {
			tagged += ":latest"
		}
		img := push(t, tagged, c.user)
		if strings.HasSuffix(c.pull, "/digest") {
			c.pull += "@" + img.Manifest().Digest.String()
		}
		if s := n.imageStatus(t, c.pull); s != nil {
			t.Errorf("status before the pull: %v", s)
		}
		answer, err := n.Images.PullImage(n.ctx(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: c.pull}})
		if err != nil {
			t.Fatal(err)
		}
		refs[i] = answer.GetImageRef()
		for _, ref := range []string{c.pull, refs[i]} {
			s := n.imageStatus(t, ref)
			if s.GetId() != refs[i] || s.GetSize() == 0 || s.GetUid().GetValue() != c.uid || s.GetUsername() != c.username || s.GetPinned() {
				t.Errorf("status of %s: %v", ref, s)
			}
			if !strings.Contains(c.pull, "@") && !slices.Contains(s.GetRepoTags(), tagged) {
				t.Errorf("tags of %s: %q", ref, s.GetRepoTags())
			}
		}
		config := in(pod, "")
		config.Image, config.Command = &runtime.ImageSpec{Image: refs[i]}, nil
		s := n.awaitState(t, startIn(t, n, pod, config), runtime.ContainerState_CONTAINER_EXITED)
		out, _ := awaitLog(t, logOf(pod, config), strings.Split(c.ids, "\n")[1])
		if strings.TrimSpace(out) != c.ids || s.GetImageRef() == "" {
			t.Errorf("container of %s runs as %q, status %v", c.pull, out, s)
		}
		if err := n.Remove(n.ctx(t), s.GetId()); err != nil {
			t.Error(err)
		}
	}
	list, err := n.Images.ListImages(n.ctx(t), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		if !slices.ContainsFunc(list.GetImages(), func(i *runtime.Image) bool { return i.GetId() == ref }) {
			t.Errorf("image %s is not listed", ref)
		}
	}
	podImageFailures(t, n, address)
	for range 2 { // what is removed can be removed
		for _, ref := range refs {
			if _, err := n.Images.RemoveImage(n.ctx(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
				t.Errorf("remove %s: %v", ref, err)
			}
		}
	}
	for _, ref := range refs {
		if s := n.imageStatus(t, ref); s != nil {
			t.Errorf("status of the removed %s: %v", ref, s)
		}
	}
	info, err := n.Images.ImageFsInfo(n.ctx(t), &runtime.ImageFsInfoRequest{})
	if err != nil || len(info.GetImageFilesystems()) == 0 {
		t.Fatalf("file systems of images: %v, %v", info, err)
	}
	if _, err := os.Stat(info.GetImageFilesystems()[0].GetFsId().GetMountpoint()); err != nil {
		t.Error(err)
	}
	// The pause image is pinned where there is one, so that nobody collects it.
	pause := n.imageStatus(t, host.Pause)
	if want := n.pauseImage(t); want != (pause != nil) || want && !pause.GetPinned() {
		t.Errorf("pause image: %v", pause)
	}
}

func podImageFailures(t *testing.T, n *node, registry string) {
	t.Helper()
	pull := func(ctx context.Context, ref string) error {
		_, err := n.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
		return err
	}
	if err := pull(n.ctx(t), registry+"/missing:1"); status.Code(err) != codes.NotFound {
		t.Errorf("pull of a missing image: %v, want not found", err)
	}
	// Whoever pulls can give up.
	silent, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(n.ctx(t), 300*time.Millisecond)
	defer cancel()
	if err := pull(ctx, silent.Addr().String()+"/silent:1"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("pull from a silent registry: %v, want deadline exceeded", err)
	}
}

func (n *node) imageStatus(t *testing.T, ref string) *runtime.Image {
	t.Helper()
	answer, err := n.Images.ImageStatus(n.ctx(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetImage()
}
