// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runcopts "github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// 11: each cell of the state table.
func TestStateTable(t *testing.T) {
	states := []string{"created", "running", "paused", "stopped"}
	const fails, works = false, true
	table := []struct {
		action string
		want   [4]bool // by state
		call   func(t *testing.T, s *shim) error
	}{
		{"pause", [4]bool{fails, works, fails, fails}, func(t *testing.T, s *shim) error {
			_, err := s.Pause(s.e.ctx(t), &taskapi.PauseRequest{ID: s.id})
			return err
		}},
		{"resume", [4]bool{fails, fails, works, fails}, func(t *testing.T, s *shim) error {
			_, err := s.Resume(s.e.ctx(t), &taskapi.ResumeRequest{ID: s.id})
			return err
		}},
		{"start", [4]bool{works, fails, fails, fails}, func(t *testing.T, s *shim) error {
			_, err := s.Start(s.e.ctx(t), &taskapi.StartRequest{ID: s.id})
			return err
		}},
		{"exec", [4]bool{works, works, fails, fails}, func(t *testing.T, s *shim) error {
			return s.exec(t, "x", stdio{}, nil, "true")
		}},
		{"update", [4]bool{works, works, works, fails}, func(t *testing.T, s *shim) error {
			return s.update(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(100))}})
		}},
		{"checkpoint", [4]bool{fails, works, works, fails}, func(t *testing.T, s *shim) error {
			if st := s.status(t); st == tasktypes.Status_RUNNING || st == tasktypes.Status_PAUSED {
				return nil // needs criu: TestCheckpoint
			}
			_, err := s.Checkpoint(s.e.ctx(t), &taskapi.CheckpointTaskRequest{ID: s.id, Path: t.TempDir()})
			return err
		}},
		{"kill", [4]bool{works, works, works, fails}, func(t *testing.T, s *shim) error {
			_, err := s.Kill(s.e.ctx(t), &taskapi.KillRequest{ID: s.id, Signal: uint32(unix.SIGKILL)})
			return err
		}},
		{"delete", [4]bool{works, fails, fails, works}, func(t *testing.T, s *shim) error {
			_, err := s.Delete(s.e.ctx(t), &taskapi.DeleteRequest{ID: s.id})
			return err
		}},
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		for i, state := range states {
			for _, row := range table {
				if !e.rt.Berth && state != "running" && (row.action == "update" || row.action == "delete" || row.action == "exec") {
					continue // stock's state machine differs here
				}
				t.Run(state+"/"+row.action, func(t *testing.T) {
					s := e.shim(t)
					s.enter(t, state)
					err := row.call(t, s)
					if row.want[i] {
						if err != nil {
							t.Errorf("got %v", err)
						}
						return
					}
					if err == nil {
						t.Fatal("got success")
					}
					s.checkRefusal(t, err, state, row.action)
				})
			}
		}
	})
}

// enter brings a new container into a state.
func (s *shim) enter(t *testing.T, state string) {
	t.Helper()
	ctx := s.e.ctx(t)
	if state == "created" {
		if _, err := s.create(ctx, stdio{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	s.run(t, stdio{})
	switch state {
	case "paused":
		if _, err := s.Pause(ctx, &taskapi.PauseRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
	case "stopped":
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
	}
}

// checkRefusal checks class and words of a "wrong state" error.
func (s *shim) checkRefusal(t *testing.T, err error, state, action string) {
	t.Helper()
	if !s.e.rt.Berth {
		return
	}
	err = class(err)
	if state == "stopped" && action == "kill" {
		if !errdefs.IsNotFound(err) {
			t.Errorf("got %v, want NotFound", err)
		}
		return
	}
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v, want FailedPrecondition", err)
	}
	for _, word := range []string{"cannot", action, state} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %q", err, word)
		}
	}
}

// update sends LinuxResources.
func (s *shim) update(t *testing.T, r *specs.LinuxResources) error {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(r)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Update(s.e.ctx(t), &taskapi.UpdateTaskRequest{ID: s.id, Resources: a})
	return err
}

// Unknown containers and execs are NotFound everywhere.
func TestUnknownIDs(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t)
		ctx := e.ctx(t)
		calls := map[string]func(id, exec string) error{
			"state": func(id, x string) error { _, err := s.State(ctx, &taskapi.StateRequest{ID: id, ExecID: x}); return err },
			"start": func(id, x string) error { _, err := s.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: x}); return err },
			"delete": func(id, x string) error {
				_, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: id, ExecID: x})
				return err
			},
			"kill": func(id, x string) error {
				_, err := s.Kill(ctx, &taskapi.KillRequest{ID: id, ExecID: x, Signal: 9})
				return err
			},
			"wait": func(id, x string) error { _, err := s.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: x}); return err },
			"resize": func(id, x string) error {
				_, err := s.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: id, ExecID: x})
				return err
			},
			"closeio": func(id, x string) error {
				_, err := s.CloseIO(ctx, &taskapi.CloseIORequest{ID: id, ExecID: x, Stdin: true})
				return err
			},
		}
		try := func(id, exec string) {
			t.Helper()
			for name, call := range calls {
				err := class(call(id, exec))
				if !errdefs.IsNotFound(err) && (e.rt.Berth || err == nil) {
					t.Errorf("%s %q %q: got %v, want NotFound", name, id, exec, err)
				}
			}
		}
		try("nobody", "")
		s.run(t, stdio{})
		try(s.id, "nothing")
	})
}

