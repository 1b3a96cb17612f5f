// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// handlerLimited is a runtime handler whose containers have berth's snapshotter.
const handlerLimited = "limited"

// berthdForms are the ways to have berth's snapshotter.
func berthdForms(t *testing.T, f func(t *testing.T, b *berthd)) {
	for _, form := range []string{"compiled in", "proxy"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			b := &berthd{dir: shortDir(t), program: host.Build("bin/berthd")}
			o := host.Options{TOML: "  " + strings.TrimSpace(handlerConfig(pauseless, handlerLimited, `snapshotter = "berth"`)) + `
[plugins.'io.containerd.cri.v1.images']
  # The CRI plugin collects the usage of its default snapshotter's layers only.
  snapshotter = "berth"
  stats_collect_period = 1
`}
			settings := "[images]\npinned_images = ['*busybox*']\n"
			if form == "proxy" {
				b.configure(t, settings+"[snapshotter]\nroot_path = 'DIR/layers'\nsize = '64MiB'\n[proxy]\naddress = 'DIR/p.sock'\n")
				o.TOML += b.section(t)
				b.start(t)
			} else {
				b.configure(t, settings)
				o.Program = b.program
				o.TOML += fmt.Sprintf(`
[plugins.'io.containerd.snapshotter.v1.berth']
  size = '64MiB'
[plugins.'io.containerd.internal.v1.berth-pins']
  config_path = %q
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "berth"
`, b.config)
			}
			b.node = newNode(t, pauseless, o)
			if form == "proxy" {
				b.configure(t, settings+fmt.Sprintf("[snapshotter]\nroot_path = 'DIR/layers'\nsize = '64MiB'\n[proxy]\naddress = 'DIR/p.sock'\ncontainerd_address = %q\n", b.Socket))
				b.reload(t)
			}
			f(t, b)
		})
	}
}

// berthd is a node with berth's snapshotter.
type berthd struct {
	*node
	dir, program, config string
	cmd                  *exec.Cmd     // of the proxy
	ended                chan struct{} // closed once it has ended
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (b *berthd) proxied() bool { return b.cmd != nil }

func (b *berthd) configure(t *testing.T, text string) {
	t.Helper()
	b.config = b.dir + "/berth.toml"
	write(t, b.config, strings.ReplaceAll(text, "DIR", b.dir))
}

// section is what containerd needs to use the proxy, without the version that its
// own configuration has.
func (b *berthd) section(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(b.program, "config", "proxy", "--config", b.config).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(out), "\n")
	return text
}

// start starts the proxy and waits until it says that it is ready, as systemd does.
func (b *berthd) start(t *testing.T) {
	t.Helper()
	ready := notifications(t, b.dir+"/notify")
	b.cmd = exec.Command(b.program, "proxy", "--config", b.config)
	b.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+b.dir+"/notify")
	log, err := os.OpenFile(b.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, ended := b.cmd, make(chan struct{})
	b.ended = ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if text, _ := os.ReadFile(b.dir + "/log"); t.Failed() {
			t.Logf("the proxy's log:\n%s", text)
		}
	})
	ready("READY=1")
}

// notifications listens at a socket of sd_notify(3), and returns what waits for a
// message there.
func notifications(t *testing.T, path string) (await func(message string)) {
	t.Helper()
	_ = os.Remove(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	limit := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	return func(message string) {
		t.Helper()
		buffer := make([]byte, 256)
		for {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				t.Fatalf("%s was not said: %v", message, err)
			}
			if strings.Contains(string(buffer[:n]), message) {
				return
			}
		}
	}
}

// reload has the proxy start itself again, and waits until it serves.
func (b *berthd) reload(t *testing.T) {
	t.Helper()
	ready := notifications(t, b.dir+"/notify")
	if err := b.cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ready("READY=1")
}

