// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/plugin/labels"
)

const (
	stubborn = `trap '' TERM; echo ready; while :; do sleep 1; done`
	polite   = `trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done`
)

// S58, S59, S61.
func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		signal string
		grace  time.Duration
		took   time.Duration
		code   int32
	}{
		"ends on TERM": {polite, "", 5 * time.Second, 0, 5},
		"ignores TERM": {stubborn, "", 2 * time.Second, 2 * time.Second, 137},
		"image signal": {`trap 'exit 6' USR1; trap '' TERM; echo ready; while :; do sleep 0.1; done`, "SIGUSR1", 5 * time.Second, 0, 6},
		"only KILL":    {polite, "", 0, 0, 137},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			x, log := r.logged(t, options{args: sh(c.script), settings: labels.Settings{StopSignal: c.signal}})
			ready(t, log, "ready")
			took(t, c.took, func() {
				if err := x.Stop(r.ctx, c.grace); err != nil {
					t.Error(err)
				}
			})
			s := x.StateNoLock()
			if s.Status != Stopped || code(s) != c.code || s.Finished.IsZero() {
				t.Errorf("got %+v, want code %d", s, c.code)
			}
			kept, err := readState(x.StatePath(), x.ID)
			if err != nil || code(kept) != c.code || kept.Status != Stopped { // kept before the stop returns
				t.Errorf("on disk: %+v, %v", kept, err)
			}
			if err := x.Stop(r.ctx, time.Minute); err != nil { // of what has ended
				t.Error(err)
			}
			if err := x.ShouldBeStopped(); !errors.Is(err, ErrContainerStopped) { // P51
				t.Errorf("should be stopped: %v", err)
			}
		})
	}
}

// S60, P53: the earliest deadline counts, and a caller who leaves leaves alone.
func TestConcurrentStops(t *testing.T) {
	for name, graces := range map[string][2]time.Duration{
		"shorter later":  {60 * time.Second, time.Second},
		"longer later":   {time.Second, 60 * time.Second},
		"at once, later": {60 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			x, log := r.logged(t, options{args: sh(stubborn)})
			ready(t, log, "ready")
			impatient, cancel := context.WithTimeout(r.ctx, 200*time.Millisecond)
			defer cancel()
			first := make(chan error, 1)
			want := min(graces[0], graces[1])
			took(t, 200*time.Millisecond, func() { first <- x.Stop(impatient, graces[0]) })
			if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("caller who left: %v", err)
			}
			if s := x.StateNoLock(); s.Status != Running { // does not wait
				t.Errorf("listed as %s", s.Status)
			}
			if s, err := x.State(r.ctx); err != nil || s.Status != Running { // nor does this
				t.Errorf("state: %s, %v", s.Status, err)
			}
			if name == "longer later" {
				want -= 200 * time.Millisecond
			}
			took(t, want, func() {
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if err := x.Stop(r.ctx, graces[1]); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			})
			if s := x.StateNoLock(); code(s) != 137 {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// S62.
func TestStopPaused(t *testing.T) {
	r := newRig(t)
	x, log := r.logged(t, options{args: sh(polite)})
	ready(t, log, "ready")
	if err := x.Pause(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := x.ShouldBeStopped(); !errors.Is(err, ErrContainerPaused) { // P51
		t.Errorf("should be stopped: %v", err)
	}
	if err := x.Pause(r.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("paused twice: %v", err)
	}
	if err := x.Stop(r.ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := x.StateNoLock(); code(s) != 5 {
		t.Errorf("got %+v", s)
	}
}

// S63, P54: no exec outlives a stop, or begins while it kills.
func TestStopExecs(t *testing.T) {
	for name, spec := range map[string][]oci.SpecOpts{"own": nil, "host": {hostPID}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			x, log := r.logged(t, options{args: sh(stubborn), spec: spec})
			ready(t, log, "ready")
			done := make(chan error, 1)
			go func() {
				_, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: sh("echo in >>/tmp/in; sleep 600")}})
				done <- err
			}()
			eventually(t, func() string {
				x.execs.mu.Lock()
				defer x.execs.mu.Unlock()
				if len(x.execs.pids) == 1 {
					return ""
				}
				return "no exec"
			})
			if err := x.Stop(r.ctx, 100*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: []string{"true"}}}); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("exec afterwards: %v", err)
			}
		})
	}
	r := newRig(t)
	x, log := r.logged(t, options{args: sh(polite)})
	ready(t, log, "ready")
	x.execs.close()
	if _, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: []string{"true"}}}); !errors.Is(err, ErrStopping) {
		t.Errorf("exec while killing: %v", err)
	}
	// And one that has slipped by the first look.
	if err := x.AddExecPID(os.Getpid(), true); !errors.Is(err, ErrStopping) {
		t.Errorf("register while killing: %v", err)
	}
	x.execs.reopen()
	// The shim refuses, too, whoever asks.
	x.endExecs(r.ctx)
	x.execs.reopen()
	if _, err := x.ExecSync(r.ctx, ExecSyncRequest{Command: Command{Args: []string{"true"}}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec after the shim was told: %v", err)
	}
}

