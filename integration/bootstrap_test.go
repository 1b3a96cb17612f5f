// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	runcopts "github.com/containerd/containerd/api/types/runc/options"
	runtimeopts "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// streams runs cmd and returns what it printed, apart.
func streams(cmd *exec.Cmd, stdin []byte) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// attach adopts a shim that a test started by hand.
func (e *env) attach(t *testing.T, id, bundle, address string, root []*types.Mount) *shim {
	t.Helper()
	s := &shim{e: e, id: id, bundle: bundle, address: address, root: root}
	s.dial(t)
	t.Cleanup(func() { s.end(t) })
	return s
}

// containerd's state directory may be behind a symbolic link.
func TestBundleBehindALink(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		id, link := id(t), t.TempDir()+"/link"
		bundle := e.bundle(t, id)
		if err := os.Symlink(bundle, link); err != nil {
			t.Fatal(err)
		}
		result, err := e.start(t, id, link, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := e.attach(t, id, link, result.Address, e.rootfs(t, id))
		s.run(t, stdio{})
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		s.delete(t, "")
	})
}

// A shim that is told to end has events to deliver, and containerd is away. It does not
// get the next container of its name.
func TestStartWhileTheLastShimEnds(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		if e.rt.Name != host.Native.Name {
			return
		}
		id := id(t)
		bundle, root := e.bundle(t, id), e.rootfs(t, id)
		p := e.params(id)
		p.ContainerdTtrpcAddress = t.TempDir() + "/away.sock"
		start := func() *shim {
			t.Helper()
			result, err := e.startWith(t, p, bundle)
			if err != nil {
				t.Fatal(err)
			}
			return e.attach(t, id, bundle, result.Address, root)
		}
		first := start()
		first.run(t, stdio{})
		first.kill(t, unix.SIGKILL)
		first.wait(t, "")
		first.delete(t, "")
		if _, err := first.Shutdown(e.ctx(t), &taskapi.ShutdownRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		second := start()
		if second.pid == first.pid {
			t.Errorf("the shim that ends, %d, was answered with", first.pid)
		}
		second.run(t, stdio{})
		eventually(t, patience, func() string {
			if unix.Kill(first.pid, 0) == nil {
				return "the first shim is there"
			}
			return ""
		})
		if got := second.status(t).String(); got != "RUNNING" {
			t.Errorf("status %s", got)
		}
	})
}

// 1, 2, 3, 4: both bootstrap protocols. Nothing reads the log fifo here.
func TestStart(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		id := strings.Repeat("x", 76) // containerd's limit for ids
		bundle := e.bundle(t, id)
		if err := unix.Mkfifo(bundle+"/log", 0o700); err != nil {
			t.Fatal(err)
		}
		params, err := proto.Marshal(e.params(id))
		if err != nil {
			t.Fatal(err)
		}
		out, errs, err := streams(e.command(id, bundle, "start"), params)
		var result bootapi.BootstrapResult
		if err == nil {
			err = proto.Unmarshal([]byte(out), &result)
		}
		if err != nil || errs != "" || result.Version != 2 || result.Protocol != "ttrpc" {
			t.Fatalf("start: %v, stdout %q, stderr %q", err, out, errs)
		}
		s := e.attach(t, id, bundle, result.Address, e.rootfs(t, id))
		st, err := os.Stat(s.socket())
		if err != nil || st.Mode().Perm() != 0o600 || len(s.socket()) >= 106 {
			t.Errorf("socket %s: %v, %v", s.socket(), st, err)
		}
		// A second start finds the first.
		out, errs, err = streams(e.command(id, bundle, "start"), params)
		var again bootapi.BootstrapResult
		if err == nil {
			err = proto.Unmarshal([]byte(out), &again)
		}
		if err != nil || errs != "" || again.Address != result.Address {
			t.Errorf("second start: %v, %v, stderr %q", err, &again, errs)
		}
		if shims := e.Count(t)["processes"]; len(shims) != 1 {
			t.Errorf("shims: %q", shims)
		}
		s.run(t, stdio{})
	})
}

