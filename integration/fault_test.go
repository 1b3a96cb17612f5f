// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// saboteur is an OCI runtime that is runc, unless told otherwise for a command. What
// is in the file fail.COMMAND is its error, or else that it is sabotaged.
type saboteur struct {
	dir string // it is told by files here
}

// sabotage makes a runtime. Each command is noted in the file calls; it fails
// while there is a file fail.COMMAND and hangs while there is hang.COMMAND.
func sabotage(t *testing.T) *saboteur {
	t.Helper()
	s := &saboteur{dir: t.TempDir()}
	script := `#!/bin/sh
for word; do
	[ "$last" = --log ] && log=$word
	last=$word
	case $word in create|start|exec|kill|delete|state|update|pause|resume|features|checkpoint|restore|ps) break ;; esac
done
cd_dir=` + s.dir + `
echo $word >> $cd_dir/calls
if [ -e $cd_dir/fail.$word ]; then
	text=$(cat $cd_dir/fail.$word)
	echo '{"level":"error","msg":"'"${text:-sabotaged $word}"'"}' >> ${log:-/dev/stderr}
	exit 1
fi
while [ -e $cd_dir/hang.$word ]; do sleep 0.05; done
exec ` + host.Deps("bin/runc") + ` "$@"
`
	programs.Write(t, s.program(), script)
	// What containerd does behind its callers' back needs the program.
	t.Cleanup(func() {
		eventually(t, patience, func() string {
			if line := running(s.program(), "\x00-id\x00"+id(t)+"\x00"); line != "" {
				return "still running: " + line
			}
			return ""
		})
	})
	return s
}

// running returns the arguments of a process that has one of the words in them.
func running(words ...string) string {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, word := range words {
			if strings.Contains(string(text), word) {
				return strings.ReplaceAll(string(text), "\x00", " ")
			}
		}
	}
	return ""
}

func (s *saboteur) program() string { return s.dir + "/runc" }

// options make a runtime use the saboteur. Shortcuts around the OCI runtime are
// off where they can be, so that it is asked for everything.
func (s *saboteur) options(rt host.Runtime) any {
	if rt.Name == host.Native.Name {
		return &runtimeoptions.Options{
			ConfigBody: fmt.Appendf(nil, "runtime = %q\nnative = false\n", s.program()),
		}
	}
	return &options.Options{BinaryName: s.program()}
}

// inject makes a command fail or hang.
func (s *saboteur) inject(t *testing.T, how, command string) { write(t, s.dir+"/"+how+"."+command, "") }

// relent ends all sabotage.
func (s *saboteur) relent(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"/fail.*", "/hang.*"} {
		files, _ := filepath.Glob(s.dir + pattern)
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				t.Error(err)
			}
		}
	}
}

func (s *saboteur) called(command string) bool {
	text, _ := os.ReadFile(s.dir + "/calls")
	return slices.Contains(strings.Fields(string(text)), command)
}

// life is a container on its way through its states, for tests that interfere.
type life struct {
	e    *env
	t    *testing.T
	id   string
	io   cio.Creator // nil: none
	task client.Task
	pid  int    // of init
	born string // when init started; tells processes of one number apart
}

// live makes a container's record. At the end of the test all of it is removed,
// whatever state it is in by then.
func (e *env) live(t *testing.T, options any, spec ...oci.SpecOpts) *life {
	t.Helper()
	l := &life{e: e, t: t, id: id(t)}
	image, err := e.Client().GetImage(e.ctx(t), host.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	spec = append([]oci.SpecOpts{
		oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "100000"), oci.WithCgroup("/" + e.Namespace + "/" + l.id),
	}, spec...)
	_, err = e.Client().NewContainer(e.ctx(t), l.id, client.WithRuntime(e.rt.Name, options),
		client.WithNewSnapshot(l.id, image), client.WithNewSpec(spec...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.remove)
	return l
}

// ctx is a context that outlives the test's body.
func (l *life) ctx(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(l.e.Context(context.Background()), limit)
}

func (l *life) container(ctx context.Context) (client.Container, error) {
	return l.e.Client().LoadContainer(ctx, l.id)
}

// remove does what an administrator would: kill, delete, again until it works.
func (l *life) remove() {
	l.t.Helper()
	eventually(l.t, patience, func() string {
		ctx, cancel := l.ctx(20 * time.Second)
		defer cancel()
		c, err := l.container(ctx)
		if errdefs.IsNotFound(err) {
			return ""
		}
		if err != nil {
			return err.Error()
		}
		task, err := c.Task(ctx, nil)
		if err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return "delete task: " + err.Error()
		}
		if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			return "delete container: " + err.Error()
		}
		return ""
	})
}

