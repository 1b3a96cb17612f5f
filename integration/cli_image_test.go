// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/crypt"
	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/image"
	registries "github.com/berthd/berth/integration/registry"
)

// imageCLI is berth's command line with files of registries and policies of its own.
type imageCLI struct {
	*cli
	dir      string
	settings []string // flags of all its calls
}

const (
	acceptAll = `{"default": [{"type": "insecureAcceptAnything"}]}`
	rejectAll = `{"default": [{"type": "reject"}]}`
)

// forImages is forCLI with such files. Images that a test has left go with it.
func forImages(t *testing.T, f func(t *testing.T, c *imageCLI)) {
	t.Helper()
	forCLI(t, func(t *testing.T, plain *cli) { withImages(t, plain, f) })
}

// withImages is forImages on a command line that is there.
func withImages(t *testing.T, plain *cli, f func(t *testing.T, c *imageCLI)) {
	t.Helper()
	c := &imageCLI{cli: plain, dir: t.TempDir()}
	for _, dir := range []string{"hosts", "drop-ins", "signatures"} {
		if err := os.Mkdir(filepath.Join(c.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, c.dir+"/policy.json", acceptAll)
	write(t, c.dir+"/reject.json", rejectAll)
	write(t, c.dir+"/registries.conf", "unqualified-search-registries = [\"a.berth.test\", \"b.berth.test\"]\nshort-name-mode = \"disabled\"\n")
	write(t, c.dir+"/auth.json", "{}")
	write(t, c.dir+"/berth.toml", fmt.Sprintf("[images]\nhosts_dir = %[1]q\nregistries_conf = %[2]q\nregistries_conf_dir = %[3]q\n"+
		"signature_policy = %[4]q\nsignature_registries_dir = %[5]q\nglobal_auth_file = %[6]q\npinned_images = [\"*keep*\"]\n",
		c.dir+"/hosts", c.dir+"/registries.conf", c.dir+"/drop-ins", c.dir+"/policy.json", c.dir+"/signatures", c.dir+"/auth.json"))
	c.settings = []string{"--config", c.dir + "/berth.toml"}
	before := c.names(t)
	t.Cleanup(func() {
		for _, name := range c.names(t) {
			if !slices.Contains(before, name) {
				c.try(t, "rm", "-f", name)
			}
		}
		c.try(t, "prune", "-f")
		if diff := cmp.Diff(before, c.names(t)); diff != "" {
			t.Errorf("images (-before +after):\n%s", diff)
		}
	})
	f(t, c)
}

// names are those of containerd's records.
func (c *imageCLI) names(t *testing.T) []string {
	t.Helper()
	out, err := c.Ctr("images", "ls", "-q").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// try calls `berth image`, whatever comes of it.
func (c *imageCLI) try(t testing.TB, args ...string) result {
	t.Helper()
	return c.run(t, append(append(slices.Clone(c.settings), "image"), args...)...)
}

// does calls `berth image`, which has to succeed, and returns its output without the
// last newline.
func (c *imageCLI) does(t testing.TB, args ...string) string {
	t.Helper()
	r := c.try(t, args...)
	if r.code != 0 {
		t.Fatalf("berth image %v: exit %d: %s%s", args, r.code, r.out, r.err)
	}
	return strings.TrimSuffix(r.out, "\n")
}

// refuses wants exit code 125 and one line of an error with the words.
func (c *imageCLI) refuses(t testing.TB, words string, args ...string) {
	t.Helper()
	c.fails(t, 125, words, append(append(slices.Clone(c.settings), "image"), args...)...)
}

// shows decodes the JSON array that a call writes.
func (c *imageCLI) shows(t testing.TB, args ...string) []object {
	t.Helper()
	return c.list(t, append(append(slices.Clone(c.settings), "image"), args...)...)
}

// complete wants containerd to find an image whole.
func (c *imageCLI) complete(t testing.TB, name string) {
	t.Helper()
	out, err := c.Ctr("images", "check", "name=="+name).CombinedOutput()
	if err != nil || !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+`\s.*complete \(\d+/\d+\).*true\s*$`).Match(out) {
		t.Errorf("ctr images check: %v\n%s", err, out)
	}
}

// loads starts `berth image load`, gives it a beginning, and waits until it is at work.
// The leases are those from before.
func (c *imageCLI) loads(t *testing.T, archive []byte) (load *exec.Cmd, leases []string) {
	t.Helper()
	leases = leasesOf(t, c.Daemon)
	load = c.command(t, append(slices.Clone(c.settings), "image", "load")...)
	in, err := load.StdinPipe()
	if err == nil {
		err = load.Start()
	}
	if err == nil {
		_, err = in.Write(archive)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		if len(leasesOf(t, c.Daemon)) == len(leases) {
			return "nothing is loaded"
		}
		return ""
	})
	return load, leases
}

// A pull tells of each layer on stderr and of the result on stdout, and a second one
// fetches nothing.
func TestCLIImagePull(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		address := registry(t)
		ref := address + "/berth/app:1"
		img := push(t, ref, "")
		want := address + "/berth/app@" + img.Manifest().Digest.String() + "\n"

		r := c.try(t, "pull", ref)
		if r.code != 0 || r.out != want {
			t.Fatalf("pull: %+v, want output %q", r, want)
		}
		for _, line := range []string{`^[0-9a-f]{12}: pull complete \d`, `^` + ref + `: is new$`} {
			if !regexp.MustCompile(`(?m)` + line).MatchString(r.err) {
				t.Errorf("no line %s in\n%s", line, r.err)
			}
		}
		if strings.Contains(r.err, "\x1b") || strings.Contains(r.err, "\r") {
			t.Errorf("escape sequences without a terminal: %q", r.err)
		}
		c.complete(t, ref)

		if r := c.try(t, "pull", ref); r.code != 0 || r.out != want || strings.Contains(r.err, "downloading") || !strings.Contains(r.err, "is up to date") {
			t.Errorf("second pull: %+v", r)
		}
		if r := c.try(t, "pull", "-q", ref); r.code != 0 || r.out != want || r.err != "" {
			t.Errorf("quiet pull: %+v", r)
		}
		c.refuses(t, "none:1", "pull", "-q", address+"/berth/none:1")
		c.refuses(t, "Upper", "pull", address+"/Upper")
		c.refuses(t, "pull cgroup invalid", "pull", "--cgroup", "foo", ref)
		if r := c.try(t, "pull", "-q", ref, address+"/berth/none:1"); r.code != 125 || r.out != want {
			t.Errorf("one of two: %+v", r)
		}
		c.does(t, "rm", ref)
	})
}