// 1: containerd before 2.3 sends flags, and options or nothing on stdin.
func TestStartLegacy(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		options, err := typeurl.MarshalAnyToProto(&runcopts.Options{NoPivotRoot: true})
		if err != nil {
			t.Fatal(err)
		}
		optionBytes, err := proto.Marshal(options)
		if err != nil {
			t.Fatal(err)
		}
		for name, stdin := range map[string][]byte{"nothing": nil, "options": optionBytes} {
			t.Run(name, func(t *testing.T) {
				id := id(t)
				bundle := e.bundle(t, id)
				cmd := e.command(id, bundle, "start")
				// Without a socket_dir: in the private /run/containerd.
				out, errs, err := streams(cmd, stdin)
				var legacy struct {
					Version  int
					Address  string
					Protocol string
				}
				if err == nil {
					err = json.Unmarshal([]byte(out), &legacy)
				}
				if err != nil || errs != "" || legacy.Version != 2 || legacy.Protocol != "ttrpc" {
					t.Fatalf("%v: stdout %q, stderr %q", err, out, errs)
				}
				if path := strings.TrimPrefix(legacy.Address, "unix://"); len(path) >= 106 || !strings.HasPrefix(path, "/run/containerd/s/") {
					t.Errorf("socket %q", path)
				}
				e.attach(t, id, bundle, legacy.Address, e.rootfs(t, id)).run(t, stdio{})
			})
		}
	})
}

// 3: a socket file that nobody listens on is replaced.
func TestStartOnDeadSocket(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t)
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			if c, err := net.Dial("unix", s.socket()); err == nil {
				_ = c.Close()
				return "alive"
			}
			return ""
		})
		if _, err := os.Stat(s.socket()); err != nil {
			t.Fatal(err)
		}
		result, err := e.start(t, s.id, s.bundle, nil)
		if err != nil || result.Address != s.address {
			t.Fatalf("start: %v, %v", result, err)
		}
		s.dial(t)
		s.run(t, stdio{})
	})
}

// Bad input to start: a clear error, and nothing stays.
func TestStartRefuses(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		long := "/" + strings.Repeat("d", 90)
		cases := []struct {
			name   string
			params func(p *bootapi.BootstrapParams)
			spec   string // replaces config.json
			words  []string
		}{
			{"no config.json", nil, "-", []string{"config.json"}},
			{"malformed spec", nil, `{"ociVersion": 1`, []string{"config.json"}},
			{"bad id", func(p *bootapi.BootstrapParams) { p.InstanceID = "../x" }, "", []string{"../x"}},
			{"no id", func(p *bootapi.BootstrapParams) { p.InstanceID = "" }, "", []string{"id"}},
			{"socket path too long", func(p *bootapi.BootstrapParams) { p.SocketDir = &long }, "", []string{"socket"}},
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				id := id(t)
				bundle := e.bundle(t, id)
				switch c.spec {
				case "":
				case "-":
					_ = os.Remove(bundle + "/config.json")
				default:
					if err := os.WriteFile(bundle+"/config.json", []byte(c.spec), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				p := e.params(id)
				if c.params != nil {
					c.params(p)
				}
				in, err := proto.Marshal(p)
				if err != nil {
					t.Fatal(err)
				}
				cmd := e.command(p.InstanceID, bundle, "start")
				cmd.Stdin = bytes.NewReader(in)
				out, err := cmd.CombinedOutput()
				if err == nil {
					t.Fatalf("started: %q", out)
				}
				for _, word := range c.words {
					if !strings.Contains(string(out), word) {
						t.Errorf("%q does not name %q", out, word)
					}
				}
				if shims := e.Count(t)["processes"]; len(shims) != 0 {
					t.Errorf("left: %q", shims)
				}
			})
		}
	})
}

func (e *env) deleteVerb(t *testing.T, id, bundle, dir string) (*taskapi.DeleteResponse, error) {
	t.Helper()
	cmd := e.command(id, dir, "-bundle", bundle, "delete")
	out, errs, err := streams(cmd, nil)
	if err != nil {
		return nil, fmt.Errorf("delete: %w: %s", err, errs)
	}
	var r taskapi.DeleteResponse
	return &r, proto.Unmarshal([]byte(out), &r)
}