// step is one on a container's way, named for the OCI runtime's command.
type step struct {
	name string
	do   func(*life, context.Context) error
}

// steps lead through a container's life.
var steps = []step{
	{"create", (*life).create},
	{"start", (*life).start},
	{"exec", (*life).exec},
	{"update", func(l *life, ctx context.Context) error {
		shares := uint64(512)
		return l.task.Update(ctx, client.WithResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
	}},
	{"pause", func(l *life, ctx context.Context) error { return l.task.Pause(ctx) }},
	{"resume", func(l *life, ctx context.Context) error { return l.task.Resume(ctx) }},
	{"kill", (*life).kill},
	{"delete", func(l *life, ctx context.Context) error { _, err := l.task.Delete(ctx); return err }},
}

func stepAt(name string) int {
	return slices.IndexFunc(steps, func(s step) bool { return s.name == name })
}

// before takes the steps that come before one; through takes that one, too;
// after takes the rest.
func (l *life) before(name string)  { l.t.Helper(); l.take(steps[:stepAt(name)]) }
func (l *life) through(name string) { l.t.Helper(); l.take(steps[:stepAt(name)+1]) }
func (l *life) after(name string)   { l.t.Helper(); l.take(steps[stepAt(name)+1:]) }

func (l *life) take(steps []step) {
	l.t.Helper()
	for _, s := range steps {
		if err := s.do(l, l.e.ctx(l.t)); err != nil {
			l.t.Fatalf("%s: %v", s.name, err)
		}
	}
}

func (l *life) create(ctx context.Context) error {
	c, err := l.container(ctx)
	if err != nil {
		return err
	}
	var opts []client.NewTaskOpts
	if l.e.rt.Path != "" {
		opts = append(opts, client.WithRuntimePath(l.e.rt.Path))
	}
	stdio := l.io
	if stdio == nil {
		stdio = cio.NullIO
	}
	task, err := c.NewTask(ctx, stdio, opts...)
	if err != nil {
		return err
	}
	l.task, l.pid = task, int(task.Pid())
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.pid))
	if err != nil {
		return err
	}
	l.born = startTime(string(stat))
	return nil
}

func (l *life) start(ctx context.Context) error { return l.task.Start(ctx) }

// exec starts a process that stays.
func (l *life) exec(ctx context.Context) error {
	p, err := l.task.Exec(ctx, "e", &specs.Process{
		Args: []string{"/bin/sleep", "100000"}, Cwd: "/", Env: []string{"PATH=/bin"},
	}, cio.NullIO)
	if err != nil {
		return err
	}
	return p.Start(ctx)
}

func (l *life) kill(ctx context.Context) error {
	ended, err := l.task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := l.task.Kill(ctx, unix.SIGKILL); err != nil {
		return err
	}
	select {
	case s := <-ended:
		return s.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload is for after a restart of containerd: the task as it knows it.
func (l *life) reload() {
	l.t.Helper()
	ctx := l.e.ctx(l.t)
	c, err := l.container(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	if l.task, err = c.Task(ctx, nil); err != nil {
		l.t.Fatal(err)
	}
}

// gone returns "" when init does not exist any more.
func (l *life) gone() string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.pid))
	if err == nil && startTime(string(stat)) == l.born && !strings.Contains(string(stat), ") Z ") {
		return fmt.Sprintf("process %d of the container is there", l.pid)
	}
	return ""
}

