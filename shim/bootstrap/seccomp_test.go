// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWithListener(t *testing.T) {
	for name, text := range map[string]string{
		"nothing of Linux": `{}`,
		"no profile":       `{"linux":{}}`,
		"kills":            `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_KILL"}}}`,
		"has a listener":   `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","listenerPath":"/x"}}}`,
	} {
		if got, _, err := withListener([]byte(text), "/socket"); err != nil || got != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, text := range []string{`{`, `{"linux":{"seccomp":{"defaultAction":1}}}`, `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":{}}}}`} {
		if _, _, err := withListener([]byte(text), "/socket"); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
	text := `{"hostname":"kept","linux":{"cgroupsPath":"kept","seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"flags":["SECCOMP_FILTER_FLAG_LOG"],
"syscalls":[{"names":["read","exit"],"action":"SCMP_ACT_ALLOW"},{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}}}`
	got, errno, err := withListener([]byte(text), "/socket")
	if err != nil || errno != 38 {
		t.Fatalf("%d, %v", errno, err)
	}
	var before, after specs.Spec
	if err := json.Unmarshal([]byte(text), &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &after); err != nil {
		t.Fatal(err)
	}
	last := after.Linux.Seccomp.Syscalls[2]
	for name, want := range map[string]bool{"mount": true, "ptrace": true, "read": false, "clone3": false, "write": false} {
		if last.Action != specs.ActNotify || slices.Contains(last.Names, name) != want {
			t.Errorf("%s is asked about: %v", name, !want)
		}
	}
	before.Linux.Seccomp.ListenerPath = "/socket"
	before.Linux.Seccomp.Syscalls = append(before.Linux.Seccomp.Syscalls, last)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
}