// 5: `delete`, with nothing there and with a live container.
func TestDeleteVerb(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		t.Run("missing", func(t *testing.T) {
			e.berthOnly(t)
			r, err := e.deleteVerb(t, "nobody", e.Dir+"/state/nowhere", "/")
			if err != nil || r.ExitStatus != 137 || r.ExitedAt == nil {
				t.Errorf("%v, %v; want 137", r, err)
			}
		})
		t.Run("live", func(t *testing.T) {
			e.berthOnly(t) // stock leaves its socket
			s := e.shim(t, sh("sleep 1000 & sleep 1000"))
			pid := s.run(t, stdio{})
			s.runExec(t, "x", stdio{}, "sleep", "1000")
			if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r, err := e.deleteVerb(t, s.id, s.bundle, s.bundle)
			if err != nil || r.ExitStatus != 137 || int(r.Pid) != pid {
				t.Errorf("%v, %v; want 137 of %d", r, err, pid)
			}
			now := e.Count(t)
			if slices.ContainsFunc(now["mounts"], func(m string) bool { return strings.HasPrefix(m, s.bundle) }) {
				t.Errorf("mounts: %q", now["mounts"])
			}
			eventually(t, patience, func() string {
				if unix.Kill(pid, 0) == nil {
					return "init lives"
				}
				return ""
			})
			if _, err := e.deleteVerb(t, s.id, s.bundle, s.bundle); err != nil {
				t.Errorf("second delete: %v", err)
			}
		})
	})
}

// 6: -info, outside any bundle.
func TestInfo(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		cmd := exec.Command(e.rt.Binary(), "-info")
		cmd.Env, cmd.Dir = e.Environ(), "/"
		out, errs, err := streams(cmd, nil)
		var info types.RuntimeInfo
		if err == nil {
			err = proto.Unmarshal([]byte(out), &info)
		}
		if err != nil || errs != "" {
			t.Fatalf("%v: %s", err, errs)
		}
		if info.Name == "" || info.Version == nil || info.Features == nil {
			t.Fatalf("info: %v", &info)
		}
		v, err := typeurl.UnmarshalAny(info.Features)
		if err != nil {
			t.Fatal(err)
		}
		f, ok := v.(*features.Features)
		if !ok || !slices.Contains(f.MountOptions, "rro") || f.Linux == nil || f.Linux.MountExtensions == nil ||
			f.Linux.MountExtensions.IDMap == nil || !*f.Linux.MountExtensions.IDMap.Enabled {
			t.Errorf("features: %T %v", v, v)
		}
		if !e.rt.Berth {
			return
		}
		// A runtime that has no such command.
		old := programs.Write(t, filepath.Join(t.TempDir(), "old"), "#!/bin/sh\necho unknown command >&2\nexit 1\n")
		options, err := typeurl.MarshalAnyToProto(&runcopts.Options{BinaryName: old})
		if err != nil {
			t.Fatal(err)
		}
		in, _ := proto.Marshal(options)
		cmd = exec.Command(e.rt.Binary(), "-info")
		cmd.Env, cmd.Dir = e.Environ(), "/"
		out, errs, err = streams(cmd, in)
		var bare types.RuntimeInfo
		if err == nil {
			err = proto.Unmarshal([]byte(out), &bare)
		}
		if err != nil || bare.Features != nil || bare.Name == "" {
			t.Errorf("without features: %v, %v, %s", err, &bare, errs)
		}
	})
}

// -v prints text and needs nothing.
func TestVersion(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		out, err := exec.Command(e.rt.Binary(), "-v").Output()
		if err != nil || len(bytes.TrimSpace(out)) == 0 {
			t.Errorf("%v: %q", err, out)
		}
	})
}

// 7: every type of runtime options.
func TestOptions(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		path := filepath.Join(t.TempDir(), "shim.toml")
		if err := os.WriteFile(path, []byte("no_new_keyring = true\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		const generic = "berth.v1.Options"
		cases := map[string]proto.Message{
			"none": nil,
			"runc": &runcopts.Options{NoNewKeyring: true},
			"path": &runtimeopts.Options{TypeUrl: generic, ConfigPath: path},
			"body": &runtimeopts.Options{TypeUrl: generic, ConfigBody: []byte("no_new_keyring = true\n")},
		}
		for name, options := range cases {
			t.Run(name, func(t *testing.T) {
				out, read := file(t)
				s := e.shimNamed(t, id(t), options, sh("echo works"))
				// containerd sends the same options with Create.
				var a *anypb.Any
				if options != nil {
					var err error
					if a, err = typeurl.MarshalAnyToProto(options); err != nil {
						t.Fatal(err)
					}
				}
				ctx := e.ctx(t)
				if _, err := s.createWith(ctx, stdio{Out: out}, a); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Start(ctx, &taskapi.StartRequest{ID: s.id}); err != nil {
					t.Fatal(err)
				}
				s.wait(t, "")
				s.delete(t, "")
				if read() != "works\n" {
					t.Errorf("output %q", read())
				}
			})
		}
		t.Run("other", func(t *testing.T) {
			s := e.shim(t)
			_, err := s.createWith(e.ctx(t), stdio{}, &anypb.Any{TypeUrl: "example.com/strange", Value: []byte{1}})
			if !errdefs.IsInvalidArgument(class(err)) || !strings.Contains(err.Error(), "example.com/strange") {
				t.Errorf("got %v, want InvalidArgument naming the type", err)
			}
		})
	})
}