// shimPid finds the container's shim by its arguments, 0 if there is none.
func (l *life) shimPid() int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		words := strings.Split(string(text), "\x00")
		at := slices.Index(words, "-id")
		if at < 0 || at+1 >= len(words) || words[at+1] != l.id || slices.Contains(words, "start") || slices.Contains(words, "delete") {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
		return pid
	}
	return 0
}

// killShim kills the container's shim by SIGKILL.
func (l *life) killShim() {
	l.t.Helper()
	eventually(l.t, patience, func() string {
		pid := l.shimPid()
		if pid == 0 {
			return "no shim"
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err.Error()
		}
		return ""
	})
}

// taskGone returns "" when containerd has no task of the container.
func (l *life) taskGone() string {
	ctx, cancel := l.ctx(10 * time.Second)
	defer cancel()
	c, err := l.container(ctx)
	if err != nil {
		return err.Error()
	}
	if _, err := c.Task(ctx, nil); !errdefs.IsNotFound(err) {
		return fmt.Sprintf("the task is there: %v", err)
	}
	return ""
}

// during begins a step whose command of the runtime hangs. It returns when the
// command runs, or the step has been taken without it, which is possible for the
// shim's shortcuts. The function that it returns waits for the step's end.
func (l *life) during(s *saboteur, name string) func() {
	l.t.Helper()
	l.before(name)
	s.inject(l.t, "hang", name)
	ctx, cancel := l.ctx(patience)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = steps[stepAt(name)].do(l, ctx) // interfered with
	}()
	eventually(l.t, patience, func() string {
		select {
		case <-done:
			return ""
		default:
		}
		if !s.called(name) {
			return "the runtime is not asked to " + name
		}
		return ""
	})
	return func() {
		cancel()
		<-done
	}
}

// sub is a subtest of its own, with a count of everything before and after.
func (e *env) sub(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		within(t, e, func(t *testing.T, _ *env) { f(t) })
	})
}

// TestFaultyRuntime lets the OCI runtime fail, then hang, in each call.
func TestFaultyRuntime(t *testing.T) {
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		for _, how := range []string{"fail", "hang"} {
			for _, s := range steps {
				e.sub(t, how+" "+s.name, func(t *testing.T) { faultyCall(t, e, how, s.name, s.do) })
			}
		}
		// Nothing depends on these.
		for _, command := range []string{"state", "features", "ps"} {
			e.sub(t, "fail "+command, func(t *testing.T) {
				s := sabotage(t)
				s.inject(t, "fail", command)
				e.live(t, s.options(e.rt)).through("delete")
			})
		}
	})
}

func faultyCall(t *testing.T, e *env, how, command string, do func(*life, context.Context) error) {
	s := sabotage(t)
	l := e.live(t, s.options(e.rt))
	// The runtime stays as it is until a half-made container is gone.
	if command != "create" {
		defer s.relent(t)
	}
	l.before(command)
	s.inject(t, how, command)
	limit := patience
	if how == "hang" {
		limit = 2 * time.Second
	}
	ctx, cancel := l.ctx(limit)
	defer cancel()
	err := do(l, ctx)
	switch {
	case !s.called(command):
		if err != nil {
			t.Errorf("%s without the runtime: %v", command, err)
		}
	case how == "fail" && command == "delete" && err == nil:
		// What the runtime does not remove is removed without it.
	case how == "fail" && (err == nil || e.rt.Berth && !strings.Contains(err.Error(), "sabotaged")):
		t.Errorf("%s: %v, want the runtime's message", command, err)
	case how == "hang" && err == nil:
		t.Errorf("%s succeeds although the runtime hangs", command)
	}
	// The shim answers while it waits for its runtime.
	if how == "hang" && l.task != nil && e.rt.Berth {
		ctx, cancel := l.ctx(5 * time.Second)
		defer cancel()
		if _, err := l.task.Status(ctx); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("status while the runtime hangs: %v", err)
		}
	}
}