// On a terminal each layer has a bar.
func TestCLIImageBars(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		ref := registry(t) + "/berth/app:1"
		push(t, ref, "")
		u := c.atTerminal(t, append(slices.Clone(c.settings), "image", "pull", ref)...)
		u.ends(0)
		if got := u.lines.String(); !regexp.MustCompile(`[0-9a-f]{12} +pull complete +\d`).MatchString(got) || !strings.Contains(got, "\x1b[") {
			t.Errorf("screen: %q", got)
		}
	})
}

// What pull has brought is listed, inspected, tagged and removed.
func TestCLIImageLife(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		address := registry(t)
		ref := address + "/berth/app:1"
		push(t, ref, "")
		c.does(t, "pull", "-q", ref)

		one := c.shows(t, "inspect", ref)
		if len(one) != 1 {
			t.Fatalf("%d images", len(one))
		}
		id, _ := one[0]["id"].(string)
		fields(t, one[0], object{"names": []any{ref}, "platform": "linux/amd64", "unpacked": true, "pinned": false})
		if got := c.shows(t, "inspect", id[:8]); len(got) != 1 || got[0]["id"] != id {
			t.Errorf("by the beginning of the ID: %v", got)
		}
		fields(t, c.shows(t, "inspect", "--remote", ref)[0], object{"id": id, "name": ref})

		row := strings.Fields(strings.Split(c.does(t, "ls", address+"/berth/app"), "\n")[1])
		if row[0] != address+"/berth/app" || row[1] != "1" || row[2] != id[:12] {
			t.Errorf("row %q", row)
		}
		if got := c.does(t, "ls", "-q", "--no-trunc", "-f", "reference="+ref); got != id {
			t.Errorf("IDs: %q, want %s", got, id)
		}
		if got := c.does(t, "ls", "--digests", ref); !strings.Contains(got, one[0]["target"].(object)["digest"].(string)) {
			t.Errorf("digests: %s", got)
		}
		if got := c.shows(t, "ls", "-o", "json", ref); len(got) != 1 || got[0]["id"] != id || got[0]["size"] == nil {
			t.Errorf("list: %v", got)
		}
		c.refuses(t, "colour", "ls", "-f", "colour=red")

		c.does(t, "tag", ref, "berth.test/other:2", "berth.test/other:3")
		if got := c.does(t, "ls", "-q", "berth.test/other"); got != id[:12] {
			t.Errorf("tagged: %q", got)
		}
		c.refuses(t, "digest", "tag", ref, "berth.test/other@"+one[0]["target"].(object)["digest"].(string))
		if got := c.does(t, "untag", "berth.test/other:3"); got != "Untagged: berth.test/other:3" {
			t.Errorf("untag: %q", got)
		}
		c.refuses(t, "several names", "rm", id)
		if got := c.does(t, "rm", "berth.test/other:2"); got != "Untagged: berth.test/other:2" {
			t.Errorf("rm: %q", got)
		}
		if got := c.does(t, "rm", ref); !regexp.MustCompile(`^Untagged: .*\nDeleted: sha256:[0-9a-f]{64}$`).MatchString(got) {
			t.Errorf("rm: %q", got)
		}
		c.refuses(t, "does not exist", "rm", ref)
		c.does(t, "rm", "-f", ref)
		c.refuses(t, "does not exist", "inspect", ref)
	})
}

