// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	eventapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// TestPodsSurviveContainerd restarts containerd under running pods. 77 with
// pods; and what ends meanwhile is known afterwards.
func TestPodsSurviveContainerd(t *testing.T) {
	nodes(t, func(t *testing.T, n *node) {
		n.sub(t, "SIGTERM", func(t *testing.T, n *node) { restartUnder(t, n, n.Daemon.Stop) })
		n.sub(t, "SIGKILL", func(t *testing.T, n *node) { restartUnder(t, n, n.Kill) })
	})
}

func restartUnder(t *testing.T, n *node, end func() error) {
	shared := t.TempDir() // how the test and a container tell each other when to go on
	mount := &runtime.Mount{ContainerPath: "/shared", HostPath: shared}
	pod, other := n.pod(t), n.pod(t)
	counter := shell("counter", "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done")
	ending := shell("ending", "echo begin; until [ -e /shared/end ]; do usleep 20000; done; echo end; exit 5")
	ending.Mounts = []*runtime.Mount{mount}
	counting := startIn(t, n, pod, counter)
	idling := startIn(t, n, pod, idle("idle"))
	leaving := startIn(t, n, other, ending)
	awaitLog(t, logOf(other, ending), "begin")
	identity := n.check(t, idling, "cat", "/proc/1/stat")

	if err := end(); err != nil {
		t.Fatal(err)
	}
	write(t, shared+"/end", "")
	awaitGrowth(t, logOf(pod, counter))
	time.Sleep(time.Second) // some output without a reader
	if err := n.Daemon.Start(); err != nil {
		t.Fatal(err)
	}
	n.connect(t)
	exits := n.exits(t)
	pod, other = pod.Use(n.Client), other.Use(n.Client)

	for _, p := range []*cri.Pod{pod, other} {
		if s, err := p.Status(n.ctx(t)); err != nil || s.GetState() != runtime.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s is %v, %v", p.Config.GetMetadata().GetName(), s.GetState(), err)
		}
	}
	// containerd reaps a stock shim whose container has ended, before it asks.
	if s := n.awaitState(t, leaving, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 5 && n.rt.Berth {
		t.Errorf("what ended meanwhile has exit code %d, want 5", s.GetExitCode())
	}
	for _, id := range []string{counting, idling} {
		if s, err := n.ContainerStatus(n.ctx(t), id); err != nil || s.GetState() != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container is %v, %v", s.GetState(), err)
		}
	}
	if got := n.check(t, idling, "cat", "/proc/1/stat"); startTime(got) != startTime(identity) {
		t.Errorf("another process: %q, before %q", got, identity)
	}
	if n.rt.Berth {
		awaitLog(t, logOf(other, ending), "end")
	}
	// The log goes on, and nothing is missing from it.
	before := countLog(t, logOf(pod, counter))
	eventually(t, patience, func() string {
		if now := countLog(t, logOf(pod, counter)); now < before+20 {
			return fmt.Sprintf("the counter goes from %d to %d", before, now)
		}
		return ""
	})
	// A new container in an old pod.
	again := startIn(t, n, pod, shell("again", "echo hello"))
	if s := n.awaitState(t, again, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 0 {
		t.Errorf("a new container in the old pod: exit code %d", s.GetExitCode())
	}
	for _, id := range exits() {
		if id == counting || id == idling || id == pod.ID || id == other.ID {
			t.Errorf("an exit of the running %s is invented", id)
		}
	}
	if err := n.Client.Stop(n.ctx(t), idling, 10*time.Second); err != nil {
		t.Error(err)
	}
	if s := n.awaitState(t, idling, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 0 {
		t.Errorf("stopped after the restart: exit code %d, want 0", s.GetExitCode())
	}
}

// startTime is the field of /proc/PID/stat that tells processes of one number
// apart.
func startTime(stat string) string {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	return fields[19]
}

// countLog checks that a log has the lines 1, 2, 3 ... and returns the last.
func countLog(t *testing.T, path string) int {
	t.Helper()
	pieces, err := cri.ReadLog(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pieces {
		if p.Text != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, p.Text)
		}
	}
	return len(pieces)
}

// exits records exit events of the CRI's containers; the function it returns
// tells whose there were.
func (n *node) exits(t *testing.T) func() []string {
	t.Helper()
	stream, errs := n.Daemon.Client().Subscribe(n.ctx(t), `topic=="/tasks/exit"`)
	return func() []string {
		var ids []string
		for {
			select {
			case envelope := <-stream:
				event, err := typeurl.UnmarshalAny(envelope.Event)
				if exit, ok := event.(*eventapi.TaskExit); ok && exit.GetID() == exit.GetContainerID() {
					ids = append(ids, exit.GetContainerID())
				} else if err != nil {
					t.Error(err)
				}
			case err := <-errs:
				t.Errorf("events: %v", err)
				return ids
			default:
				return ids
			}
		}
	}
}