// TestShimKilled kills the shim by SIGKILL at each step. 29: the container's
// processes are gone, and an exit is seen.
func TestShimKilled(t *testing.T) {
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t) // killed, the stock shim leaves its socket
		r := e.record(t)
		for _, state := range []string{"create", "start", "exec", "pause", "kill"} {
			e.sub(t, "after "+state, func(t *testing.T) {
				l := e.live(t, nil)
				l.through(state)
				l.killShim()
				eventually(t, patience, l.gone)
				eventually(t, patience, l.taskGone)
				checkExit(t, r, l.id, uint32(128+unix.SIGKILL))
			})
		}
		e.sub(t, "after exit", func(t *testing.T) {
			l := e.live(t, nil, oci.WithProcessArgs("sh", "-c", "exit 7"))
			l.through("start")
			r.until(t, l.id, "exit")
			l.killShim()
			eventually(t, patience, l.taskGone)
			checkExit(t, r, l.id, 7)
		})
		for _, command := range []string{"create", "exec", "delete"} {
			e.sub(t, "during "+command, func(t *testing.T) {
				s := sabotage(t)
				l := e.live(t, s.options(e.rt))
				wait := l.during(s, command)
				if pid := l.shimPid(); pid != 0 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
				s.relent(t)
				wait()
				eventually(t, patience, l.taskGone)
				if l.pid != 0 {
					eventually(t, patience, l.gone)
				}
				if command == "delete" {
					e.awaitSocket(t, l.id)
				}
			})
		}
	})
}

// awaitSocket waits until the socket of a shim is gone that was killed while a client
// deleted the task. containerd takes the bundle away then, at the same time as it executes
// the shim's delete; when that comes too late it finds no plan, warns, and looks for the
// socket in the default folder, which this is not: then it is removed here.
func (e *env) awaitSocket(t *testing.T, id string) {
	t.Helper()
	eventually(t, patience, func() string {
		left, err := filepath.Glob(e.Dir + "/s/*")
		if err != nil {
			return err.Error()
		}
		if len(left) == 0 {
			return ""
		}
		if !strings.Contains(e.Log(60), `"warnings while cleaning up dead shim" id=`+id+" ") {
			return fmt.Sprintf("sockets %v", left)
		}
		for _, socket := range left {
			if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err.Error()
			}
		}
		return ""
	})
}

// checkExit looks at the last exit event of a container.
func checkExit(t *testing.T, r *recorder, id string, code uint32) {
	t.Helper()
	r.until(t, id, "delete")
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []uint32
	for _, x := range r.list {
		if exit, ok := x.event.(interface{ GetExitStatus() uint32 }); ok && x.id == id && x.name == "exit" {
			got = append(got, exit.GetExitStatus())
		}
	}
	if len(got) == 0 || got[len(got)-1] != code {
		t.Errorf("exit events with %v, want %d last", got, code)
	}
}

// TestContainerdKilled kills containerd by SIGKILL at each step and starts it
// again: what was there goes on.
func TestContainerdKilled(t *testing.T) {
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		restart := func(t *testing.T) {
			t.Helper()
			if err := e.Kill(); err != nil {
				t.Fatal(err)
			}
			e.startAgain(t)
		}
		for _, state := range []string{"create", "start", "exec", "pause"} {
			e.sub(t, "after "+state, func(t *testing.T) {
				l := e.live(t, nil)
				l.through(state)
				restart(t)
				l.reload()
				if int(l.task.Pid()) != l.pid || l.gone() == "" {
					t.Errorf("process %d after the restart, %d before; gone: %t", l.task.Pid(), l.pid, l.gone() == "")
				}
				l.after(state) // as if nothing had been
			})
		}
		e.sub(t, "after exit", func(t *testing.T) {
			e.berthOnly(t) // containerd reaps a stock shim whose container has ended
			l := e.live(t, nil, oci.WithProcessArgs("sh", "-c", "exit 7"))
			l.through("start")
			eventually(t, patience, l.gone)
			restart(t)
			l.reload()
			s, err := l.task.Status(e.ctx(t))
			if err != nil || s.Status != client.Stopped || s.ExitStatus != 7 {
				t.Errorf("status %v, %v, want stopped with 7", s, err)
			}
			if _, err := l.task.Delete(e.ctx(t)); err != nil {
				t.Error(err)
			}
		})
		for _, command := range []string{"create", "start", "exec", "kill", "delete"} {
			e.sub(t, "during "+command, func(t *testing.T) {
				s := sabotage(t)
				l := e.live(t, s.options(e.rt))
				wait := l.during(s, command)
				if err := e.Kill(); err != nil {
					t.Fatal(err)
				}
				wait()
				s.relent(t)
				e.startAgain(t)
			})
		}
	})
}