// Images for several platforms, and what comes with them.
func TestCLIImagePlatforms(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		address := registry(t)
		ref := address + "/berth/many:1"
		many, err := image.MultiPlatform(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := many.Push(t.Context()); err != nil {
			t.Fatal(err)
		}
		available := func() (list []string) {
			for _, m := range c.shows(t, "ls", "--tree", "-o", "json", ref)[0]["manifests"].([]any) {
				if m := m.(object); m["available"] == true {
					list = append(list, m["platform"].(string))
				}
			}
			return list
		}
		c.does(t, "pull", "-q", ref)
		if got := available(); !slices.Equal(got, []string{"linux/amd64"}) {
			t.Errorf("pulled: %v", got)
		}
		tree := c.does(t, "ls", "--tree", ref)
		if !regexp.MustCompile(`(?m)^├─ linux/amd64 .* yes `).MatchString(tree) || !regexp.MustCompile(`(?m)^└─ linux/arm64 .* no `).MatchString(tree) {
			t.Errorf("tree:\n%s", tree)
		}
		c.refuses(t, "linux/s390x", "pull", "-q", "--platform", "linux/s390x", ref)
		c.does(t, "pull", "-q", "--all-platforms", ref)
		if got := available(); !slices.Equal(got, []string{"linux/amd64", "linux/arm64"}) {
			t.Errorf("pulled: %v", got)
		}
		fields(t, c.shows(t, "inspect", "--platform", "linux/arm64", ref)[0], object{"platform": "linux/arm64"})
		c.does(t, "rm", "-f", "--platform", "linux/arm64", ref)
		if got := available(); !slices.Equal(got, []string{"linux/amd64"}) {
			t.Errorf("after removal of a platform: %v", got)
		}
		c.does(t, "rm", ref)

		// All of them may be others'.
		ref = address + "/berth/others:1"
		others, err := image.Build(ref, image.Variant{Platform: v1.Platform{OS: "linux", Architecture: "arm64"}}, image.Variant{Platform: v1.Platform{OS: "linux", Architecture: "s390x"}})
		if err == nil {
			err = others.Push(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		c.refuses(t, "no matching manifest for platform linux/amd64", "pull", "-q", ref)
		c.does(t, "pull", "-q", "--all-platforms", ref)
		if got := available(); !slices.Equal(got, []string{"linux/arm64", "linux/s390x"}) {
			t.Errorf("pulled: %v", got)
		}
	})
}

// Passwords, tokens, certificates and their files.
func TestCLIImageLogin(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		r, err := registries.Start(t.Context(), registries.Options{Dir: t.TempDir(), TLS: true, Auth: registries.Token})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		ref := r.Address + "/berth/private:1"
		img, err := image.Schema2(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Push(t.Context(), ref, img.Manifest(), img); err != nil {
			t.Fatal(err)
		}
		creds := registries.Username + ":" + registries.Password
		c.refuses(t, r.Address, "pull", "-q", "--tls-verify=false", ref)
		c.refuses(t, "no terminal", "pull", "-q", "--creds", registries.Username, ref)
		wrong := c.try(t, "pull", "-q", "--tls-verify=false", "--creds", registries.Username+":wrong-secret", ref)
		if wrong.code != 125 || strings.Contains(wrong.err, "wrong-secret") {
			t.Errorf("wrong password: %+v", wrong)
		}
		c.does(t, "pull", "-q", "--tls-verify=false", "--creds", creds, ref)
		c.does(t, "tag", ref, r.Address+"/berth/other:2")
		if got := c.does(t, "push", "-q", "--tls-verify=false", "--creds", creds, r.Address+"/berth/other:2"); got != r.Address+"/berth/other@"+img.Manifest().Digest.String() {
			t.Errorf("push: %q", got)
		}
		auth, err := json.Marshal(object{"auths": object{r.Address: object{"auth": base64.StdEncoding.EncodeToString([]byte(creds))}}})
		if err != nil {
			t.Fatal(err)
		}
		write(t, c.dir+"/other.json", string(auth))
		c.does(t, "pull", "-q", "--tls-verify=false", "--authfile", c.dir+"/other.json", "-a", r.Address+"/berth/other")
	})
}