// 12: a program that does not exist.
func TestMissingProgram(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t, oci.WithProcessArgs("/no/such/program"))
		ctx := e.ctx(t)
		_, err := s.create(ctx, stdio{})
		if err == nil {
			_, err = s.Start(ctx, &taskapi.StartRequest{ID: s.id})
			if err != nil {
				s.wait(t, "")
				s.delete(t, "")
			}
		}
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
			t.Fatalf("got %v, want the runtime's message", err)
		}
		if mounts := e.Count(t)["mounts"]; slices.ContainsFunc(mounts, func(m string) bool { return strings.HasPrefix(m, s.bundle) }) {
			t.Errorf("mounted: %q", mounts)
		}
		if cgroups := e.Count(t)["cgroups"]; slices.ContainsFunc(cgroups, func(c string) bool { return strings.HasSuffix(c, s.id) }) {
			t.Errorf("cgroups: %q", cgroups)
		}
		// The id can be used again.
		e.writeSpec(t, s.bundle, s.id, sh("exit 5"))
		s.run(t, stdio{})
		if code := s.wait(t, ""); code != 5 {
			t.Errorf("second container: exit %d, want 5", code)
		}
	})
}

// 13, and AlreadyExists for a container's own id.
func TestIDsInUse(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t)
		s.run(t, stdio{})
		s.runExec(t, "one", stdio{}, "sleep", "1000")
		if err := class(s.exec(t, "one", stdio{}, nil, "true")); !errdefs.IsAlreadyExists(err) {
			t.Errorf("second exec: got %v, want AlreadyExists", err)
		}
		if e.rt.Berth {
			if _, err := s.create(e.ctx(t), stdio{}); !errdefs.IsAlreadyExists(class(err)) {
				t.Errorf("second create: got %v, want AlreadyExists", err)
			}
		}
		if err := s.exec(t, "two", stdio{}, nil, "true"); err != nil {
			t.Fatal(err)
		}
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		_, err := s.Start(e.ctx(t), &taskapi.StartRequest{ID: s.id, ExecID: "two"})
		if err == nil || e.rt.Berth && !errdefs.IsFailedPrecondition(class(err)) {
			t.Errorf("exec after the end: got %v, want FailedPrecondition", err)
		}
	})
}

// A container of that id which the runtime has for somebody else is left alone.
func TestIDOfAnother(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		sab := sabotage(t)
		write(t, sab.dir+"/fail.create", "container with given ID already exists")
		s := e.shimNamed(t, id(t), sab.options(e.rt).(proto.Message))
		if _, err := s.create(e.ctx(t), stdio{}); !errdefs.IsAlreadyExists(class(err)) {
			t.Errorf("got %v, want AlreadyExists", err)
		}
		if sab.called("delete") {
			t.Error("it was deleted")
		}
	})
}

// Of two Deletes at a time one finds the container; it is deleted once.
func TestDeleteTwice(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		r := e.record(t)
		s := e.shim(t, oci.WithProcessArgs("true"))
		s.run(t, stdio{})
		s.wait(t, "")
		ctx := e.ctx(t)
		errs := make(chan error, 2)
		for range cap(errs) {
			go func() {
				_, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: s.id})
				errs <- err
			}()
		}
		got := []error{<-errs, <-errs}
		if got[0] != nil {
			slices.Reverse(got)
		}
		if got[0] != nil || !errdefs.IsNotFound(class(got[1])) {
			t.Errorf("got %v, want one success and one NotFound", got)
		}
		s.end(t) // with its last event
		want := []string{"create", "start", "exit", "delete"}
		r.until(t, s.id, "delete")
		r.sync(t, patience)
		if got := r.names(s.id); !cmp.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