// startAgain starts containerd and makes it open what it opens on demand, so
// that it has been counted.
func (e *env) startAgain(t *testing.T) {
	t.Helper()
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	snapshotter := e.Client().SnapshotService("overlayfs")
	err := snapshotter.Walk(e.ctx(t), func(ctx context.Context, s snapshots.Info) error {
		_, err := snapshotter.Stat(ctx, s.Name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestoreInterrupted: a signal that comes while a container is being restored
// reaches it, and a restore that is given up leaves nothing. Needs criu.
func TestRestoreInterrupted(t *testing.T) {
	if os.Getenv("BERTH_TEST_OCI") == "crun" {
		t.Skip("Debian's crun needs libcriu, which .deps does not have")
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		images := t.TempDir()
		s := e.shim(t)
		s.run(t, stdio{})
		exit, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{Exit: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Checkpoint(e.ctx(t), &taskapi.CheckpointTaskRequest{ID: s.id, Path: images, Options: exit}); err != nil {
			t.Fatal(err)
		}
		s.wait(t, "")
		s.delete(t, "")
		s.end(t)

		r := e.record(t)
		// restore begins to restore, and lets meanwhile happen in the middle of it.
		restore := func(name string, limit time.Duration, meanwhile func(s *shim, sab *saboteur)) (*shim, error) {
			t.Helper()
			sab := sabotage(t)
			s := e.shimNamed(t, id(t)+name, sab.options(e.rt).(proto.Message))
			_, err := s.Create(e.ctx(t), &taskapi.CreateTaskRequest{ID: s.id, Bundle: s.bundle, Rootfs: s.root, Checkpoint: images})
			if err != nil {
				t.Fatal(err)
			}
			sab.inject(t, "hang", "restore")
			started := make(chan error, 1)
			ctx, cancel := context.WithTimeout(e.ctx(t), limit)
			defer cancel()
			go func() {
				_, err := s.Start(ctx, &taskapi.StartRequest{ID: s.id})
				started <- err
			}()
			eventually(t, patience, func() string {
				if !sab.called("restore") {
					return "the runtime is not asked to restore"
				}
				return ""
			})
			meanwhile(s, sab)
			return s, <-started
		}
		killed := make(chan error, 1)
		s, err = restore("-killed", patience, func(s *shim, sab *saboteur) {
			go func() {
				_, err := s.Kill(e.ctx(t), &taskapi.KillRequest{ID: s.id, Signal: uint32(unix.SIGKILL)})
				killed <- err
			}()
			if got := s.status(t); got != tasktypes.Status_CREATED { // behind the signal
				t.Errorf("%v while it is being restored", got)
			}
			sab.relent(t)
		})
		if err != nil {
			t.Fatalf("start: %v", err)
		}
		if err := <-killed; err != nil {
			t.Errorf("kill: %v", err)
		}
		if got := s.wait(t, ""); got != 137 {
			t.Errorf("exit status %d, want 137", got)
		}
		s.delete(t, "")
		if got, want := r.until(t, s.id, "delete"), []string{"create", "start", "exit", "delete"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}

		var left string
		s, err = restore("-given-up", 2*time.Second, func(s *shim, _ *saboteur) {
			left = "/run/containerd/runc/" + e.Namespace + "/" + s.id // of a runtime that had begun
			if err := os.MkdirAll(left, 0o700); err != nil {
				t.Error(err)
			}
		})
		if err == nil {
			t.Error("a restore that hangs succeeds")
		}
		eventually(t, patience, func() string {
			if _, err := s.Delete(e.ctx(t), &taskapi.DeleteRequest{ID: s.id}); err != nil {
				return err.Error()
			}
			return ""
		})
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is left", left)
		}
	})
}
