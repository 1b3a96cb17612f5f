// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/registry"
)

// Peers of berth's command line.
const (
	ctrLabel    = "ctr"
	localLabel  = "local" // ctr images pull --local
	podmanLabel = "podman"
)

// What is pulled, and how many images are listed.
const (
	pulledLayers = 10
	layerBytes   = 20e6
	listedImages = 1000
)

// puller is a program that works with images.
type puller struct {
	label string
	pull  []string // the image's name follows
	clear []string // removes what was pulled, at once; the name follows
	list  []string // nil: as another does
	load  []string // what is listed, nil if another has; the archive's name follows
}

// images measures berth's command line for images beside ctr's, with and without
// the transfer service, and podman's, if there is one: what somebody waits for who
// calls them.
func (b *bench) images(ctx context.Context) error {
	dir := filepath.Join(b.daemon.Dir, "images")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	all, err := b.pullers(dir)
	if err != nil {
		return err
	}
	if err := b.pulls(ctx, dir, all); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	if err := b.lists(ctx, dir, all); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return nil
}

// pullers are those that this machine has. They use files of the run alone.
func (b *bench) pullers(dir string) ([]puller, error) {
	policy, settings, none := filepath.Join(dir, "policy.json"), filepath.Join(dir, "berth.toml"), filepath.Join(dir, "none")
	if err := os.Mkdir(none, 0o755); err != nil {
		return nil, err
	}
	for path, text := range map[string]string{
		policy:   `{"default": [{"type": "insecureAcceptAnything"}]}`,
		settings: fmt.Sprintf("[images]\nsignature_policy = %q\nregistries_conf = %q\nregistries_conf_dir = %q\nhosts_dir = %q\n", policy, os.DevNull, none, none),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	berth := []string{host.Build("bin/berth"), "--address", b.daemon.Socket, "--namespace", b.daemon.Namespace, "--config", settings, "image"}
	ctr := []string{host.Deps("bin/ctr"), "--address", b.daemon.Socket, "--namespace", b.daemon.Namespace, "images"}
	all := []puller{
		{
			label: b.settings.b.Label,
			pull:  with(berth, "pull", "--quiet"), clear: with(ctr, "rm", "--sync"), list: with(berth, "ls"), load: with(berth, "load", "--input"),
		},
		{label: ctrLabel, pull: with(ctr, "pull", "--plain-http"), clear: with(ctr, "rm", "--sync"), list: with(ctr, "ls")},
		{label: localLabel, pull: with(ctr, "pull", "--local", "--plain-http"), clear: with(ctr, "rm", "--sync")},
	}
	program, err := exec.LookPath("podman")
	if err != nil {
		progress("no podman to compare with (package podman)")
		return all, nil
	}
	podman := []string{program, "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}
	return append(all, puller{
		label: podmanLabel,
		pull:  with(podman, "pull", "--quiet", "--tls-verify=false", "--signature-policy", policy),
		clear: with(podman, "rmi"), // it does not load an OCI archive of many images
	}), nil
}

func with(command []string, more ...string) []string {
	return append(command[:len(command):len(command)], more...)
}

// execute runs a command, which writes to nobody, and returns how long that took.
func execute(ctx context.Context, command []string) (ms float64, err error) {
	clock := newWatch()
	err = quietly(exec.CommandContext(ctx, command[0], command[1:]...))
	return clock.lap(), err
}

// beside takes what was measured for all, a row for each pair with berth.
func (b *bench) beside(name string, values map[string]float64) {
	for _, peer := range []string{ctrLabel, localLabel, podmanLabel} {
		value, measured := values[peer]
		if !measured {
			continue
		}
		b.report.addPeer(peer, "images", name+" ("+peer+")", value)
		b.report.addPeer(b.settings.b.Label, "images", name+" ("+peer+")", values[b.settings.b.Label])
	}
}

// pulls times pull and unpack of an image from a registry on loopback. Each of
// them finds nothing of it, and a disk that has nothing else to write.
func (b *bench) pulls(ctx context.Context, dir string, all []puller) error {
	served, err := registry.Start(ctx, registry.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer served.Close()
	ref := served.Address + "/bench/ten:1"
	img, err := image.Noise(pulledLayers, layerBytes)(ref)
	if err != nil {
		return err
	}
	if err := served.Push(ctx, ref, img.Manifest(), img); err != nil {
		return err
	}
	progress("images: %d pulls of %d layers of %d MB each", b.settings.pulls, pulledLayers, int(layerBytes/1e6))
	for i := range b.settings.pulls {
		values := map[string]float64{}
		for j := range all {
			p := all[(i+j)%len(all)]
			if values[p.label], err = b.onePull(ctx, p, ref); err != nil {
				return fmt.Errorf("%s: %w", p.label, err)
			}
		}
		b.beside("pull and unpack", values)
	}
	return nil
}

// onePull leaves everything as it was before.
func (b *bench) onePull(ctx context.Context, p puller, ref string) (ms float64, err error) {
	before, err := b.snapshots(ctx)
	if err != nil {
		return 0, err
	}
	unix.Sync()
	if ms, err = execute(ctx, with(p.pull, ref)); err != nil {
		return 0, err
	}
	after, err := b.snapshots(ctx)
	if err != nil {
		return 0, err
	}
	if after-before != pulledLayers && p.label != podmanLabel {
		return 0, fmt.Errorf("%d layers are unpacked, want %d", after-before, pulledLayers)
	}
	if _, err = execute(ctx, with(p.clear, ref)); err != nil {
		return 0, err
	}
	if after, err = b.snapshots(ctx); err == nil && after != before {
		err = fmt.Errorf("%d layers are left", after-before)
	}
	return ms, err
}

func (b *bench) snapshots(ctx context.Context) (n int, err error) {
	ctx = b.daemon.Context(ctx)
	err = b.daemon.Client().SnapshotService("overlayfs").Walk(ctx, func(context.Context, snapshots.Info) error {
		n++
		return nil
	})
	return n, err
}

// lists times the list of many images.
func (b *bench) lists(ctx context.Context, dir string, all []puller) error {
	archive := filepath.Join(dir, "many.tar")
	if err := manyImages(archive); err != nil {
		return err
	}
	progress("images: %d lists of %d images", b.settings.rounds, listedImages)
	for i := range b.settings.rounds + 1 {
		values := map[string]float64{}
		for j := range all {
			p := all[(i+j)%len(all)]
			if p.list == nil {
				continue
			}
			if i == 0 && p.load != nil { // and have it warm
				if _, err := execute(ctx, with(p.load, archive)); err != nil {
					return fmt.Errorf("%s: %w", p.label, err)
				}
			}
			ms, err := execute(ctx, p.list)
			if err != nil {
				return fmt.Errorf("%s: %w", p.label, err)
			}
			values[p.label] = ms
		}
		if i > 0 {
			b.beside("ls of 1,000", values)
		}
	}
	return nil
}

// manyImages writes an archive of images that share their only layer.
func manyImages(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	many := make([]*image.Image, listedImages)
	for i := range many {
		ref := fmt.Sprintf("berth.test/many/%d:latest", i)
		config := v1.ImageConfig{Labels: map[string]string{"number": strconv.Itoa(i)}}
		if many[i], err = image.New(ref, []image.File{{Path: "file", Mode: 0o644}}, config); err != nil {
			return err
		}
	}
	if err := image.Archive(f, many...); err != nil {
		return err
	}
	return f.Close()
}
