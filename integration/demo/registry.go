// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
)

// registry is a process that serves images on loopback.
type registry struct {
	address string // host:port
	process *exec.Cmd
}

const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q}
`

// startRegistry starts a registry that keeps its images and its log in dir,
// and waits until it answers. The caller ends it with close.
func startRegistry(ctx context.Context, dir string) (*registry, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "registry"), address), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := &registry{address: address, process: exec.Command(host.Deps("bin/registry"), "serve", config)}
	r.process.Stdout, r.process.Stderr = log, log
	// Its exporter would otherwise look for a collector.
	r.process.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	r.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.process.Start(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if err := r.await(ctx); err != nil {
		r.close()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("registry: %w\n%s", err, text)
	}
	return r, nil
}

// freeAddress is a port of loopback that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (r *registry) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := poll(ctx, func() (struct{}, error) {
		response, err := http.Get("http://" + r.address + "/v2/")
		if err == nil {
			err = response.Body.Close()
		}
		return struct{}{}, err
	})
	return err
}

// poll calls f until it succeeds; when ctx ends it returns f's last error.
func poll[T any](ctx context.Context, f func() (T, error)) (T, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		value, err := f()
		if err == nil {
			return value, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return value, err
		}
	}
}

// push uploads an image made here, with containerd's own client for registries.
func (r *registry) push(ctx context.Context, img *image.Image) error {
	pusher, err := docker.NewResolver(docker.ResolverOptions{}).Pusher(ctx, img.Ref)
	if err != nil {
		return fmt.Errorf("push %s: %w", img.Ref, err)
	}
	if err := remotes.PushContent(ctx, pusher, img.Manifest(), img, nil, platforms.All, nil); err != nil {
		return fmt.Errorf("push %s: %w", img.Ref, err)
	}
	return nil
}

func (r *registry) close() {
	_ = r.process.Process.Kill() // it may have ended by itself
	_ = r.process.Wait()         // its exit code says that it was killed
}