// The policy is asked before anything is fetched.
func TestCLIImagePolicy(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		ref := registry(t) + "/berth/app:1"
		push(t, ref, "")
		c.refuses(t, "signature rejected", "pull", "-q", "--signature-policy", c.dir+"/reject.json", ref)
		c.refuses(t, "no-such.json", "pull", "-q", "--signature-policy", c.dir+"/no-such.json", ref)
		if slices.Contains(c.names(t), ref) {
			t.Error("a refused image is here")
		}
		c.does(t, "pull", "-q", ref)
		if got := c.does(t, "verify", ref); !strings.Contains(got, "@sha256:") {
			t.Errorf("verify: %q", got)
		}
		c.refuses(t, "signature rejected", "verify", "--signature-policy", c.dir+"/reject.json", ref)
	})
}

// A33: who has the key pulls and runs an encrypted image, nobody else does.
func TestCLIImageEncrypted(t *testing.T) {
	d := host.Run(t, host.Options{TOML: crypt.TOML()})
	onDaemon(t, d, func(t *testing.T, plain *cli) {
		withImages(t, plain, func(t *testing.T, c *imageCLI) {
			r, err := registries.Start(t.Context(), registries.Options{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			key, err := crypt.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			ref := r.Address + "/berth/secret:1"
			img := push(t, r.Address+"/berth/open:1", "")
			target, from, err := key.Encrypt(t.Context(), t.TempDir(), img, img.Manifest())
			if err == nil {
				err = r.Push(t.Context(), ref, target, from)
			}
			if err == nil {
				err = os.Mkdir(c.dir+"/keys", 0o700)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.refuses(t, "undecryptable layer", "pull", "-q", "--decryption-keys", c.dir+"/keys", ref)
			write(t, c.dir+"/keys/key.pem", key.PEM())
			c.refuses(t, "undecryptable layer", "pull", "-q", ref)
			c.does(t, "pull", "-q", "--decryption-keys", c.dir+"/keys", ref)
			c.complete(t, ref)
			c.does(t, "rm", ref)

			settings, err := os.ReadFile(c.dir + "/berth.toml")
			if err != nil {
				t.Fatal(err)
			}
			write(t, c.dir+"/berth.toml", string(settings)+fmt.Sprintf("decryption_keys_path = %q\n", c.dir+"/keys"))
			got := c.run(t, append(slices.Clone(c.settings), "run", "--rm", "--network", "host", "--progress", "none", ref, "busybox", "cat", "/etc/name")...)
			if got.code != 0 || got.out != img.Ref {
				t.Errorf("run: %+v", got)
			}
			c.does(t, "save", "-o", c.dir+"/secret.tar", ref)
			c.does(t, "rm", ref)
			if l := c.try(t, "load", "-i", c.dir+"/secret.tar"); l.code != 0 || l.err != "" {
				t.Errorf("load: %+v", l)
			}
			c.complete(t, ref)
		})
	})
}

// Archives go out and in, for docker and ctr too.
func TestCLIImageArchive(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		ref := registry(t) + "/berth/app:1"
		push(t, ref, "")
		c.does(t, "pull", "-q", ref)
		id := c.does(t, "ls", "-q", "--no-trunc", ref)
		file := filepath.Join(c.dir, "app.tar")
		c.does(t, "save", "-o", file, ref)
		c.refuses(t, "none", "save", "-o", c.dir+"/none.tar", "berth.test/none:1")
		if _, err := os.Stat(c.dir + "/none.tar"); !os.IsNotExist(err) {
			t.Errorf("a failed archive is there: %v", err)
		}
		c.does(t, "rm", ref)
		if got := c.does(t, "load", "-i", file); got != "Loaded image: "+ref {
			t.Errorf("load: %q", got)
		}
		if got := c.does(t, "ls", "-q", "--no-trunc", ref); got != id {
			t.Errorf("loaded %s, saved %s", got, id)
		}
		c.complete(t, ref)
		c.does(t, "rm", ref)
		if out, err := c.Ctr("images", "import", file).CombinedOutput(); err != nil {
			t.Errorf("ctr: %v: %s", err, out)
		}
		// One that is killed leaves what only a prune knows to be nobody's.
		c.does(t, "rm", "-f", ref)
		archive, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		load, before := c.loads(t, archive[:len(archive)/2])
		if err := load.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = load.Wait() // it was killed
		c.does(t, "prune", "-f")
		if after := leasesOf(t, c.Daemon); len(after) > len(before) {
			t.Errorf("leases left: %v", after)
		}
		write(t, c.dir+"/empty.tar", "")
		c.refuses(t, "", "load", "-i", c.dir+"/empty.tar")

		got := c.does(t, "import", "-c", "ENV A=1", "-m", "made here", "/dev/null", "berth.test/empty:1")
		fields(t, c.shows(t, "inspect", "berth.test/empty:1")[0], object{"id": got})
		if got := c.does(t, "history", "berth.test/empty:1"); !strings.Contains(got, "made here") {
			t.Errorf("history: %s", got)
		}
		c.refuses(t, "FROM", "import", "-c", "FROM x", "/dev/null", "berth.test/empty:2")
	})
}

// A container is made of an image that is pulled for it, and an image of the container.
func TestCLIImageContainer(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		ref := registry(t) + "/berth/app:1"
		push(t, ref, "")
		run := func(args ...string) result {
			return c.run(t, append(append(slices.Clone(c.settings), "run", "--network", "host"), args...)...)
		}
		if r := run("--rm", "--pull", "never", ref, "true"); r.code != 125 || !strings.Contains(r.err, "does not exist") {
			t.Errorf("never: %+v", r)
		}
		if r := run("--rm", "--signature-policy", c.dir+"/reject.json", ref, "true"); r.code != 125 || !strings.Contains(r.err, "signature rejected") {
			t.Errorf("refused: %+v", r)
		}
		if r := run("-d", "--name", "changer", "--progress", "none", ref, "/bin/sh", "-c", "/bin/busybox mkdir /new; /bin/busybox sleep 1000"); r.code != 0 || r.err != "" {
			t.Fatalf("run: %+v", r)
		}
		t.Cleanup(func() { c.must(t, "container", "rm", "-f", "changer") })
		eventually(t, patience, func() string {
			if got := c.does(t, "diff", "changer"); !strings.Contains(got, "A /new\n") && !strings.HasSuffix(got, "A /new") {
				return got
			}
			return ""
		})
		c.refuses(t, c.only(t, "container", "inspect", "changer")["id"].(string), "rm", ref) // it is in use
		if r := run("--rm", "--pull", "always", "--progress", "none", ref, "/bin/busybox", "true"); r.code != 0 {
			t.Errorf("always: %+v", r)
		}

		id := c.does(t, "commit", "-m", "saved", "-c", `CMD ["/bin/busybox", "ls", "/new"]`, "changer", "berth.test/saved:1")
		fields(t, c.shows(t, "inspect", "berth.test/saved:1")[0], object{"id": id})
		if r := run("--rm", "berth.test/saved:1"); r.code != 0 {
			t.Errorf("what was committed: %+v", r)
		}
		squashed := c.does(t, "squash", "-t", "berth.test/squashed:1", "berth.test/saved:1")
		one := c.shows(t, "inspect", "berth.test/squashed:1")[0]
		if layers := one["config"].(object)["rootfs"].(object)["diff_ids"].([]any); one["id"] != squashed || len(layers) != 1 {
			t.Errorf("squashed: %v", one)
		}
		for _, name := range []string{"berth.test/saved:1", "berth.test/squashed:1"} {
			c.complete(t, name)
		}
	})
}

