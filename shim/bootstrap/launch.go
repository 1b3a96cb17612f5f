// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/plan"
)

// launch starts the resident of p. When it fails nothing is left.
func launch(inv *Invocation, p *plan.Plan) (err error) {
	if err := coreScheduling(); err != nil {
		return err
	}
	if p.OOMScore, err = raiseOOMScore(); err != nil {
		inv.note("debug", "OOM score: %v", err)
	}
	// Before the socket, which delete learns of from it: this process may be killed.
	file, err := writePlan(p)
	if err != nil {
		return err
	}
	defer file.Close()
	socket, err := listen(p.Socket)
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	defer unix.Close(socket)
	defer func() {
		if err != nil {
			_ = unix.Unlink(p.Socket)
		}
	}()
	pid, err := spawn(inv, p, socket, int(file.Fd()))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL) // our child, not reaped: the number is its own
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	id, err := identityOf(pid)
	if err != nil {
		return fault.Wrap(fault.Internal, "new shim", err)
	}
	if err := os.WriteFile(filepath.Join(p.Bundle, plan.ServerFile), []byte(id.String()), 0o600); err != nil {
		return fault.Wrap(fault.Unknown, "bundle", err)
	}
	return joinCgroups(p, pid)
}

// writePlan leaves the plan in the bundle and returns the open file, at its
// beginning, for the resident to inherit.
func writePlan(p *plan.Plan) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.Bundle, plan.File), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unknown, "bundle", err)
	}
	if _, err := f.WriteAt(p.Append(nil), 0); err != nil {
		f.Close()
		return nil, fault.Wrap(fault.Unknown, "bundle", err)
	}
	return f, nil
}

// spawn executes this program as the resident, in a session of its own, and
// returns its pid.
func spawn(inv *Invocation, p *plan.Plan, socket, planFile int) (int, error) {
	if err := keepOwn(); err != nil {
		return 0, fault.Wrap(fault.Unknown, "open files", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fault.Wrap(fault.Unknown, os.DevNull, err)
	}
	defer unix.Close(null)
	// For whoever reads ps; the resident itself goes by its plan.
	args := []string{p.Binary, "-namespace", p.Namespace, "-id", p.ID, "-address", inv.Address}
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), plan.ServerFD: uintptr(socket), plan.PlanFD: uintptr(planFile)}
	pid, err := syscall.ForkExec(p.Binary, args, &syscall.ProcAttr{
		Dir: p.Bundle, Env: environment(os.Environ()), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fault.Wrap(fault.Unknown, "exec "+p.Binary, err)
	}
	return pid, nil
}

// keepOwn keeps what containerd's own starter left open from the resident.
// close_range(2) does this from Linux 5.11 on only.
func keepOwn() error {
	files, err := os.ReadDir("/proc/self/fd")
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// residentEnv sets up Go's runtime for the resident (docs/design.md, "Memory"):
// one P, and no collection: its heap is refreshed by an exec in place instead.
// The limit, far above that bound, is for the case that this does not happen.
var residentEnv = [...]string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=32MiB"}

// passedOn are the variables of containerd's environment that the OCI runtime,
// its hooks and criu use.
var passedOn = [...]string{"PATH=", "HOME=", "TMPDIR=", "LANG=", "XDG_RUNTIME_DIR=", "DBUS_SYSTEM_BUS_ADDRESS=", "DBUS_SESSION_BUS_ADDRESS="}

func environment(own []string) []string {
	env := append(make([]string, 0, len(residentEnv)+len(passedOn)), residentEnv[:]...)
	for _, kv := range own {
		for _, prefix := range passedOn {
			if strings.HasPrefix(kv, prefix) {
				env = append(env, kv)
			}
		}
	}
	return env
}

// maxOOMScore is the kernel's limit.
const maxOOMScore = 1000

// raiseOOMScore makes the kernel prefer the shim to containerd, our parent, when
// it has to kill one. This process sets its own, which the resident inherits.
// It returns containerd's.
func raiseOOMScore() (int32, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(os.Getppid()) + "/oom_score_adj")
	if err != nil {
		return 0, err
	}
	score, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 32)
	if err != nil {
		return 0, err
	}
	return int32(score), os.WriteFile(ownOOMScore, strconv.AppendInt(nil, min(score+1, maxOOMScore), 10), 0)
}

// joinCgroups puts the resident into the cgroups that the options ask for.
func joinCgroups(p *plan.Plan, pid int) error {
	for _, cgroup := range []string{p.ShimCgroup, p.MonitorCgroup} {
		if cgroup == "" {
			continue
		}
		if err := joinCgroup(cgroup, pid); err != nil {
			return fault.Wrap(fault.FailedPrecondition, "cgroup "+cgroup+" of the shim", err)
		}
	}
	return nil
}

const cgroupMount = "/sys/fs/cgroup"

// joinCgroup moves pid into a cgroup that exists, in every v1 hierarchy that has
// it or in the only v2 hierarchy.
func joinCgroup(cgroup string, pid int) error {
	number := strconv.AppendInt(nil, int64(pid), 10)
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &st); err != nil {
		return err
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return os.WriteFile(filepath.Join(cgroupMount, cgroup, "cgroup.procs"), number, 0)
	}
	hierarchies, err := os.ReadDir(cgroupMount)
	if err != nil {
		return err
	}
	joined := false
	for _, d := range hierarchies {
		if d.Type()&os.ModeSymlink != 0 { // cpu for cpu,cpuacct
			continue
		}
		err := os.WriteFile(filepath.Join(cgroupMount, d.Name(), cgroup, "cgroup.procs"), number, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
		joined = joined || err == nil
	}
	if !joined {
		return os.ErrNotExist
	}
	return nil
}
