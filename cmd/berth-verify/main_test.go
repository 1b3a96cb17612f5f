// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/policy"
)

func TestRun(t *testing.T) {
	const accept, reject = `{"default": [{"type": "insecureAcceptAnything"}]}`, `{"default": [{"type": "reject"}]}`
	d := digest.FromString("image").String()
	stdin := `{"mediaType": "` + ocispec.MediaTypeImageManifest + `", "digest": "` + d + `", "size": 7}`
	for name, c := range map[string]struct {
		name, digest, mediaType, stdin, rules string
		code                                  int
		reason                                string
	}{
		"accept":         {"docker.io/library/a:1", d, ocispec.MediaTypeDescriptor, stdin, accept, 0, "allows docker.io/library/a:1"},
		"by hand":        {"a", d, "", "", accept, 0, "allows"},
		"both":           {"docker.io/library/a:1@" + d, d, ocispec.MediaTypeDescriptor, stdin, accept, 0, "allows"},
		"reject":         {"docker.io/library/a:1", d, ocispec.MediaTypeDescriptor, stdin, reject, exitRefused, "SignatureValidationFailed: signature rejected: docker.io/library/a:1"},
		"no policy":      {"docker.io/library/a:1", d, ocispec.MediaTypeDescriptor, stdin, "", exitUndecided, "invalid signature policy"},
		"another digest": {"docker.io/library/a:1", digest.FromString("b").String(), ocispec.MediaTypeDescriptor, stdin, accept, exitUndecided, "not of"},
		"no digest":      {"docker.io/library/a:1", "", "", "", accept, exitUndecided, "digest"},
		"no name":        {"", d, "", "", accept, exitUndecided, "name"},
		"new protocol":   {"docker.io/library/a:1", d, "application/new", stdin, accept, exitUndecided, `"application/new"`},
		"no descriptor":  {"docker.io/library/a:1", d, ocispec.MediaTypeDescriptor, "", accept, exitUndecided, "standard input"},
		"huge":           {"docker.io/library/a:1", d, ocispec.MediaTypeDescriptor, `{"digest": "` + strings.Repeat("a", 2*maxDescriptorBytes), accept, exitUndecided, "standard input"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request{name: c.name, digest: c.digest, stdinMediaType: c.mediaType, timeout: time.Minute}
			r.policy = policy.Config{Path: t.TempDir() + "/policy.json"}
			if c.rules != "" {
				if err := os.WriteFile(r.policy.Path, []byte(c.rules), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			reason, code := r.run(t.Context(), strings.NewReader(c.stdin))
			if code != c.code || !strings.Contains(reason, c.reason) || strings.Contains(reason, "\n") {
				t.Errorf("exit code %d, want %d; reason %q, want %q", code, c.code, reason, c.reason)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	dir := t.TempDir()
	rules := `{"default": [{"type": "sigstoreSigned", "keyPath": "/none"}]}`
	if err := os.WriteFile(dir+"/policy.json", []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	r := request{
		name: "127.0.0.1:1/a:1", digest: digest.FromString("image").String(), timeout: time.Nanosecond,
		policy: policy.Config{Path: dir + "/policy.json", RegistriesDir: dir},
	}
	r.system.SystemRegistriesConfPath, r.system.SystemRegistriesConfDirPath = os.DevNull, dir+"/none"
	reason, code := r.run(context.Background(), strings.NewReader(""))
	if code != exitUndecided || !strings.HasPrefix(reason, "gave up after 1ns: ") {
		t.Errorf("exit code %d, reason %q", code, reason)
	}
}

func TestLoopback(t *testing.T) {
	for registry, want := range map[string]bool{
		"127.0.0.1:5000": true, "127.9.9.9": true, "localhost:5000": true, "localhost": true, "[::1]:5000": true,
		"docker.io": false, "10.0.0.1:5000": false, "localhost.example:5000": false, "127.0.0.1.example": false,
	} {
		if got := loopback(registry); got != want {
			t.Errorf("%s: %v", registry, got)
		}
	}
}
