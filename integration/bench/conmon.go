// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// conmon measures the peer of the CRI log, if this machine has it: the same
// container, data and runtime under conmon, which writes the log itself.
func (b *bench) conmon(ctx context.Context, data string) error {
	program, err := exec.LookPath("conmon")
	if err != nil {
		progress("no conmon to compare the CRI log with (package conmon)")
		return nil
	}
	for range b.settings.outputs {
		if err := b.underConmon(ctx, program, data); err != nil {
			return fmt.Errorf("conmon: %w", err)
		}
	}
	return nil
}

func (b *bench) underConmon(ctx context.Context, program, data string) (err error) {
	u, err := b.bundle(ctx, host.Stock, writer, dataMount(data))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.remove(ctx)) }()
	if err := b.mountRoot(ctx, u); err != nil {
		return err
	}
	runc := func(args ...string) error {
		return quietly(exec.CommandContext(ctx, host.Deps("bin/runc"), append([]string{"--root", u.dir + "/runc"}, args...)...))
	}
	log := u.dir + "/log"
	err = quietly(exec.CommandContext(ctx, program,
		"--cid", u.id, "--cuuid", u.id, "--name", u.id, "--bundle", u.dir,
		"--runtime", host.Deps("bin/runc"), "--runtime-arg", "--root="+u.dir+"/runc",
		"--container-pidfile", u.dir+"/pid", "--conmon-pidfile", u.dir+"/conmon.pid",
		"--exit-dir", u.dir, "--socket-dir-path", u.dir, "--log-level", "error",
		"--log-path", "k8s-file:"+log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runc("delete", "--force", u.id)) }()
	pid, err := awaitPid(ctx, u.dir+"/conmon.pid")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(ctx, pid)) }()
	if _, err := awaitPid(ctx, u.dir+"/pid"); err != nil {
		return err
	}
	before, err := cpu(pid)
	if err != nil {
		return err
	}
	// As for the shims, the clock runs while the container is started.
	clock := newWatch()
	if err := runc("start", u.id); err != nil {
		return err
	}
	if err := awaitEnd(ctx, log); err != nil {
		return err
	}
	ms := clock.lap()
	after, err := cpu(pid)
	if err != nil {
		return err
	}
	b.reportOutput(host.Runtime{Label: conmonLabel}, "cri", ms, after-before)
	return b.complete(log, "cri")
}

// end kills a conmon, which has done its work and would stay for a while, and waits
// for it: it writes where it works.
func end(ctx context.Context, pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return nil // it has ended
	}
	program := fmt.Sprintf("/proc/%d/exe", pid) // of a zombie it cannot be read
	for deadline := time.Now().Add(10 * time.Second); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if _, err := os.Readlink(program); err != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("conmon %d does not end", pid)
		}
	}
	return ctx.Err()
}

// awaitPid waits for a file with a process id.
func awaitPid(ctx context.Context, path string) (int, error) {
	for deadline := time.Now().Add(10 * time.Second); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(path)
		if pid, bad := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && bad == nil {
			return pid, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("no process id in %s", path)
		}
	}
	return 0, ctx.Err()
}

// quietly runs a program whose output matters only if it fails. Its output goes
// through a file: a daemon that it leaves behind keeps a pipe open.
func quietly(cmd *exec.Cmd) error {
	f, err := os.CreateTemp("", "out")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(f.Name())
		return fmt.Errorf("%s: %w: %s", cmd.Args, err, text)
	}
	return nil
}