// Images are mounted to be read.
func TestCLIImageMount(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		c.settings = append(c.settings, "--state", c.dir+"/state") // its lock stays
		root := c.does(t, "mount", host.Busybox)
		if _, err := os.Stat(root + "/bin"); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(root+"/new", nil, 0o644); err == nil {
			t.Error("an image was written to")
		}
		if got := c.does(t, "mount"); !strings.Contains(got, root) {
			t.Errorf("mounts: %s", got)
		}
		c.does(t, "unmount", host.Busybox)
		c.refuses(t, "not mounted", "unmount", host.Busybox)
		// As after a reboot: what kept the image mounted goes with the next prune.
		if err := unix.Unmount(c.does(t, "mount", host.Busybox), 0); err != nil {
			t.Fatal(err)
		}
		c.does(t, "prune", "-f")
	})
}

// Pins, pruning and what is taken.
func TestCLIImagePrune(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		address := registry(t)
		for _, name := range []string{"keep", "pin", "old"} {
			push(t, address+"/berth/"+name+":1", "")
			c.does(t, "pull", "-q", address+"/berth/"+name+":1")
		}
		c.does(t, "pin", host.Busybox, address+"/berth/pin:1")
		t.Cleanup(func() { c.does(t, "unpin", host.Busybox) })
		c.refuses(t, "configuration", "unpin", address+"/berth/keep:1")
		if got := c.shows(t, "ls", "-o", "json", address+"/berth/pin:1")[0]["pinned"]; got != true {
			t.Errorf("pinned: %v", got)
		}
		before := c.shows(t, "df", "-v", "-o", "json")
		if len(before) < 4 || !strings.Contains(c.does(t, "df"), "RECLAIMABLE") {
			t.Errorf("usage: %v", before)
		}
		c.refuses(t, "-f", "prune", "-a") // nobody to ask
		if r := c.try(t, "prune", "-f", "--filter", "colour=red"); r.code != 125 || r.out != "" || !strings.Contains(r.err, "colour") {
			t.Errorf("by a filter that there is not: %+v", r)
		}
		got := c.does(t, "prune", "-a", "-f")
		if !strings.Contains(got, "Untagged: "+address+"/berth/old:1\n") || strings.Contains(got, "keep") || strings.Contains(got, "berth/pin") || !strings.Contains(got, "Total reclaimed space: ") {
			t.Errorf("prune: %s", got)
		}
		c.does(t, "unpin", address+"/berth/pin:1")
		var report object
		if err := json.Unmarshal([]byte(c.does(t, "prune", "-a", "-f", "-o", "json")), &report); err != nil || report["reclaimed"] == 0.0 {
			t.Errorf("prune: %v, %v", report, err)
		}
		if got := c.names(t); !slices.Contains(got, address+"/berth/keep:1") || slices.Contains(got, address+"/berth/pin:1") {
			t.Errorf("left: %v", got)
		}
	})
}

