// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/network"
	"github.com/berthd/berth/plugin/runtime/record"
)

// refused checks that an error is about the argument.
func refused(t *testing.T, text string, err error) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%q: %v, want invalid argument", text, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "512b": 512, "1k": 1 << 10, "64KB": 64 << 10, "512m": 512 << 20, "512M": 512 << 20,
		"512Mi": 512 << 20, "512MiB": 512 << 20, "1.5g": 3 << 29, "2T": 2 << 40,
	} {
		if got, err := Size(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "m", "much", "-1", "12i", "12ib", "9999999e", "1 2", "NaN"} {
		_, err := Size(text)
		refused(t, text, err)
	}
}

func TestTimes(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "10": 10 * time.Second, "1m30s": 90 * time.Second} {
		if got, err := Timeout(text); err != nil || got != want {
			t.Errorf("timeout %q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "-1s", "soon"} {
		_, err := Timeout(text)
		refused(t, text, err)
	}
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-31T11:00:00Z": now.Add(-time.Hour), "1769860800": now, "1769860800.5": now.Add(time.Second / 2),
	} {
		if got, err := Since(text, now); err != nil || !got.Equal(want) {
			t.Errorf("since %q: %v, %v, want %v", text, got, err, want)
		}
	}
	_, err := Since("yesterday", now)
	refused(t, "yesterday", err)
}