// 14: start precedes exit, however short the process.
func TestShortProcess(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		var wg sync.WaitGroup
		for worker := range 2 {
			wg.Go(func() {
				for i := worker; i < rounds; i += 2 {
					if !t.Run(fmt.Sprint(i), func(t *testing.T) { shortLife(t, e, r) }) {
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func shortLife(t *testing.T, e *env, r *recorder) {
	s := e.shim(t, oci.WithProcessArgs("true"))
	s.run(t, stdio{})
	if code := s.wait(t, ""); code != 0 {
		t.Errorf("exit %d", code)
	}
	s.delete(t, "")
	if !e.rt.Berth {
		return // publishes exit and delete in any order when Delete is this quick
	}
	want := []string{"create", "start", "exit", "delete"}
	if got := r.until(t, s.id, "delete"); !cmp.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}

// 15: execs' exits come before init's.
func TestExecsExitBeforeInit(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		s := e.shim(t)
		s.run(t, stdio{})
		for _, x := range []string{"a", "b", "c"} {
			s.runExec(t, x, stdio{}, "sleep", "1000")
		}
		s.kill(t, unix.SIGKILL)
		if code := s.wait(t, ""); code != 137 {
			t.Errorf("exit %d, want 137", code)
		}
		s.delete(t, "")
		got := r.until(t, s.id, "delete")
		if len(got) != 13 && e.rt.Berth || len(got) < 12 {
			t.Fatalf("events %q", got)
		}
		if start := got[:8]; !cmp.Equal(start, strings.Fields("create start exec-added:a exec-started:a exec-added:b exec-started:b exec-added:c exec-started:c")) {
			t.Errorf("start: %q", start)
		}
		if execs := slices.Sorted(slices.Values(got[8:11])); !cmp.Equal(execs, []string{"exit:a", "exit:b", "exit:c"}) {
			t.Errorf("execs: %q", execs)
		}
		if end := got[11:]; e.rt.Berth && !cmp.Equal(end, []string{"exit", "delete"}) {
			t.Errorf("end: %q", end)
		}
	})
}

// A container that is killed while it is being paused ends: in cgroup v1 the frozen do
// not die.
func TestKillWhilePausing(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		for i := range 5 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				s := e.shim(t)
				s.run(t, stdio{})
				ctx := e.ctx(t)
				paused := make(chan struct{})
				go func() {
					defer close(paused)
					_, _ = s.Pause(ctx, &taskapi.PauseRequest{ID: s.id}) // or too late
				}()
				s.kill(t, unix.SIGKILL)
				<-paused
				if got := s.wait(t, ""); got != 137 {
					t.Errorf("exit status %d", got)
				}
			})
		}
	})
}

// An exec that ends at once: started before exit.
func TestShortExec(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		s := e.shim(t)
		s.run(t, stdio{})
		want := []string{"create", "start"}
		for i := range 20 {
			x := fmt.Sprint("x", i)
			s.runExec(t, x, stdio{}, "sh", "-c", "exit 3")
			if code := s.wait(t, x); code != 3 {
				t.Errorf("exec %s: exit %d, want 3", x, code)
			}
			if d := s.delete(t, x); d.ExitStatus != 3 {
				t.Errorf("delete %s: exit %d, want 3", x, d.ExitStatus)
			}
			want = append(want, "exec-added:"+x, "exec-started:"+x, "exit:"+x)
		}
		s.kill(t, unix.SIGKILL)
		want = append(want, "exit")
		if got := r.until(t, s.id, "exit"); !cmp.Equal(got, want) {
			t.Errorf("events (-want +got):\n%s", cmp.Diff(want, got))
		}
	})
}

// 16: a PID namespace that is not the container's own.
func TestSharedPIDNamespace(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		out, read := file(t)
		s := e.shim(t, oci.WithHostNamespace(specs.PIDNamespace),
			sh(`sh -c 'trap "" TERM; echo $$; while :; do sleep 1; done' & sleep 0.3; exit 4`))
		s.run(t, stdio{Out: out})
		s.runExec(t, "x", stdio{}, "sleep", "1000")
		if code := s.wait(t, ""); code != 4 {
			t.Errorf("exit %d, want 4", code)
		}
		r.until(t, s.id, "exit")
		var pid int
		if _, err := fmt.Sscan(read(), &pid); err != nil {
			t.Fatalf("%v: %q", err, read())
		}
		eventually(t, 5*time.Second, func() string {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
				return string(b)
			}
			return ""
		})
	})
}

