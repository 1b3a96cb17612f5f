// SPDX-License-Identifier: Apache-2.0

// Demo is what `make run` runs: images are pushed to a registry on loopback,
// pulled by a containerd of its own, and run by berth's shim, and so is a pod
// without a pause container, while a person reads along. It leaves nothing behind
// and says so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/berthd/berth/integration/host"
)

// patience bounds the whole demonstration; only a slow network comes near it.
const patience = 10 * time.Minute

func main() {
	image := flag.String("image", "", "image to pull and run instead of the ones made here")
	runtime := flag.String("runtime", host.Native.Name, "runtime that runs the containers")
	idle := flag.Int("idle", 5, "idle containers for the measurement of memory, of each shim")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: containers need root; try: sudo make run")
		os.Exit(1)
	}
	if *image == "" {
		host.EnterOffline()
	} else {
		host.Enter()
	}
	if err := run(*image, *runtime, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(image, runtime string, idle int) (err error) {
	began := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()

	network, err := host.Network()
	if err != nil {
		return err
	}
	daemon, err := host.New(host.Options{Program: host.Build("bin/berthd"), CRI: true, TOML: host.PodTOML(network) + limits})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Close()) }()
	d := &demo{daemon: daemon, client: daemon.Client(), runtime: runtime}
	ctx = daemon.Context(ctx)

	if err := d.introduce(ctx); err != nil {
		return err
	}
	if err := errors.Join(d.load("busybox"), d.load("web")); err != nil {
		return err
	}
	before, err := d.census()
	if err != nil {
		return err
	}
	if err := d.everything(ctx, image, idle); err != nil {
		return err
	}
	if err := d.leftBehind(ctx, before); err != nil {
		return err
	}
	fmt.Printf("\ndone in %.1f s\n", time.Since(began).Seconds())
	return nil
}

// everything is the show itself: an image from elsewhere, or all that is made here.
func (d *demo) everything(ctx context.Context, image string, idle int) error {
	if image != "" {
		if err := d.runForeign(ctx, image); err != nil {
			return err
		}
		return d.compareMemory(ctx, idle)
	}
	if err := d.runOwn(ctx); err != nil {
		return err
	}
	if err := d.compareMemory(ctx, idle); err != nil {
		return err
	}
	return d.pods(ctx)
}