// A container over its limit gets an error and nobody else does; its usage is told.
func TestBerthdLimit(t *testing.T) {
	berthdForms(t, func(t *testing.T, b *berthd) {
		pod := b.podOf(t, handlerLimited)
		big, small := in(pod, "trap 'exit 0' TERM; sleep 100000 & wait"), in(pod, "trap 'exit 0' TERM; sleep 100000 & wait")
		full, neighbour := startIn(t, b.node, pod, big), startIn(t, b.node, pod, small)
		got, err := b.ExecSync(b.ctx(t), full, 0, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=100")
		if err != nil {
			t.Fatal(err)
		}
		if said := string(got.GetStderr()); got.GetExitCode() == 0 || !strings.Contains(said, "No space left on device") && !strings.Contains(said, "Disk quota exceeded") {
			t.Errorf("100 MB into 64: exit code %d, %s", got.GetExitCode(), said)
		}
		bytes, err := strconv.Atoi(strings.Fields(b.check(t, full, "wc", "-c", "/big"))[0])
		if err != nil || bytes < 60<<20 || bytes > 68<<20 {
			t.Errorf("full after %d bytes: %v", bytes, err)
		}
		b.check(t, neighbour, "dd", "if=/dev/zero", "of=/small", "bs=1M", "count=40")
		eventually(t, patience, func() string {
			stats, err := b.ContainerStats(b.ctx(t), &runtime.ContainerStatsRequest{ContainerId: full})
			if err != nil {
				return err.Error()
			}
			used := stats.GetStats().GetWritableLayer().GetUsedBytes().GetValue()
			if used < 60<<20 || used > 72<<20 {
				return fmt.Sprintf("usage of %d bytes", used)
			}
			return ""
		})
	})
}

// Pods run on while the daemon that has the snapshotter is started again, and calls
// are not lost by a reload, nor for ever by a crash.
func TestBerthdRestart(t *testing.T) {
	berthdForms(t, func(t *testing.T, b *berthd) {
		pod := b.podOf(t, handlerLimited)
		config := in(pod, "trap 'exit 0' TERM; echo up; sleep 100000 & wait")
		id := startIn(t, b.node, pod, config)
		awaitLog(t, logOf(pod, config), "up")
		b.check(t, id, "sh", "-c", "echo kept > /kept")
		if b.proxied() {
			b.loseNothing(t)
			b.crash(t)
		} else {
			if err := b.Daemon.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := b.Daemon.Start(); err != nil {
				t.Fatal(err)
			}
			b.connect(t)
		}
		if got := b.check(t, id, "cat", "/kept"); got != "kept" {
			t.Errorf("the container's file has %q", got)
		}
		startIn(t, b.node, pod.Use(b.Client), in(pod, "true"))
	})
}

// loseNothing makes and removes snapshots while the proxy is reloaded again and
// again: no call fails.
func (b *berthd) loseNothing(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(b.Context(b.ctx(t)))
	defer cancel()
	layers := b.Daemon.Client().SnapshotService("berth")
	// What nothing refers to is collected as garbage.
	lease, done, err := b.Daemon.Client().WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(context.WithoutCancel(lease)); err != nil {
			t.Error(err)
		}
	}()
	var callers sync.WaitGroup
	var calls [4]int
	for i := range calls {
		callers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("caller%d-%d", i, n)
				_, err := layers.Prepare(context.WithoutCancel(lease), key, "")
				if err == nil {
					err = layers.Remove(context.WithoutCancel(lease), key)
				}
				if err != nil {
					t.Errorf("call %d of caller %d: %v", n, i, err)
					return
				}
				calls[i]++
			}
		})
	}
	pid := b.cmd.Process.Pid
	for range 5 {
		b.reload(t)
	}
	cancel()
	callers.Wait()
	t.Logf("calls: %v", calls)
	for _, n := range calls {
		if n == 0 {
			t.Error("a caller got nothing done")
		}
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || got != b.program {
		t.Errorf("the proxy's process has the program %q: %v", got, err)
	}
}

// crash kills the proxy.
func (b *berthd) crash(t *testing.T) {
	t.Helper()
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-b.ended
	b.comesBack(t)
}

// comesBack starts the proxy: calls fail with the class Unavailable until it is there,
// and then succeed without a restart of containerd.
func (b *berthd) comesBack(t *testing.T) {
	t.Helper()
	ctx := b.Context(b.ctx(t))
	layers := b.Daemon.Client().SnapshotService("berth")
	if _, err := layers.Prepare(ctx, "waits", ""); !errdefs.IsUnavailable(err) {
		t.Errorf("without the proxy: %v", err)
	}
	b.start(t)
	eventually(t, patience, func() string {
		if _, err := layers.Prepare(ctx, "waits", ""); err != nil {
			return err.Error()
		}
		return ""
	})
	if err := layers.Remove(ctx, "waits"); err != nil && !errdefs.IsNotFound(err) { // it may be collected already
		t.Error(err)
	}
}

