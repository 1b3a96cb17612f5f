// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/store"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
	"github.com/berthd/berth/integration/signing"
)

// judge is a service whose policy wants a signature for what is in signed/, and
// accepts what is in open/.
type judge struct {
	*images.Service
	*host.Daemon
	registry *server.Registry
	key      *signing.Sigstore
	dir      string
}

func newJudge(t *testing.T) *judge {
	t.Helper()
	j := &judge{dir: t.TempDir(), Daemon: host.Run(t, host.Options{Images: []string{}})}
	var err error
	if j.registry, err = server.Start(t.Context(), server.Options{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.registry.Close)
	if j.key, err = signing.NewSigstore(); err != nil {
		t.Fatal(err)
	}
	public, err := j.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"key.pub":               string(public),
		"registries.conf":       "",
		"registries.d/all.yaml": "default-docker:\n  use-sigstore-attachments: true\n",
		"policies/closed.json":  `{"default": [{"type": "reject"}]}`,
		"policy.json": `{"default": [{"type": "reject"}], "transports": {"docker": {
			"` + j.registry.Address + `/open": [{"type": "insecureAcceptAnything"}],
			"` + j.registry.Address + `/signed": [{"type": "sigstoreSigned", "keyPath": "` + j.dir + `/key.pub"}]}}}`,
	} {
		path = filepath.Join(j.dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	registries, err := registry.New(registry.Config{
		HostsDir: j.dir + "/hosts", CertsDir: j.dir + "/certs", AuthFile: j.dir + "/auth.json",
		RegistriesConf: j.dir + "/registries.conf", RegistriesConfDir: j.dir + "/registries.conf.d",
	})
	if err != nil {
		t.Fatal(err)
	}
	j.Service, err = images.New(images.Config{
		Client: j.Client(), Namespace: j.Namespace, Registry: registries,
		Policy: policy.Config{Path: j.dir + "/policy.json", Dir: j.dir + "/policies", RegistriesDir: j.dir + "/registries.d"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// push makes an image with some content, and a signature for it.
func (j *judge) push(t *testing.T, name, content string, sign bool) (reference.Reference, v1.Descriptor) {
	t.Helper()
	img, err := image.New(j.registry.Address+"/"+name, []image.File{{Path: "f", Mode: 0o644, Data: []byte(content)}}, v1.ImageConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.registry.Push(t.Context(), img.Ref, img.Manifest(), img); err != nil {
		t.Fatal(err)
	}
	if sign {
		if err := j.key.Sign(t.Context(), j.registry, img.Ref, img.Manifest().Digest); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := reference.Parse(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	return ref, img.Manifest()
}

func want(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestVerify(t *testing.T) {
	j := newJudge(t)
	for _, c := range []struct {
		name, namespace string
		sign            bool
		want            error
	}{
		{name: "open/a:1"},
		{name: "open/a:1", namespace: "closed", want: policy.ErrRejected}, // A28
		{name: "open/a:1", namespace: "other"},
		{name: "signed/a:1", want: policy.ErrRejected},
		{name: "signed/b:1", sign: true},
		{name: "strange/a:1", want: policy.ErrRejected},
	} {
		ref, desc := j.push(t, c.name, c.name, c.sign)
		got, err := j.Verify(t.Context(), images.VerifyRequest{Reference: ref, PolicyNamespace: c.namespace})
		want(t, c.name, err, c.want)
		if got != desc.Digest {
			t.Errorf("%s: %s was judged, want %s", c.name, got, desc.Digest)
		}
		if n := j.registry.Fetches(desc.Digest); c.want == nil && !c.sign && n > 0 {
			t.Errorf("%s: the manifest was fetched for nothing", c.name)
		}
	}
	// A29
	ref, _ := j.push(t, "open/a:1", "a", false)
	if err := os.Remove(j.dir + "/policy.json"); err != nil {
		t.Fatal(err)
	}
	j.registry.Forget()
	_, err := j.Verify(t.Context(), images.VerifyRequest{Reference: ref})
	want(t, "no policy", err, policy.ErrInvalid)
	if n := j.registry.Count("", "/"); n > 0 {
		t.Errorf("%d requests without a policy", n)
	}
}

func TestAllowed(t *testing.T) {
	j := newJudge(t)
	pull := func(ref reference.Reference) {
		t.Helper()
		if out, err := j.Ctr("images", "pull", "--local", ref.Text()).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	signed, _ := j.push(t, "signed/a:1", "first", true)
	pull(signed)
	want(t, "signed", j.Allowed(t.Context(), images.AllowedRequest{Reference: signed}), nil)
	// What is stored counts, not what the tag is in the registry now.
	_, second := j.push(t, "signed/a:1", "second", false)
	j.registry.Forget()
	want(t, "moved", j.Allowed(t.Context(), images.AllowedRequest{Reference: signed}), nil)
	if j.registry.Fetches(second.Digest) > 0 || j.registry.Count(http.MethodHead, "/manifests/1") > 0 {
		t.Errorf("the tag was resolved: %v", j.registry.Log())
	}
	pull(signed)
	want(t, "moved and pulled", j.Allowed(t.Context(), images.AllowedRequest{Reference: signed}), policy.ErrRejected)

	open, _ := j.push(t, "open/a:1", "first", false)
	want(t, "absent", j.Allowed(t.Context(), images.AllowedRequest{Reference: open}), store.ErrImageDoesNotExist)
	// The name by which it is asked for chooses the rules.
	byID := images.AllowedRequest{Reference: open, Image: second.Digest.String()}
	want(t, "by another name", j.Allowed(t.Context(), byID), nil)
	byID.PolicyNamespace = "closed"
	want(t, "closed", j.Allowed(t.Context(), byID), policy.ErrRejected)
}