// What a name may stand for is said without asking anybody.
func TestCLIImageCandidates(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		for name, want := range map[string]string{
			"app":                 "a.berth.test/app:latest\nb.berth.test/app:latest",
			"app:2":               "a.berth.test/app:2\nb.berth.test/app:2",
			"registry.test/app":   "registry.test/app:latest",
			"docker.io/busybox:1": "docker.io/library/busybox:1",
		} {
			if got := c.does(t, "candidates", name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		c.refuses(t, "Upper", "candidates", "Upper")
	})
}

// What is missing is found, and put in order where that is possible.
func TestCLIImageCheck(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		ref := registry(t) + "/berth/app:1"
		img := push(t, ref, "")
		c.does(t, "pull", "-q", ref)
		if got := c.does(t, "check", ref); !regexp.MustCompile(`complete +true`).MatchString(got) {
			t.Errorf("check: %s", got)
		}
		if out, err := c.Ctr("content", "rm", img.Manifest().Digest.String()).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if r := c.try(t, "check", "-o", "json", ref); r.code != 1 || !strings.Contains(r.out, `"complete": false`) {
			t.Errorf("check: %+v", r)
		}
		c.try(t, "check", "--repair", ref)
		if r := c.try(t, "pull", "-q", ref); r.code != 0 {
			t.Errorf("pull of what was broken: %+v", r)
		}
		c.complete(t, ref)
	})
}