// berth's plugins are there, none of them with an error, and pins follow the
// configuration.
func TestBerthdPlugins(t *testing.T) {
	berthdForms(t, func(t *testing.T, b *berthd) {
		out, err := b.Ctr("plugins", "ls").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"io.containerd.snapshotter.v1": "ok"}
		if !b.proxied() {
			want["io.containerd.image-verifier.v1"] = "skip" // not enabled
			want["io.containerd.internal.v1"] = "ok"
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) < 4 || !strings.HasPrefix(f[1], "berth") {
				continue
			}
			if f[len(f)-1] != want[f[0]] {
				t.Errorf("%s.%s is %s, want %s", f[0], f[1], f[len(f)-1], want[f[0]])
			}
			delete(want, f[0])
		}
		if len(want) > 0 {
			t.Errorf("not there: %v in\n%s", want, out)
		}
		b.awaitPinned(t, true)
		write(t, b.config+".new", strings.ReplaceAll(readFile(t, b.config), "*busybox*", "other"))
		if err := os.Rename(b.config+".new", b.config); err != nil {
			t.Fatal(err)
		}
		b.awaitPinned(t, false)
	})
}

// awaitPinned waits until the kubelet's garbage collection spares busybox, or does
// not.
func (b *berthd) awaitPinned(t *testing.T, want bool) {
	t.Helper()
	eventually(t, patience, func() string {
		status, err := b.Images.ImageStatus(b.ctx(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: host.Busybox}})
		if err != nil {
			return err.Error()
		}
		if got := status.GetImage().GetPinned(); got != want {
			return fmt.Sprintf("pinned is %v", got)
		}
		return ""
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What the kubelet pulls is unpacked to berth's snapshotter.
func TestBerthdPull(t *testing.T) {
	berthdForms(t, func(t *testing.T, b *berthd) {
		img := publish(t)
		_, err := b.Images.PullImage(b.ctx(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: img, RuntimeHandler: handlerLimited}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := b.Ctr("-n", criNamespace, "images", "check", "--snapshotter", "berth", "name=="+img).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "complete (") || !strings.Contains(string(out), "true") {
			t.Errorf("%v, %s", err, out)
		}
		// A layer that is there needs no fetching.
		ctx := namespaces.WithNamespace(b.ctx(t), criNamespace)
		layers := b.Daemon.Client().SnapshotService("berth")
		err = layers.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			label := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": info.Name})
			if _, err := layers.Prepare(ctx, "extract-"+info.Name, info.Parent, label); !errdefs.IsAlreadyExists(err) {
				t.Errorf("prepare for %s: %v", info.Name, err)
			}
			return nil
		}, "kind==committed")
		if err != nil {
			t.Error(err)
		}
	})
}