// 17
func TestKillAfterExit(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t)
		s.run(t, stdio{})
		ctx := e.ctx(t)
		if e.rt.Berth {
			s.kill(t, 0)
		}
		if _, err := s.Kill(ctx, &taskapi.KillRequest{ID: s.id, Signal: 9}); err != nil {
			t.Fatal(err)
		}
		s.wait(t, "")
		for _, all := range []bool{false, true} {
			_, err := s.Kill(ctx, &taskapi.KillRequest{ID: s.id, Signal: 9, All: all})
			if !errdefs.IsNotFound(class(err)) || !strings.Contains(err.Error(), "process already finished") {
				if e.rt.Berth || !all {
					t.Errorf("all=%v: got %v, want NotFound: process already finished", all, err)
				}
			}
		}
	})
}

// 18
func TestKillAll(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t, sh("for i in 1 2 3 4; do sh -c 'trap \"\" TERM; sleep 1000' & done; wait"))
		s.run(t, stdio{})
		ctx := e.ctx(t)
		var pids []int
		eventually(t, patience, func() string {
			r, err := s.Pids(ctx, &taskapi.PidsRequest{ID: s.id})
			if err != nil {
				return err.Error()
			}
			pids = nil
			for _, p := range r.Processes {
				pids = append(pids, int(p.Pid))
			}
			if len(pids) < 5 {
				return fmt.Sprint(pids)
			}
			return ""
		})
		if _, err := s.Kill(ctx, &taskapi.KillRequest{ID: s.id, Signal: uint32(unix.SIGKILL), All: true}); err != nil {
			t.Fatal(err)
		}
		s.wait(t, "")
		eventually(t, 5*time.Second, func() string {
			for _, pid := range pids {
				if unix.Kill(pid, 0) == nil {
					return fmt.Sprintf("process %d is alive", pid)
				}
			}
			return ""
		})
	})
}

// 19
func TestManyWaiters(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t, sh("trap 'exit 7' TERM; while :; do sleep 0.05; done"))
		s.run(t, stdio{})
		ctx := e.ctx(t)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				r, err := s.Wait(ctx, &taskapi.WaitRequest{ID: s.id})
				if err != nil || r.ExitStatus != 7 || r.ExitedAt.AsTime().IsZero() {
					t.Errorf("wait: %v, %v; want 7", r, err)
				}
			})
		}
		s.runExec(t, "x", stdio{}, "sh", "-c", "sleep 0.2; kill -TERM 1; sleep 1000")
		wg.Wait()
		if code := s.wait(t, ""); code != 7 {
			t.Errorf("later: exit %d, want 7", code)
		}
		if st, err := s.State(ctx, &taskapi.StateRequest{ID: s.id}); err != nil || st.ExitStatus != 7 || st.Status != tasktypes.Status_STOPPED {
			t.Errorf("state: %v, %v", st, err)
		}
		if d := s.delete(t, ""); d.ExitStatus != 7 || d.Pid == 0 {
			t.Errorf("delete: %v; want 7", d)
		}
		if _, err := s.Wait(ctx, &taskapi.WaitRequest{ID: s.id}); !errdefs.IsNotFound(class(err)) {
			t.Errorf("after delete: got %v, want NotFound", err)
		}
		if _, err := s.Delete(ctx, &taskapi.DeleteRequest{ID: s.id}); !errdefs.IsNotFound(class(err)) {
			t.Errorf("second delete: got %v, want NotFound", err)
		}
	})
}

// 20, 21
func TestStateAndPids(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t)
		io := stdio{In: fifo(t), Out: fifo(t), Err: fifo(t)}
		drain(t, io.Out)
		drain(t, io.Err)
		pid := s.run(t, io)
		ctx := e.ctx(t)
		st, err := s.State(ctx, &taskapi.StateRequest{ID: s.id})
		if err != nil {
			t.Fatal(err)
		}
		got := []string{st.ID, st.Bundle, st.Stdin, st.Stdout, st.Stderr, fmt.Sprint(st.Terminal, st.Pid, st.Status)}
		want := []string{s.id, s.bundle, io.In, io.Out, io.Err, fmt.Sprint(false, pid, tasktypes.Status_RUNNING)}
		if !cmp.Equal(got, want) {
			t.Errorf("state (-want +got):\n%s", cmp.Diff(want, got))
		}
		s.runExec(t, "x", stdio{}, "sleep", "1000")
		x, err := s.State(ctx, &taskapi.StateRequest{ID: s.id, ExecID: "x"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Pids(ctx, &taskapi.PidsRequest{ID: s.id})
		if err != nil {
			t.Fatal(err)
		}
		found := map[uint32]string{}
		for _, p := range r.Processes {
			found[p.Pid] = ""
			if p.Info != nil {
				var details runcopts.ProcessDetails
				if err := typeurl.UnmarshalTo(p.Info, &details); err != nil {
					t.Error(err)
				}
				found[p.Pid] = details.ExecID
			}
		}
		if want := map[uint32]string{uint32(pid): "", x.Pid: "x"}; !cmp.Equal(found, want) {
			t.Errorf("pids (-want +got):\n%s", cmp.Diff(want, found))
		}
		c, err := s.Connect(ctx, &taskapi.ConnectRequest{ID: s.id})
		if err != nil || int(c.TaskPid) != pid || unix.Kill(int(c.ShimPid), 0) != nil {
			t.Errorf("connect: %v, %v", c, err)
		}
	})
}

