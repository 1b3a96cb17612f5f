// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/transfer/image"
	remote "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/host"
	made "github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// foreignTime is how long an image that was asked for may run before it is
// told to end.
const foreignTime = 5 * time.Second

// demo is the show: a containerd, and the runtime that it runs containers with.
type demo struct {
	daemon  *host.Daemon
	client  *client.Client
	runtime string
}

func heading(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }

func (d *demo) introduce(ctx context.Context) error {
	version, err := d.client.Version(ctx)
	if err != nil {
		return err
	}
	runtime, err := exec.CommandContext(ctx, host.Deps("bin/runc"), "--version").Output()
	if err != nil {
		return fmt.Errorf("runc: %w", err)
	}
	first, _, _ := strings.Cut(string(runtime), "\n")
	fmt.Println("berthd, a containerd with berth's plugins, in", d.daemon.Dir)
	fmt.Printf("  containerd %s, %s, runtime %s\n", version.Version, first, d.runtime)
	return nil
}

// runOwn shows the images made here on their way through a registry, and runs
// them.
func (d *demo) runOwn(ctx context.Context) error {
	r, err := registry.Start(ctx, registry.Options{Dir: d.daemon.Dir})
	if err != nil {
		return err
	}
	defer r.Close()
	shell, err := made.Busybox(r.Address+"/demo/busybox:1", "/bin/busybox")
	if err != nil {
		return err
	}
	web, err := made.Single(r.Address+"/demo/web:1", host.Deps("images/web"), "web", v1.ImageConfig{})
	if err != nil {
		return err
	}
	heading("Pushing to a registry on loopback")
	for _, img := range []*made.Image{shell, web} {
		if err := r.Push(ctx, img.Ref, img.Manifest(), img); err != nil {
			return err
		}
		fmt.Printf("  %-34s %s\n", img.Ref, short(img.Manifest().Digest.String()))
	}
	heading("Pulling through containerd")
	shellImage, err := d.pull(ctx, shell.Ref)
	if err != nil {
		return err
	}
	webImage, err := d.pull(ctx, web.Ref)
	if err != nil {
		return err
	}
	return errors.Join(d.runShell(ctx, shellImage), d.runWeb(ctx, webImage), d.runLimited(shell.Ref))
}

// limits has containers on berth's snapshotter write no more than that.
const limits = `
[plugins.'io.containerd.snapshotter.v1.berth']
  size = "16MiB"
`

// runLimited shows a container that writes more than it may.
func (d *demo) runLimited(image string) error {
	heading("Container demo-full: 32 MiB into a layer of 16, on berth's snapshotter")
	out, err := d.daemon.Ctr("run", "--rm", "--snapshotter", "berth", "--runtime", d.runtime, image, "demo-full",
		"dd", "if=/dev/zero", "of=/big", "bs=1M", "count=32").CombinedOutput()
	if err == nil {
		return fmt.Errorf("a container wrote more than its layer may hold: %s", out)
	}
	full := regexp.MustCompile(`dd: .*(No space left on device|[Qq]uota exceeded)`).FindString(string(out))
	if full == "" {
		return fmt.Errorf("container demo-full: %w: %s", err, out)
	}
	fmt.Printf("  %s\n", full)
	return nil
}

// pull has containerd itself fetch and unpack the image.
func (d *demo) pull(ctx context.Context, ref string) (client.Image, error) {
	began := time.Now()
	source, err := remote.NewOCIRegistry(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	store := image.NewStore(ref, image.WithPlatforms(platforms.DefaultSpec()),
		image.WithUnpack(platforms.DefaultSpec(), defaults.DefaultSnapshotter))
	if err := d.client.Transfer(ctx, source, store); err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	img, err := d.client.GetImage(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	size, err := img.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	fmt.Printf("  %-34s %s  %.1f MiB  %s\n", ref, short(img.Target().Digest.String()),
		float64(size)/(1<<20), since(began))
	return img, nil
}

// runShell runs a command to its end, and one inside another's container.
func (d *demo) runShell(ctx context.Context, img client.Image) error {
	heading("Container demo-shell: a command, its output, its exit code")
	c, err := d.show(ctx, "demo-shell", img, oci.WithProcessArgs("sh", "-c",
		"echo hello from $(hostname), as $(id -un); uname -sr; ls /; echo this goes to stderr >&2; exit 7"),
		oci.WithHostname("demo-shell"))
	if err != nil {
		return err
	}
	if err := c.finish(ctx, 0); err != nil {
		return err
	}
	heading("Container demo-idle: a command inside a running container")
	idle, err := d.show(ctx, "demo-idle", img, oci.WithProcessArgs("sleep", "1000"))
	if err != nil {
		return err
	}
	return errors.Join(idle.exec(ctx, "ps", "-o", "pid,args"), idle.finish(ctx, syscall.SIGKILL))
}

// runWeb asks a server for a page, and then to end.
func (d *demo) runWeb(ctx context.Context, img client.Image) error {
	heading("Container demo-web: a web server")
	address, err := freeAddress()
	if err != nil {
		return err
	}
	c, err := d.show(ctx, "demo-web", img, oci.WithHostNamespace("network"),
		oci.WithProcessArgs("/web", "-listen", address))
	if err != nil {
		return err
	}
	answer, err := poll(ctx, func() (string, error) { return get("http://" + address + "/") })
	if err != nil {
		return errors.Join(err, c.finish(ctx, syscall.SIGKILL))
	}
	fmt.Printf("  GET http://%s/ answers: %s\n", address, strings.TrimSpace(answer))
	return c.finish(ctx, syscall.SIGTERM)
}

func get(url string) (string, error) {
	response, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// runForeign runs an image from elsewhere with its own command, for a while.
func (d *demo) runForeign(ctx context.Context, name string) error {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	heading("Pulling through containerd")
	img, err := d.pull(ctx, ref.String())
	if err != nil {
		return err
	}
	heading("Container demo-image: the image's own command, for at most %s", foreignTime)
	c, err := d.show(ctx, "demo-image", img)
	if err != nil {
		return err
	}
	select {
	case <-time.After(foreignTime):
		return c.finish(ctx, syscall.SIGTERM)
	case <-c.ended:
		return c.finish(ctx, 0)
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.remove(ctx))
	}
}

func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

func since(began time.Time) string { return time.Since(began).Round(100 * time.Microsecond).String() }