// A registry that does not answer is told apart from an image that is not there.
func TestCLIImageUnreachable(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		c.refuses(t, "connection refused\n", "pull", "-q", "127.0.0.1:1/berth/app:1")
		r, err := registries.Start(t.Context(), registries.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		ref := r.Address + "/berth/app:1"
		img, err := image.Noise(1, 1<<20)(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Push(t.Context(), ref, img.Manifest(), img); err != nil {
			t.Fatal(err)
		}
		remove := r.Inject(registries.Fault{Path: "/blobs/", Do: registries.StallAfter(1 << 10)})
		c.refuses(t, "no progress", "pull", "-q", "--timeout", "1", ref)
		remove()
		t.Cleanup(r.Inject(registries.Fault{Do: registries.Answer(http.StatusForbidden, "DENIED")}))
		c.refuses(t, r.Address, "pull", "-q", ref)
	})
}

// Questions, and what waits for input, end with ctrl-c.
func TestCLIImageInterrupted(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		const interrupted = 128 + int(unix.SIGINT)
		for question, args := range map[string][]string{
			"Go on? [y/N]": {"prune"},
			"Password:":    {"pull", "--creds", "me", "127.0.0.1:1/berth/app:1"},
		} {
			u := c.atTerminal(t, append(append(slices.Clone(c.settings), "image"), args...)...)
			u.sees(question)
			eventually(t, patience, func() string {
				state, err := unix.IoctlGetTermios(int(u.slave.Fd()), unix.TCGETS)
				if err != nil || question == "Password:" && state.Lflag&unix.ECHO != 0 {
					return fmt.Sprintf("a password would be seen: %v", err)
				}
				return ""
			})
			u.types("\x03")
			u.ends(interrupted)
		}
		load, _ := c.loads(t, nil)
		if err := load.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = load.Wait()
		if got := load.ProcessState.ExitCode(); got != interrupted {
			t.Errorf("load: exit %d, want %d", got, interrupted)
		}
	})
}

// Shells complete names as people write them.
func TestCLIImageCompletion(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		c.does(t, "tag", host.Busybox, "docker.io/library/completed:1")
		for begin, want := range map[string]string{"compl": "completed:1\n", "docker.io/library/compl": "docker.io/library/completed:1\n"} {
			r := c.run(t, append(slices.Clone(c.settings), "__complete", "image", "rm", begin)...)
			if r.code != 0 || !strings.HasPrefix(r.out, want) {
				t.Errorf("%s: %+v", begin, r)
			}
		}
	})
}