// TestOutputWithoutReader stops containerd, the reader of a container's output,
// while the container writes much: it does not notice, and afterwards the log
// has every byte in order. Short by default; BERTH_TEST_FULL=1 for 50 MB in a
// minute.
func TestOutputWithoutReader(t *testing.T) {
	pause, chunks := 100*time.Millisecond, 100
	if os.Getenv("BERTH_TEST_FULL") != "" {
		pause = 600 * time.Millisecond
	}
	nodes(t, func(t *testing.T, n *node) {
		n.berthOnly(t)
		if n.pauseless() {
			t.Skip("the sandbox has no part in it")
		}
		n.sub(t, "spooled", func(t *testing.T, n *node) {
			w := n.writer(t, n.handler, chunks, pause)
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			w.resume(t)
			eventually(t, 2*patience, w.done) // while nobody reads
			w.restart(t)
			w.checkLog(t)
		})
		n.sub(t, "bounded", func(t *testing.T, n *node) {
			if n.rt.Name != host.Native.Name {
				t.Skip("the drop-in form's options have no bound")
			}
			w := n.writer(t, handlerBounded, chunks, 0)
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			w.resume(t)
			written := w.stall(t)
			// 4 MiB of spool and what fits into pipes, in pieces of 500 kB.
			if written < 8 || written > 14 {
				t.Errorf("%d pieces written before it blocks, want about 9", written)
			}
			w.restart(t)
			eventually(t, 2*patience, w.done)
			w.checkLog(t)
		})
	})
}

// chunkLines lines of lineBytes are 500 kB.
const (
	chunkLines = 500
	lineBytes  = 1000
)

// writer is a container that writes numbered lines in pieces, once told so, and
// counts the pieces in a file.
type writer struct {
	n      *node
	pod    *cri.Pod
	config *runtime.ContainerConfig
	id     string
	shared string
	chunks int
}

func (n *node) writer(t *testing.T, handler string, chunks int, pause time.Duration) *writer {
	t.Helper()
	w := &writer{n: n, shared: t.TempDir(), chunks: chunks}
	w.pod = n.podOf(t, handler)
	pad := strings.Repeat("x", lineBytes-8)
	w.config = shell("writer", fmt.Sprintf(`
		echo begin
		until [ -e /shared/go ]; do usleep 10000; done
		i=0
		while [ $i -lt %d ]; do
			seq -w $((1000000+i*%d)) $((1000000+(i+1)*%d-1)) | sed 's/$/%s/'
			i=$((i+1)); echo $i > /shared/tmp; mv /shared/tmp /shared/count
			usleep %d
		done
		echo the end`, chunks, chunkLines, chunkLines, pad, pause.Microseconds()))
	w.config.Mounts = []*runtime.Mount{{ContainerPath: "/shared", HostPath: w.shared}}
	w.id = startIn(t, n, w.pod, w.config)
	awaitLog(t, logOf(w.pod, w.config), "begin")
	return w
}

func (w *writer) resume(t *testing.T) { write(t, w.shared+"/go", "") }

func (w *writer) restart(t *testing.T) {
	t.Helper()
	if err := w.n.Daemon.Start(); err != nil {
		t.Fatal(err)
	}
	w.n.connect(t)
}

func (w *writer) written() int {
	text, _ := os.ReadFile(w.shared + "/count")
	count, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return count
}

// done returns "" when everything is written.
func (w *writer) done() string {
	if n := w.written(); n < w.chunks {
		return fmt.Sprintf("%d pieces of %d are written", n, w.chunks)
	}
	return ""
}

// stall waits until nothing has been written for two seconds and returns how
// many pieces were.
func (w *writer) stall(t *testing.T) int {
	t.Helper()
	last, since := -1, time.Now()
	eventually(t, patience, func() string {
		if now := w.written(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < 2*time.Second {
			return "it writes on"
		}
		return ""
	})
	return last
}

func (w *writer) checkLog(t *testing.T) {
	t.Helper()
	out, _ := awaitLog(t, logOf(w.pod, w.config), "the end")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != w.chunks*chunkLines+2 {
		t.Fatalf("%d lines, want %d", len(lines), w.chunks*chunkLines+2)
	}
	for i, line := range lines[1 : len(lines)-1] {
		if len(line) != lineBytes-1 || !strings.HasPrefix(line, strconv.Itoa(1000000+i)+"x") {
			t.Fatalf("line %d is %.20q with %d bytes", i, line, len(line))
		}
	}
	if s := w.n.awaitState(t, w.id, runtime.ContainerState_CONTAINER_EXITED); s.GetExitCode() != 0 {
		t.Errorf("exit code %d, want 0", s.GetExitCode())
	}
}
