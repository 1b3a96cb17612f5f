// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
)

const (
	accept = `{"default": [{"type": "insecureAcceptAnything"}]}`
	reject = `{"default": [{"type": "reject"}]}`
)

// write makes a file and returns its path.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ref(t *testing.T, name string) reference.Reference {
	t.Helper()
	r, err := reference.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A28: a namespace has its own policy or that of all.
func TestNamespaces(t *testing.T) {
	dir := t.TempDir()
	c := policy.Config{Path: write(t, dir+"/policy.json", reject), Dir: dir + "/policies"}
	write(t, c.Dir+"/ns1.json", accept)
	write(t, c.Dir+"/broken.json", `{"default": []`)
	for namespace, want := range map[string]error{"ns1": nil, "ns2": policy.ErrRejected, "": policy.ErrRejected} {
		p, err := policy.Load(c, namespace)
		if err != nil {
			t.Fatalf("namespace %q: %v", namespace, err)
		}
		err = p.Verify(t.Context(), policy.Subject{Reference: ref(t, "registry.invalid/a:1"), Digest: digest.FromString("a")})
		check(t, err, want)
	}
	for namespace, want := range map[string]error{
		"broken": policy.ErrInvalid, "../policy": errdefs.ErrInvalidArgument, "a/b": errdefs.ErrInvalidArgument, "..": errdefs.ErrInvalidArgument,
	} {
		_, err := policy.Load(c, namespace)
		check(t, err, want)
	}
	c.Dir = dir + "/none"
	if _, err := policy.Load(c, "ns1"); err != nil {
		t.Errorf("without a folder of policies: %v", err)
	}
}

// A29: without a policy that can be read nothing is accepted.
func TestNoPolicy(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{
		"missing":  dir + "/none.json",
		"folder":   dir,
		"no JSON":  write(t, dir+"/1.json", "default"),
		"unknown":  write(t, dir+"/2.json", `{"default": [{"type": "perhaps"}]}`),
		"no rules": write(t, dir+"/3.json", `{}`),
		"no key":   write(t, dir+"/4.json", `{"default": [{"type": "signedBy", "keyType": "GPGKeys"}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := policy.Load(policy.Config{Path: path}, "")
			check(t, err, policy.ErrInvalid)
			if p != nil {
				t.Error("a policy nonetheless")
			}
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("class of %v", err)
			}
		})
	}
}