// A pull that is killed leaves no image, and the next one goes on where it stopped.
func TestCLIImageKilled(t *testing.T) {
	forImages(t, func(t *testing.T, c *imageCLI) {
		r, err := registries.Start(t.Context(), registries.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		ref := r.Address + "/berth/noise:1"
		img, err := image.Noise(4, 1<<20)(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Push(t.Context(), ref, img.Manifest(), img); err != nil {
			t.Fatal(err)
		}
		layers := layersOf(t, img)
		resume := r.Inject(registries.Fault{Method: http.MethodGet, Path: layers[3].Digest.String(), Do: registries.StallAfter(1 << 19)})
		pull := c.command(t, append(slices.Clone(c.settings), "image", "pull", "-q", ref)...)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string {
			for _, l := range layers[:3] {
				if _, err := c.Client().ContentStore().Info(c.ctx(t), l.Digest); err != nil {
					return err.Error()
				}
			}
			if r.Fetches(layers[3].Digest) == 0 {
				return "the last layer was not asked for"
			}
			return ""
		})
		if err := pull.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = pull.Wait() // it was killed
		resume()
		if slices.Contains(c.names(t), ref) {
			t.Error("half an image is here")
		}
		c.does(t, "pull", "-q", ref)
		c.complete(t, ref)
		for _, l := range layers[:3] {
			if n := r.Fetches(l.Digest); n != 1 {
				t.Errorf("layer %s was fetched %d times", l.Digest, n)
			}
		}
		c.does(t, "rm", ref)
	})
}

// layersOf are the layers of an image with one manifest.
func layersOf(t *testing.T, img *image.Image) []v1.Descriptor {
	t.Helper()
	text, err := content.ReadBlob(t.Context(), img, img.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m.Layers
}

// The kubelet sees what berth pulls, pins and removes, and the other way round.
func TestCLIImageKubernetes(t *testing.T) {
	n := newNode(t, host.Native, host.Options{})
	withImages(t, &cli{env: n.env, conf: n.conf}, func(t *testing.T, c *imageCLI) {
		c.settings = append(c.settings, "--namespace", "k8s.io")
		ref := registry(t) + "/berth/app:1"
		push(t, ref, "1000")
		status := func() *runtime.Image {
			t.Helper()
			answer, err := n.Images.ImageStatus(n.ctx(t), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
			if err != nil {
				t.Fatal(err)
			}
			return answer.GetImage()
		}
		// CRI hears by events of what others do.
		hears := func(what string, ok func(*runtime.Image) bool) {
			t.Helper()
			eventually(t, patience, func() string {
				if i := status(); !ok(i) {
					return fmt.Sprintf("%s: CRI has %v", what, i)
				}
				return ""
			})
			list, err := n.Images.ListImages(n.ctx(t), &runtime.ListImagesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, i := range list.GetImages() {
				want = append(want, strings.TrimPrefix(i.GetId(), "sha256:"))
			}
			got := strings.Fields(c.does(t, "ls", "-q", "--no-trunc"))
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: IDs (-CRI +berth):\n%s", what, diff)
			}
		}
		c.does(t, "pull", "-q", ref)
		hears("pull", func(i *runtime.Image) bool { return i != nil && i.GetUid().GetValue() == 1000 })
		c.does(t, "pin", ref)
		hears("pin", (*runtime.Image).GetPinned)
		c.does(t, "unpin", ref)
		hears("unpin", func(i *runtime.Image) bool { return !i.GetPinned() })
		if _, err := n.Images.RemoveImage(n.ctx(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
			t.Fatal(err)
		}
		c.refuses(t, "does not exist", "inspect", ref)
		if _, err := n.Images.PullImage(n.ctx(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
			t.Fatal(err)
		}
		hears("CRI's pull", func(i *runtime.Image) bool { return i != nil })
		c.does(t, "tag", ref, "berth.test/more:1")
		more := func(i *runtime.Image) bool { return slices.Contains(i.GetRepoTags(), "berth.test/more:1") }
		hears("tag", more)
		c.does(t, "untag", "berth.test/more:1")
		hears("untag", func(i *runtime.Image) bool { return i != nil && !more(i) })
		c.does(t, "save", "-o", c.dir+"/app.tar", ref)
		c.does(t, "rm", ref)
		hears("rm", func(i *runtime.Image) bool { return i == nil })
		c.does(t, "load", "-i", c.dir+"/app.tar")
		hears("load", func(i *runtime.Image) bool { return i != nil })
		// The name moves, and the image stays until the prune.
		c.does(t, "import", "/dev/null", ref)
		hears("import", func(i *runtime.Image) bool { return i != nil && i.GetUid() == nil })
		c.does(t, "prune", "-f")
		hears("prune", func(i *runtime.Image) bool { return i != nil })
		c.does(t, "rm", ref)
		hears("last rm", func(i *runtime.Image) bool { return i == nil })
	})
}
