// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	"github.com/berthd/berth/integration/programs"
	server "github.com/berthd/berth/integration/registry"
	"github.com/berthd/berth/integration/signing"
)

// policyDoc is the guide whose files are tested.
const policyDoc = "../docs/policy.md"

const (
	policyFile   = "/etc/containers/policy.json"
	verifierFile = "/opt/containerd/image-verifier/bin/berth-verify"
)

// guarded is a containerd with berth's verifier, set up as the guide says, and a
// registry with the guide's images.
type guarded struct {
	*host.Daemon
	cri      *cri.Client
	registry *server.Registry
	bin      string // the folder of verifiers
	files    map[string]string
	silent   chan struct{} // closed: the server of GPG signatures does not answer
}

// guard sets one up. The images other/app:1, public/app:1 and team/app:1 and
// apps/app:1 are as the rules want them, unsigned:1 of the latter two is not.
func guard(t *testing.T, auth server.Auth, toml string) *guarded {
	t.Helper()
	ctx := t.Context()
	g := &guarded{bin: t.TempDir(), silent: make(chan struct{})}
	r, err := server.Start(ctx, server.Options{Dir: t.TempDir(), Auth: auth})
	if err != nil {
		t.Fatal(err)
	}
	g.registry = r
	t.Cleanup(r.Close)
	signatures := t.TempDir()
	lookaside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		select {
		case <-g.silent:
			<-q.Context().Done()
		default:
			http.FileServer(http.Dir(signatures)).ServeHTTP(w, q)
		}
	}))
	t.Cleanup(lookaside.Close)
	g.files = documentedFiles(t, strings.NewReplacer(
		"https://registry.example/signatures", lookaside.URL, "registry.example", r.Address,
		filepath.Dir(verifierFile), g.bin, "/usr/local/bin/berth-verify", host.Build("bin/berth-verify"),
	))
	forget := func() {
		// They are this program's own, see host.Enter.
		for _, path := range []string{"/etc/containers", "/etc/pki/containers", "/etc/berth/auth.json"} {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
	}
	forget()
	t.Cleanup(forget)
	for _, path := range []string{policyFile, "/etc/containers/registries.d/registry.example.yaml"} {
		write(t, path, g.documented(t, path))
	}
	team, apps := keys(t)
	for _, name := range []string{"other/app:1", "public/app:1", "team/app:1", "team/app:unsigned", "apps/app:1", "apps/app:unsigned"} {
		img, err := image.New(r.Address+"/"+name, []image.File{{Path: "name", Mode: 0o644, Data: []byte(name)}}, v1.ImageConfig{})
		if err == nil {
			err = r.Push(ctx, img.Ref, img.Manifest(), img)
		}
		switch {
		case err != nil:
		case name == "team/app:1":
			err = team.Sign(ctx, signatures, img.Ref, img.Manifest().Digest)
		case name == "apps/app:1":
			err = apps.Sign(ctx, r, img.Ref, img.Manifest().Digest)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(host.Build("bin/berth-verify"), g.bin+"/berth-verify"); err != nil {
		t.Fatal(err)
	}
	settings := strings.Replace(g.files["/etc/containerd/conf.d/berth-verify.toml"], "version = 3\n", "", 1)
	g.Daemon = host.Run(t, host.Options{CRI: true, Images: []string{}, TOML: settings + toml, Env: []string{"HOME=" + t.TempDir()}})
	if g.cri, err = cri.Dial(g.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.cri.Close() })
	return g
}

// keys makes the keys of the guide's policy, where it has them.
func keys(t *testing.T) (*signing.GPG, *signing.Sigstore) {
	t.Helper()
	team, err := signing.NewGPG(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := team.Close(); err != nil {
			t.Error(err)
		}
	})
	apps, err := signing.NewSigstore()
	if err != nil {
		t.Fatal(err)
	}
	public, err := team.PublicKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/pki/containers/team.gpg", string(public))
	if public, err = apps.PublicKey(); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/pki/containers/apps.pub", string(public))
	return team, apps
}