func TestVolume(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]runtime.Mount{
		"/a:/b":             {Source: "/a", Target: "/b", Create: true},
		"/a:/b:ro,z":        {Source: "/a", Target: "/b", Create: true, Readonly: true, Relabel: true},
		"./a:/b:rslave":     {Source: filepath.Join(here, "a"), Target: "/b", Create: true, Propagation: "rslave"},
		"/a:/b:noexec,rw":   {Source: "/a", Target: "/b", Create: true, Options: []string{"noexec"}},
		"/a:/b:rro,rshared": {Source: "/a", Target: "/b", Create: true, Readonly: true, RecursiveReadonly: true, Propagation: "rshared"},
	} {
		got, err := Volume(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{"", "/a", "data:/b", "/a:/b:nonsense", "/a:/b:ro:ro"} {
		_, err := Volume(text)
		refused(t, text, err)
	}
}

func TestMount(t *testing.T) {
	for text, want := range map[string]runtime.Mount{
		"type=bind,src=/a,dst=/b":                       {Source: "/a", Target: "/b"},
		"source=/a,target=/b,readonly":                  {Source: "/a", Target: "/b", Readonly: true},
		"src=/a,dst=/b,ro=true,bind-recursive=readonly": {Source: "/a", Target: "/b", Readonly: true, RecursiveReadonly: true},
		"src=/a,dst=/b,bind-propagation=shared":         {Source: "/a", Target: "/b", Propagation: "rshared"},
		"type=tmpfs,dst=/t,tmpfs-size=64m":              {Type: "tmpfs", Source: "tmpfs", Target: "/t", Options: []string{"size=64m"}},
		"type=image,src=busybox,dst=/i,subpath=bin":     {Image: "busybox", Target: "/i", SubPath: "bin", Readonly: true},
	} {
		got, err := Mount(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{"", "type=volume,src=a,dst=/b", "src=a,dst=/b", "src=/a,dst=/b,colour=red", `"`, "type=tmpfs,tmpfs-size=much,dst=/a"} {
		_, err := Mount(text)
		refused(t, text, err)
	}
}

func TestDevice(t *testing.T) {
	for text, want := range map[string]runtime.Device{
		"/dev/fuse":              {Source: "/dev/fuse"},
		"/dev/fuse:r":            {Source: "/dev/fuse", Permissions: "r"},
		"/dev/sda:/dev/xvda:rwm": {Source: "/dev/sda", Target: "/dev/xvda", Permissions: "rwm"},
	} {
		if got, err := Device(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "fuse", "/dev/fuse:x", "/dev/fuse:r:w"} {
		_, err := Device(text)
		refused(t, text, err)
	}
}

func TestPorts(t *testing.T) {
	for text, want := range map[string][]network.PortMapping{
		"8080:80":            {{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}},
		"127.0.0.1:53:5/udp": {{HostPort: 53, ContainerPort: 5, Protocol: "udp", HostIP: "127.0.0.1"}},
		"[::1]:1:2":          {{HostPort: 1, ContainerPort: 2, Protocol: "tcp", HostIP: "::1"}},
		"10-11:20-21":        {{HostPort: 10, ContainerPort: 20, Protocol: "tcp"}, {HostPort: 11, ContainerPort: 21, Protocol: "tcp"}},
	} {
		got, err := Publish(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{"", "80", "80:", "0:80", "1:70000", "1-2:1", "2-1:2-1", "1:1/icmp", "host:1:1", ":80"} {
		_, err := Publish(text)
		refused(t, text, err)
	}
	for text, want := range map[string]Forward{"80": {80, 80}, "8080:80": {8080, 80}, ":80": {0, 80}, "0:80": {0, 80}} {
		if got, err := ParseForward(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":", "80:", "x:80", "0"} {
		_, err := ParseForward(text)
		refused(t, text, err)
	}
}

// request is what a command line asks for.
func request(t *testing.T, args ...string) (runtime.ContainerRequest, error) {
	t.Helper()
	var c Container
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.Bind(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c.Request("image", []string{"a", "b"})
}

func TestContainer(t *testing.T) {
	t.Setenv("FROM_HERE", "value")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# a comment\nA=1\n\nB=2 # none\nFROM_HERE\nNOT_HERE_AT_ALL\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	adjustment := -5
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for _, c := range []struct {
		name string
		args []string
		want runtime.ContainerRequest
	}{
		{"nothing", nil, runtime.ContainerRequest{}},
		{"terminal", []string{"-it"}, runtime.ContainerRequest{TTY: true, Stdin: true}},
		{"input", []string{"-i"}, runtime.ContainerRequest{Stdin: true, StdinOnce: true}},
		{"process", []string{"--entrypoint", "/p", "-w", "/w", "-u", "1:2", "--group-add", "7", "--stop-signal", "INT"}, runtime.ContainerRequest{
			Command: []string{"/p"}, WorkDir: "/w", User: "1:2", Groups: []uint32{7}, StopSignal: "INT",
		}},
		{"environment", []string{"--env-file", file, "-e", "C=a=b", "-e", "FROM_HERE", "-e", "NOT_HERE_AT_ALL"}, runtime.ContainerRequest{
			Env: []string{"A=1", "B=2 # none", "FROM_HERE=value", "C=a=b", "FROM_HERE=value"},
		}},
		{"limits", []string{"-m", "64m", "--memory-swap", "-1", "--cpus", "0.5", "--cpuset-cpus", "0-1", "--pids-limit", "9", "--oom-score-adj", "-5"}, runtime.ContainerRequest{
			Resources: runtime.Resources{Memory: 64 << 20, Swap: -1, CPUPeriod: 100000, CPUQuota: 50000, CPUs: "0-1", Pids: 9, OOMScoreAdj: &adjustment},
		}},
		{"security", []string{
			"--privileged", "--read-only", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
			"--security-opt", "seccomp=unconfined", "--security-opt", "label=type:t", "--security-opt", "label:level:l", "--security-opt", "systempaths=unconfined",
		}, runtime.ContainerRequest{Security: runtime.Security{
			Privileged: true, ReadonlyRootfs: true, NoNewPrivileges: true, AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"},
			Seccomp: "unconfined", SELinux: &runtime.SELinux{Type: "t", Level: "l"}, MaskedPaths: []string{}, ReadonlyPaths: []string{},
		}}},
		{"files", []string{"-v", "/a:/b", "--tmpfs", "/t:size=1m", "--device", "/dev/fuse"}, runtime.ContainerRequest{
			Mounts: []runtime.Mount{
				{Source: "/a", Target: "/b", Create: true},
				{Type: "tmpfs", Source: "tmpfs", Target: "/t", Options: []string{"nosuid", "nodev", "noexec", "size=1m"}},
			},
			Devices: []runtime.Device{{Source: "/dev/fuse"}},
		}},
		{"pod", []string{
			"-p", "80:8080", "--hostname", "h", "--dns", "9.9.9.9", "--dns-search", "d", "--sysctl", "k=v", "--pid", "pod", "--ipc", "host",
			"--userns", "0:100000:65536", "--cgroup-parent", "/c", "--runtime", "kata",
		}, runtime.ContainerRequest{NewPod: runtime.PodRequest{
			PortMappings: []network.PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}}, Hostname: "h",
			DNS: &network.DNS{Servers: []string{"9.9.9.9"}, Searches: []string{"d"}}, Sysctls: map[string]string{"k": "v"},
			SharePID: true, HostIPC: true, UserNS: &record.IDMappings{Map: labels.IDMap{UIDs: ids, GIDs: ids}}, CgroupParent: "/c", Handler: "kata",
		}}},
		{"host's pod", []string{"--network", "host", "--pid", "host", "--userns", "auto:1000"}, runtime.ContainerRequest{NewPod: runtime.PodRequest{
			HostNetwork: true, HostPID: true, UserNS: &record.IDMappings{Auto: true, Size: 1000},
		}}},
		{"member", []string{"--pod", "p", "--id", "i", "--attempt", "2", "-l", "a=b", "-l", "c", "--annotation", "d=e"}, runtime.ContainerRequest{
			Pod: "p", ID: "i", Attempt: 2, Labels: map[string]string{"a": "b", "c": ""}, Annotations: map[string]string{"d": "e"},
		}},
		{"log", []string{"--log-max-size", "10m", "--log-max-files", "3", "--log-path", "x.log"}, runtime.ContainerRequest{
			LogMaxSize: 10 << 20, LogMaxFiles: 3, LogPath: "x.log",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := request(t, append(c.args, "--name", "n")...)
			if err != nil {
				t.Fatal(err)
			}
			c.want.Name, c.want.Image, c.want.Args = "n", "image", []string{"a", "b"}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreUnexported(runtime.PodRequest{}, runtime.ContainerRequest{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
	// The image's entry point is left out, and the arguments are the command.
	got, err := request(t, "--entrypoint", "")
	if diff := cmp.Diff([]string{"a", "b"}, got.Command); err != nil || diff != "" || len(got.Args) > 0 {
		t.Errorf("no entry point: %v, arguments %q (-want +got):\n%s", err, got.Args, diff)
	}
}

func TestContainerRefused(t *testing.T) {
	for _, args := range [][]string{
		{"--pod", "p", "--network", "host"},
		{"--cpus", "1", "--cpu-quota", "5"},
		{"--cpus", "0.001"},
		{"--network", "bond"},
		{"--pod", "p", "--init"},
		{"--pid", "host", "--init"},
		{"--add-host", "x"},
		{"--add-host", ":1.2.3.4"},
		{"--add-host", "x:y"},
		{"--shm-size", "x"},
		{"--ulimit", "nofile"},
		{"--ulimit", "nofile=1:x"},
		{"--pid", "x"},
		{"--ipc", "x"},
		{"--userns", "1:2"},
		{"--userns", "auto:x"},
		{"--sysctl", "=v"},
		{"-l", "=v"},
		{"--security-opt", "x"},
		{"--security-opt", "label=disable"},
		{"--group-add", "wheel"},
		{"--stop-signal", "NOPE"},
		{"--log-max-size", "x"},
		{"--memory", "x"},
		{"--mount", "x"},
	} {
		_, err := request(t, args...)
		refused(t, args[len(args)-1], err)
	}
	if _, err := request(t, "--env-file", "/nonexistent"); !os.IsNotExist(err) && err == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestResourcesGiven(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{{nil, false}, {[]string{"--memory", "1g"}, true}, {[]string{"--pids-limit", "0"}, true}} {
		var r Resources
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		r.Bind(flags)
		if err := flags.Parse(c.args); err != nil || r.Given() != c.want {
			t.Errorf("%v: %v, %v", c.args, r.Given(), err)
		}
	}
}

func TestFilter(t *testing.T) {
	f, err := ParseFilter([]string{"name=n", "label=a=b", "label=c", "status=EXITED", "owner=cri"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Containers()
	want := runtime.ContainerFilter{Name: "n", State: runtime.ContainerExited, Labels: map[string]string{"a": "b", "c": ""}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" || f.Owner != "cri" {
		t.Errorf("owner %q, %v (-want +got):\n%s", f.Owner, err, diff)
	}
	_, err = f.Pods() // which do not exit
	refused(t, "state of a pod", err)
	for _, text := range []string{"", "x", "name=", "colour=red"} {
		_, err := ParseFilter([]string{text})
		refused(t, text, err)
	}
}

// Names that are made up are names.
func TestMadeUp(t *testing.T) {
	seen := map[string]bool{}
	for of, want := range map[string]string{
		"docker.io/library/Alpine:3": `^alpine-[a-z0-9]{6}$`, "x@sha256:1": `^x-[a-z0-9]{6}$`, "": `^c-[a-z0-9]{6}$`, "___": `^c-[a-z0-9]{6}$`, "localhost:5000/a_b:1": `^ab-[a-z0-9]{6}$`,
	} {
		got := MadeUp(of)
		if !regexp.MustCompile(want).MatchString(got) || seen[got] {
			t.Errorf("%q: %q", of, got)
		}
		seen[got] = true
	}
}
