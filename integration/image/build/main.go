// SPDX-License-Identifier: Apache-2.0

// Build writes the archives of the images that tests use: busybox.tar,
// pause.tar and web.tar.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/integration/image"
)

func main() {
	programs := flag.String("programs", ".deps/images", "folder with the static programs pause and web")
	busybox := flag.String("busybox", "/bin/busybox", "statically linked busybox")
	out := flag.String("o", ".deps/images", "folder to write to")
	flag.Parse()
	if err := run(*programs, *busybox, *out); err != nil {
		fmt.Fprintln(os.Stderr, "build images:", err)
		os.Exit(1)
	}
}

func run(programs, busybox, out string) error {
	shell, err := image.Busybox("berth.test/busybox:1", busybox)
	if err != nil {
		return err
	}
	pause, err := image.Single("berth.test/pause:1", filepath.Join(programs, "pause"), "pause", v1.ImageConfig{})
	if err != nil {
		return err
	}
	web, err := image.Single("berth.test/web:1", filepath.Join(programs, "web"), "web",
		v1.ImageConfig{ExposedPorts: map[string]struct{}{"8080/tcp": {}}})
	if err != nil {
		return err
	}
	return errors.Join(
		write(shell, filepath.Join(out, "busybox.tar")),
		write(pause, filepath.Join(out, "pause.tar")),
		write(web, filepath.Join(out, "web.tar")),
	)
}

// write replaces the file at once: a reader sees the old archive or the new.
func write(img *image.Image, path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".archive")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(img.Archive(f), f.Close()); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