// documentedFiles returns the files that the guide shows, by their paths: these
// are beside the language or in a comment.
func documentedFiles(t *testing.T, local *strings.Replacer) map[string]string {
	t.Helper()
	text, err := os.ReadFile(policyDoc)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```\\w+(?: (\\S+))?\n((?:#!.*?\n)?(?:# (/\\S+)\n)?.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		path := m[1] + m[3]
		if path == "" {
			t.Fatalf("%s: a block does not say which file it is: %q", policyDoc, m[0])
		}
		files[path] = local.Replace(m[2])
	}
	return files
}

// documented is the text of one of the guide's files.
func (g *guarded) documented(t *testing.T, file string) string {
	t.Helper()
	text, ok := g.files[file]
	if !ok {
		t.Fatalf("%s shows no %s", policyDoc, file)
	}
	return text
}

// script puts the guide's script in the place of the link, with more flags.
func (g *guarded) script(t *testing.T, flags string) {
	t.Helper()
	path := g.bin + "/berth-verify"
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	programs.Write(t, path, strings.Replace(g.documented(t, verifierFile), `"$@"`, flags+` "$@"`, 1))
}

// pull is the kubelet's.
func (g *guarded) pull(t *testing.T, name string, auth *runtime.AuthConfig) error {
	t.Helper()
	_, err := g.cri.Images.PullImage(t.Context(), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: g.registry.Address + "/" + name}, Auth: auth,
	})
	return err
}

// ctr pulls by ctr.
func (g *guarded) ctr(name string, flags ...string) error {
	return quietly(g.Ctr(append([]string{"images", "pull"}, append(flags, g.registry.Address+"/"+name)...)...))
}

// berth executes berth's command line.
func (g *guarded) berth(args ...string) error {
	cmd := exec.Command(host.Build("bin/berth"), args...)
	cmd.Env = g.Environ()
	return quietly(cmd)
}

// quietly runs a command and returns what it said if it failed.
func quietly(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// refused wants an error with both texts.
func refused(t *testing.T, how string, err error, reasons ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: not refused", how)
		return
	}
	for _, reason := range reasons {
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %q is not in: %v", how, reason, err)
		}
	}
}

// nothing wants that nothing is left of pulls in either namespace.
func (g *guarded) nothing(t *testing.T) {
	t.Helper()
	for _, namespace := range []string{criNamespace, g.Namespace} {
		for _, list := range [][]string{{"images", "ls", "-q"}, {"leases", "ls", "-q"}, {"content", "ls", "-q"}, {"content", "active"}, {"snapshots", "ls"}} {
			out, err := g.Ctr(append([]string{"-n", namespace}, list...)...).Output()
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if strings.HasPrefix(lines[0], "KEY") || strings.HasPrefix(lines[0], "REF") {
				lines = lines[1:]
			}
			if left := strings.Join(lines, "\n"); err != nil || left != "" {
				t.Errorf("%s of %s: %s, %v", strings.Join(list, " "), namespace, left, err)
			}
		}
	}
}

// checks are what berth doctor says of this containerd, by name.
func (g *guarded) checks(t *testing.T) map[string][2]string {
	t.Helper()
	cmd := exec.Command(host.Build("bin/berth"), "--address", g.Socket, "doctor", "-o", "json")
	cmd.Env = g.Environ()
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	var all []struct{ Name, Status, Found string }
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	byName := map[string][2]string{}
	for _, c := range all {
		byName[c.Name] = [2]string{c.Status, c.Found}
	}
	return byName
}

// A27, A70: what the policy refuses containerd does not pull, for the kubelet or
// others, and nothing of it is fetched; those that pull by themselves are not kept
// from it, and berth says so.
func TestPolicyDocument(t *testing.T) {
	g := guard(t, server.None, "")
	for name, reason := range map[string]string{
		"other/app:1":       "is rejected by policy",
		"team/app:unsigned": "A signature was required, but no signature exists",
		"apps/app:unsigned": "A signature was required, but no signature exists",
	} {
		g.registry.Forget()
		const class = "SignatureValidationFailed: signature rejected"
		refused(t, "CRI: "+name, g.pull(t, name, nil), class, reason)
		refused(t, "ctr: "+name, g.ctr(name), class, reason)
		refused(t, "berth: "+name, g.berth("image", "pull", g.registry.Address+"/"+name), class, reason)
		if n := g.registry.Count(http.MethodGet, "/blobs/"); n > 0 {
			t.Errorf("%s: %d blobs were fetched", name, n)
		}
	}
	g.nothing(t)
	for _, name := range []string{"public/app:1", "team/app:1", "apps/app:1"} {
		if err := g.pull(t, name, nil); err != nil {
			t.Errorf("CRI: %v", err)
		}
		if err := g.ctr(name); err != nil {
			t.Errorf("ctr: %v", err)
		}
		if err := g.berth("image", "pull", g.registry.Address+"/"+name); err != nil {
			t.Errorf("berth: %v", err)
		}
	}
	if err := g.ctr("other/app:1", "--local"); err != nil {
		t.Errorf("ctr --local: %v", err)
	}
	refused(t, "verify", g.berth("image", "verify", g.registry.Address+"/other/app:1"), "SignatureValidationFailed")
	if err := g.berth("image", "verify", g.registry.Address+"/team/app:1"); err != nil {
		t.Errorf("verify: %v", err)
	}
	got := g.checks(t)
	if c := got["image verifier"]; c[0] != "ok" || !strings.Contains(c[1], g.bin) || !strings.Contains(c[1], "not asked by `ctr images pull --local`") {
		t.Errorf("image verifier: %q", c)
	}
	if c := got["verified CRI pulls"]; c[0] != "ok" {
		t.Errorf("verified CRI pulls: %q", c)
	}

	// Without a policy nothing is accepted, without a verifier everything is.
	if err := os.Remove(policyFile); err != nil {
		t.Fatal(err)
	}
	refused(t, "no policy", g.pull(t, "public/app:1", nil), "invalid signature policy")
	if err := os.Remove(g.bin + "/berth-verify"); err != nil {
		t.Fatal(err)
	}
	if err := g.pull(t, "other/app:1", nil); err != nil {
		t.Errorf("no verifier: %v", err)
	}
	if c := g.checks(t)["image verifier"]; c[0] != "warn" {
		t.Errorf("no verifier: %q", c)
	}
}

// A70: options of the CRI plugin that have it pull by itself.
func TestPolicyBypass(t *testing.T) {
	g := guard(t, server.None, "\n[plugins.'io.containerd.cri.v1.images']\n  discard_unpacked_layers = true\n")
	if err := g.pull(t, "other/app:1", nil); err != nil {
		t.Errorf("containerd asks for a verdict now; the guide and the doctor should know: %v", err)
	}
	if c := g.checks(t)["verified CRI pulls"]; c[0] != "warn" || !strings.HasSuffix(c[1], ": discard_unpacked_layers = true") {
		t.Errorf("verified CRI pulls: %q", c)
	}
}

// The kubelet's credentials are not the verifier's, which has a file of its own.
func TestPolicyCredentials(t *testing.T) {
	g := guard(t, server.Basic, "")
	auth := &runtime.AuthConfig{Username: server.Username, Password: server.Password}
	if err := g.pull(t, "public/app:1", auth); err != nil {
		t.Errorf("a rule that needs no signature: %v", err)
	}
	refused(t, "no credentials", g.pull(t, "apps/app:1", auth), "signatures of "+g.registry.Address+"/apps/app:1", "authentication required")
	write(t, "/etc/berth/auth.json", fmt.Sprintf(`{"auths": {%q: {"auth": %s}}}`, g.registry.Address, base64JSON(t, server.Username+":"+server.Password)))
	g.script(t, "")
	if err := g.pull(t, "apps/app:1", auth); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	refused(t, "unsigned", g.pull(t, "apps/app:unsigned", auth), "SignatureValidationFailed")
	if c := g.checks(t)["image verifier"]; c[0] != "ok" {
		t.Errorf("image verifier: %q", c)
	}
}

func base64JSON(t *testing.T, s string) []byte {
	t.Helper()
	b, err := json.Marshal([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A server of signatures that does not answer is named in time.
func TestPolicyTimeout(t *testing.T) {
	g := guard(t, server.None, "")
	g.script(t, "-timeout 500ms")
	close(g.silent)
	start := time.Now()
	refused(t, "silence", g.pull(t, "team/app:1", nil), "gave up after 500ms", "signatures of "+g.registry.Address+"/team/app:1")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	g.nothing(t)
}