// 10: Shutdown with and without a container.
func TestShutdown(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		s := e.shim(t)
		s.run(t, stdio{})
		ctx := e.ctx(t)
		if _, err := s.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id}); err != nil {
			t.Errorf("while the container exists: %v", err)
		}
		if got := s.status(t).String(); got != "RUNNING" {
			t.Errorf("status %s", got)
		}
		s.kill(t, unix.SIGKILL)
		s.wait(t, "")
		s.delete(t, "")
		_, _ = s.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id})
		eventually(t, patience, func() string {
			if _, err := os.Stat(s.socket()); err == nil {
				return "the socket is there"
			}
			return ""
		})
	})
}

// 71: a memory limit below the configured minimum.
func TestMinimumMemory(t *testing.T) {
	if os.Getenv("BERTH_TEST_OCI") == "crun" {
		t.Skip("the minimum is runc's; crun needs less")
	}
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		id := id(t)
		bundle := e.bundle(t, id, oci.WithMemoryLimit(4<<20))
		_, err := e.start(t, id, bundle, nil)
		if err == nil {
			s := e.attach(t, id, bundle, e.socketOf(t, id), e.rootfs(t, id))
			_, err = s.create(e.ctx(t), stdio{})
		}
		if err == nil {
			t.Fatal("accepted")
		}
		for _, number := range []string{"4194304", "12582912"} {
			if !strings.Contains(err.Error(), number) {
				t.Errorf("%v does not name %s", err, number)
			}
		}
	})
}

// socketOf is the address of the only socket there is.
func (e *env) socketOf(t *testing.T, id string) string {
	t.Helper()
	found, _ := filepath.Glob(e.Dir + "/s/*")
	if len(found) != 1 {
		t.Fatalf("sockets of %s: %q", id, found)
	}
	return "unix://" + found[0]
}

// 72: a runtime that hangs in create. The least limit is 30 s.
func TestCreateTimeout(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s")
	}
	t.Parallel()
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t)
		hang := programs.Write(t, filepath.Join(t.TempDir(), "runc"),
			"#!/bin/sh\ncase \"$*\" in *' create '*) exec sleep 1000;; esac\nexec runc \"$@\"\n")
		s := e.shimNamed(t, id(t), &runtimeopts.Options{
			TypeUrl: "berth.v1.Options", ConfigBody: fmt.Appendf(nil, "runtime = %q\ncreate_timeout = \"30s\"\n", hang),
		})
		before := e.Count(t)["processes"]
		_, err := s.create(e.ctx(t), stdio{})
		if !errdefs.IsDeadlineExceeded(class(err)) && (err == nil || !strings.Contains(err.Error(), "timed out")) {
			t.Fatalf("got %v, want a timeout", err)
		}
		eventually(t, patience, func() string {
			if now := e.Count(t); !slices.Equal(before, now["processes"]) || slices.ContainsFunc(now["mounts"], func(m string) bool { return strings.HasPrefix(m, s.bundle) }) {
				return now.String()
			}
			return ""
		})
	})
}

// A machine that does not let containerd lower an OOM score runs the container
// all the same.
func TestOOMScoreTolerated(t *testing.T) {
	forRuntimes(t, func(t *testing.T, e *env) {
		e.berthOnly(t)
		s := e.shim(t, func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			score := -998
			s.Process.OOMScoreAdj = &score
			return nil
		})
		pid := s.run(t, stdio{})
		got := strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/oom_score_adj", pid)))
		if own := strings.TrimSpace(read(t, "/proc/self/oom_score_adj")); got != "-998" && got != own {
			t.Errorf("the container has %s, want -998, or containerd's %s", got, own)
		}
	})
}