// publish puts a small image into a registry of the test's and returns its name.
func publish(t *testing.T) string {
	t.Helper()
	registry, err := server.Start(t.Context(), server.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registry.Close)
	img, err := image.New(registry.Address+"/app:1", []image.File{{Path: "name", Mode: 0o644}}, v1.ImageConfig{})
	if err == nil {
		err = registry.Push(t.Context(), img.Ref, img.Manifest(), img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img.Ref
}

// The verifier that is compiled in holds pulls against the policy.
func TestBerthdVerifier(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/policy.json", `{"default": [{"type": "reject"}]}`)
	write(t, dir+"/berth.toml", fmt.Sprintf("[images]\nsignature_policy = %q\n", dir+"/policy.json"))
	d := host.Run(t, host.Options{Program: host.Build("bin/berthd"), TOML: fmt.Sprintf(`
[plugins.'io.containerd.image-verifier.v1.berth']
  enabled = true
  config_path = %q
`, dir+"/berth.toml")})
	img := publish(t)
	pull := func() (string, error) {
		out, err := d.Ctr("images", "pull", "--plain-http", img).CombinedOutput()
		return string(out), err
	}
	if out, err := pull(); err == nil || !strings.Contains(out, "signature rejected") {
		t.Errorf("a rejected image: %v, %s", err, out)
	}
	write(t, dir+"/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	if out, err := pull(); err != nil {
		t.Errorf("an accepted image: %v, %s", err, out)
	}
}

// Files of a container with a user namespace are its root's, without a copy.
func TestBerthdOwners(t *testing.T) {
	berthdForms(t, func(t *testing.T, b *berthd) {
		run := b.ctrRun(t, "--rm", "--snapshotter", "berth", "--remap-labels", "--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536",
			host.Busybox, id(t), "sh", "-c", "stat -c %u:%g /bin/busybox && echo written > /file && stat -c %u:%g /file")
		run.Env = append(run.Env, "CONTAINERD_NAMESPACE="+criNamespace)
		if out, err := run.Output(); err != nil || string(out) != "0:0\n0:0\n" {
			t.Errorf("%v, %s", err, out)
		}
		list := b.ctr(t, "-n", criNamespace, "snapshots", "--snapshotter", "berth", "ls")
		if strings.Count(list, " Committed") != 1 {
			t.Errorf("want the image's only layer, without a copy:\n%s", list)
		}
	})
}

// containerd starts without the proxy, and needs no other start when it is there.
func TestBerthdLate(t *testing.T) {
	b := &berthd{dir: shortDir(t), program: host.Build("bin/berthd")}
	b.configure(t, "[snapshotter]\nroot_path = 'DIR/layers'\n[proxy]\naddress = 'DIR/p.sock'\n")
	b.node = &node{env: &env{Daemon: host.Run(t, host.Options{TOML: b.section(t)})}}
	b.comesBack(t)
}

// A configuration of any version that containerd reads has berth's sections.
func TestBerthdVersions(t *testing.T) {
	for _, version := range []int{2, 3, 4} {
		path := filepath.Join(t.TempDir(), "config.toml")
		write(t, path, fmt.Sprintf(`version = %d
[plugins.'io.containerd.snapshotter.v1.berth']
  size = '64MiB'
[plugins.'io.containerd.image-verifier.v1.berth']
  enabled = true
[plugins.'io.containerd.internal.v1.berth-pins']
  config_path = '/some/berth.toml'
`, version))
		out, err := exec.Command(host.Build("bin/berthd"), "--config", path, "config", "dump").Output()
		for _, want := range []string{"size = '64MiB'", "enabled = true", "config_path = '/some/berth.toml'"} {
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("version %d: %v: %q is not in: %s", version, err, want, out)
			}
		}
	}
}

// What is disabled, or cannot be on a file system, is not there, leaves nothing, and
// keeps containerd from nothing.
func TestBerthdWithout(t *testing.T) {
	program := host.Build("bin/berthd")
	t.Run("disabled", func(t *testing.T) {
		e := &env{Daemon: host.Run(t, host.Options{Program: program, Disabled: []string{
			"io.containerd.snapshotter.v1.berth", "io.containerd.image-verifier.v1.berth", "io.containerd.internal.v1.berth-pins",
		}})}
		if out := e.ctr(t, "plugins", "ls"); strings.Contains(out, "berth") {
			t.Error(out)
		}
		for _, dir := range []string{e.Dir + "/root", e.State()} {
			if left, err := filepath.Glob(dir + "/*berth*"); err != nil || len(left) > 0 {
				t.Errorf("%v, %v", left, err)
			}
		}
	})
	t.Run("on an overlay", func(t *testing.T) {
		dir := overlay(t)
		root := dir + "/some/layers"
		e := &env{Daemon: host.Run(t, host.Options{Program: program, TOML: fmt.Sprintf("[plugins.'io.containerd.snapshotter.v1.berth']\n  root_path = %q\n", root)})}
		out := e.ctr(t, "plugins", "ls", "--detailed", "type==io.containerd.snapshotter.v1,id==berth")
		if !strings.Contains(out, "skip") || !strings.Contains(out, root) {
			t.Error(out)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v, %v", left, err)
		}
	})
}

// overlay mounts an empty one until the end of the test.
func overlay(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := dir + "/merged"
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// A daemon with a configuration that is wrong says so and ends, or does without the
// part.
func TestBerthdMistakes(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":  {"[proxy]\nadress = '/x'", "unknown key proxy.adress"},
		"size":         {"[snapshotter]\nsize = 'much'", "much"},
		"no such root": {"[snapshotter]\nroot_path = '/proc/none'\n[proxy]\naddress = 'DIR/p.sock'", "/proc/none"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			config := filepath.Join(dir, "berth.toml")
			write(t, config, strings.ReplaceAll(c.text, "DIR", dir))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, host.Build("bin/berthd"), "proxy", "--config", config)
			cmd.WaitDelay = time.Second
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("%v, %s", err, out)
			}
			if _, err := os.Stat(dir + "/p.sock"); err == nil {
				t.Error("a socket is left")
			}
		})
	}
}