// 25
func TestUpdate(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		limit := int64(64 << 20)
		s := e.shim(t, oci.WithMemoryLimit(uint64(limit)), sh("head -c 16m /dev/zero > /dev/shm/x; exec sleep 1000"))
		pid := s.run(t, stdio{})
		usage := func() string { return s.cgroupFile(t, pid, "memory", "memory.usage_in_bytes", "memory.current") }
		eventually(t, patience, func() string {
			var n int64
			if fmt.Sscan(usage(), &n); n < 16<<20 {
				return "usage " + usage()
			}
			return ""
		})
		max := func() string { return s.cgroupFile(t, pid, "memory", "memory.limit_in_bytes", "memory.max") }
		if e.rt.Berth {
			if err := s.update(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(4 << 20))}}); err == nil {
				t.Error("a limit below the usage was accepted")
			}
			if err := s.update(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(-5))}}); err == nil {
				t.Error("a negative limit was accepted")
			}
		}
		if max() != fmt.Sprint(limit) {
			t.Errorf("limit %s, want %d", max(), limit)
		}
		if err := s.update(t, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(512))}}); err != nil {
			t.Error(err)
		}
		if got := s.cgroupFile(t, pid, "cpu", "cpu.shares", "cpu.weight"); got == "1024" || got == "100" || max() != fmt.Sprint(limit) {
			t.Errorf("shares %s, limit %s", got, max())
		}
		limit = 96 << 20
		if err := s.update(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil || max() != fmt.Sprint(limit) {
			t.Errorf("update: %v, limit %s", err, max())
		}
		_, err := s.Update(e.ctx(t), &taskapi.UpdateTaskRequest{ID: s.id, Resources: &anypb.Any{TypeUrl: "example.com/other", Value: []byte("{}")}})
		if e.rt.Berth && !errdefs.IsInvalidArgument(class(err)) {
			t.Errorf("foreign type: got %v, want InvalidArgument", err)
		}
	})
}

// cgroupFile reads a file of a process's cgroup in either version.
func (s *shim) cgroupFile(t *testing.T, pid int, controller, v1, v2 string) string {
	t.Helper()
	b, err := os.ReadFile(cgroupOf(t, pid, controller) + "/" + pick(v1, v2))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// 28
func TestDeathWhilePaused(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		r := e.record(t)
		s := e.shim(t)
		pid := s.run(t, stdio{})
		if _, err := s.Pause(e.ctx(t), &taskapi.PauseRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
		if st := s.status(t); st != tasktypes.Status_PAUSED {
			t.Errorf("status %v", st)
		}
		if e.rt.Berth {
			s.kill(t, unix.SIGKILL)
		} else {
			s.kill(t, unix.SIGKILL)
			if _, err := s.Resume(e.ctx(t), &taskapi.ResumeRequest{ID: s.id}); err != nil {
				t.Fatal(err)
			}
		}
		if code := s.wait(t, ""); code != 137 {
			t.Errorf("exit %d, want 137", code)
		}
		s.delete(t, "")
		if x := r.event(t, s.id, "create").(*eventapi.TaskCreate); int(x.Pid) != pid || x.Bundle != s.bundle || len(x.Rootfs) == 0 {
			t.Errorf("create event: %v", x)
		}
		r.until(t, s.id, "delete")
	})
}

// 64: exit codes by signal.
func TestExitBySignal(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGUSR1} {
			t.Run(unix.SignalName(sig), func(t *testing.T) {
				// Init itself ignores signals without handlers from inside.
				s := e.shim(t, oci.WithHostNamespace(specs.PIDNamespace))
				pid := s.run(t, stdio{})
				// Start returns just before the runtime's process becomes sleep.
				eventually(t, patience, func() string {
					comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
					if string(comm) != "sleep\n" {
						return "process " + string(comm)
					}
					return ""
				})
				if err := unix.Kill(pid, sig); err != nil {
					t.Fatal(err)
				}
				if code := s.wait(t, ""); code != 128+int(sig) {
					t.Errorf("exit %d, want %d", code, 128+int(sig))
				}
			})
		}
	})
}
