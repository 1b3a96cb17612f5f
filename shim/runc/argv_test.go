// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"strings"
	"testing"
)

func TestArgv(t *testing.T) {
	plain := Runtime{Path: "/bin/runc", Root: "/r", Bundle: "/b"}
	all := plain
	all.Systemd, all.Debug = true, true
	criu := Criu{
		ID: "c", ImagePath: "/i", WorkPath: "/w", OpenTCP: true, ExternalUnixSockets: true, Terminal: true,
		FileLocks: true, EmptyNamespaces: []string{"network", "ipc"}, CgroupsMode: "soft",
	}
	const criuArgs = "--image-path /i --work-path /w --tcp-established --ext-unix-sk --shell-job --file-locks " +
		"--manage-cgroups-mode soft --empty-ns network --empty-ns ipc"
	for name, tc := range map[string]struct {
		runtime Runtime
		args    []string
		want    string
	}{
		"global":          {plain, []string{"x"}, "/bin/runc --root /r --log L --log-format json x"},
		"debug, systemd":  {all, []string{"x"}, "/bin/runc --root /r --log L --log-format json --debug --systemd-cgroup x"},
		"create":          {plain, (&Creation{ID: "c", PidFile: "p"}).args("/b"), "create --bundle /b --pid-file p c"},
		"create, all":     {plain, (&Creation{ID: "c", PidFile: "p", ConsoleSocket: "s", NoPivot: true, NoNewKeyring: true}).args("/b"), "create --bundle /b --pid-file p --console-socket s --no-pivot --no-new-keyring c"},
		"exec":            {plain, (&Execution{ID: "c", PidFile: "p", ProcessFile: "j"}).args(), "exec --detach --process j --pid-file p c"},
		"exec, terminal":  {plain, (&Execution{ID: "c", PidFile: "p", ProcessFile: "j", ConsoleSocket: "s"}).args(), "exec --detach --process j --pid-file p --console-socket s c"},
		"checkpoint":      {plain, (&Checkpoint{Criu: Criu{ID: "c"}}).args(), "checkpoint --leave-running c"},
		"checkpoint, all": {plain, (&Checkpoint{Criu: criu, ParentPath: "/p", Exit: true}).args(), "checkpoint " + criuArgs + " --parent-path /p c"},
		"restore":         {plain, (&Restoration{Criu: Criu{ID: "c", ImagePath: "/i"}, PidFile: "p"}).args("/b"), "restore --detach --bundle /b --pid-file p --image-path /i c"},
		"restore, all": {
			plain, (&Restoration{Criu: criu, PidFile: "p", ConsoleSocket: "s", NoPivot: true, LSMProfile: "l", LSMMountContext: "m"}).args("/b"),
			"restore --detach --bundle /b --pid-file p " + criuArgs + " --console-socket s --no-pivot --lsm-profile l --lsm-mount-context m c",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(tc.runtime.argv("L", tc.args), " ")
			if got != tc.want && !strings.HasSuffix(got, "--log-format json "+tc.want) {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestPinExec(t *testing.T) {
	for in, want := range map[string]string{
		`{"args":["a"]}`: `{"execCPUAffinity":{"initial":"3"},"args":["a"]}`,
		` { } `:          ` {"execCPUAffinity":{"initial":"3"} } `,
		`{"execCPUAffinity":{"final":"1"},"a":1}`: `{"execCPUAffinity":{"final":"1"},"a":1}`,
		`null`: `null`,
	} {
		if got := string(PinExec([]byte(in), "3")); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