// S78, P49: somebody else's process is not signalled, and the container has ended.
func TestReusedPid(t *testing.T) {
	r := newRig(t)
	x, log := r.logged(t, options{args: sh(`trap 'echo hit' TERM INT HUP; echo ready; while :; do sleep 0.1; done`)})
	ready(t, log, "ready")
	right := x.StateNoLock().InitStartTime
	x.change(func(s *State) { s.InitStartTime = "1" })
	for what, err := range map[string]error{"living": x.Living(), "signal": x.Signal(r.ctx, unix.SIGTERM)} {
		if !errors.Is(err, ErrReused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := x.Stop(r.ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	s := x.StateNoLock()
	if s.Status != Stopped || s.ExitCode != nil || s.Code() != UnknownExit || s.Reason() != "Unknown" || s.Finished.IsZero() {
		t.Errorf("got %+v", s)
	}
	x.change(func(s *State) { s.InitStartTime = right })
	if err := x.Living(); err != nil {
		t.Errorf("was it killed? %v", err)
	}
	if b, _ := os.ReadFile(log); strings.Contains(string(b), "hit") {
		t.Error("it was signalled")
	}
	if err := x.Signal(r.ctx, unix.SIGKILL); err != nil { // for the cleanup
		t.Error(err)
	}
}

// P66: members wait side by side.
func TestStopPod(t *testing.T) {
	r := newRig(t)
	var members []*Container
	for range 3 {
		x, log := r.logged(t, options{args: sh(stubborn)})
		ready(t, log, "ready")
		members = append(members, x)
	}
	infra, err := r.s.Container(Config{ID: "pod", Dir: t.TempDir(), Metadata: labels.Metadata{Kind: labels.KindInfra, Settings: labels.Settings{NoProcess: true}}})
	if err != nil {
		t.Fatal(err)
	}
	took(t, 2*time.Second, func() {
		if err := r.s.StopPod(r.ctx, StopPodRequest{Members: members, Infra: infra, Grace: 2 * time.Second}); err != nil {
			t.Error(err)
		}
	})
	for _, x := range append(members, infra) {
		if s := x.StateNoLock(); s.Status != Stopped {
			t.Errorf("%s: %s", x.ID, s.Status)
		}
	}
}

// P52: one begins, all are woken.
func TestStopCoordination(t *testing.T) {
	s := New(nil)
	defer s.Close()
	c, err := s.Container(Config{ID: "c", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitOnStopTimeout(t.Context(), time.Hour); err != nil {
		t.Errorf("no stop in progress: %v", err)
	}
	firsts := make(chan bool, 10)
	for range cap(firsts) {
		go func() { firsts <- c.SetAsStopping() }()
	}
	n := 0
	for range cap(firsts) {
		if <-firsts {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d began the stop", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.WaitOnStopTimeout(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	var wg sync.WaitGroup
	for range 2 * offers { // more than are looked at
		wg.Go(func() {
			if err := c.WaitOnStopTimeout(t.Context(), time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	c.SetAsDoneStopping()
	wg.Wait()
	if !c.SetAsStopping() {
		t.Error("cannot begin anew")
	}
	c.SetAsDoneStopping()
	c.SetAsDoneStopping() // nothing to end
}

// P55: number 0 is this program's process group.
func TestKillExecPIDs(t *testing.T) {
	s := New(nil)
	defer s.Close()
	c, err := s.Container(Config{ID: "c", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	killed, interrupted, forgotten := start(), start(), start()
	defer forgotten.Wait()         //nolint:errcheck // killed
	defer forgotten.Process.Kill() //nolint:errcheck // it lives
	for pid, kill := range map[int]bool{0: true, -1: true, killed.Process.Pid: true, interrupted.Process.Pid: false, forgotten.Process.Pid: true} {
		if err := c.AddExecPID(pid, kill); err != nil {
			t.Fatal(err)
		}
	}
	c.DeleteExecPID(forgotten.Process.Pid)
	c.KillExecPIDs()
	for cmd, want := range map[*exec.Cmd]unix.Signal{killed: unix.SIGKILL, interrupted: unix.SIGINT} {
		_ = cmd.Wait()
		if got := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if err := forgotten.Process.Signal(unix.Signal(0)); err != nil {
		t.Error(err)
	}
	c.KillExecPIDs() // they have ended
}
