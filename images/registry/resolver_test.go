// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/integration/image"
	server "github.com/berthd/berth/integration/registry"
)

// 24
func TestLoopbackIsInsecure(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]server.Options{"plain": {}, "unknown CA": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, o)
			r := open(t, registry.Config{})
			if desc, err := resolve(t, r, s.ref, registry.Access{}); err != nil || desc.Digest != s.manifest.Digest {
				t.Errorf("resolve: %v, %v", desc, err)
			}
			if got, err := fetch(ctx(t), r, s.ref, s.layer); err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("fetch: %d bytes, %v", len(got), err)
			}
			if tags, err := r.Tags(ctx(t), s.ref, registry.Access{}); err != nil || !slices.Equal(tags, []string{"1"}) {
				t.Errorf("tags: %v, %v", tags, err)
			}
		})
	}
}

// abroad is a registry that is not at 127.0.0.0/8, and the name that leads there.
func abroad(t *testing.T, o server.Options) (s *served, name string) {
	t.Helper()
	if out, err := exec.Command("ip", "address", "replace", "10.1.2.3/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	hosts, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hosts.Close()
	if _, err := hosts.WriteString("\n10.1.2.3 far.test\n"); err != nil {
		t.Fatal(err)
	}
	o.Listen, o.Names = "10.1.2.3:0", []string{"far.test"}
	s = serve(t, o)
	_, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	return s, "far.test:" + port
}

// 23
func TestInsecure(t *testing.T) {
	plain, plainName := abroad(t, server.Options{})
	secure, secureName := abroad(t, server.Options{TLS: true})
	tests := []struct {
		name     string
		insecure []string
		access   registry.Access
		ok       bool
	}{
		{name: "by default"},
		{name: "another range", insecure: []string{"10.2.0.0/16"}},
		{name: "another host", insecure: []string{"near.test", "far.test"}},
		{name: "range", insecure: []string{"10.0.0.0/8"}, ok: true},
		{name: "host", insecure: []string{plainName, secureName}, ok: true},
		{name: "call", access: registry.Access{PlainHTTP: true, SkipVerify: true}, ok: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := open(t, registry.Config{Insecure: test.insecure})
			for name, s := range map[string]*served{plainName: plain, secureName: secure} {
				ref := parse(t, name+"/"+s.ref.Path()+":1")
				_, err := resolve(t, r, ref, test.access)
				_, tagsErr := r.Tags(ctx(t), ref, test.access)
				if !test.ok && errdefs.IsFailedPrecondition(err) && errdefs.IsFailedPrecondition(tagsErr) {
					what := "certificate not accepted"
					if s == plain {
						what = "speaks plain HTTP"
					}
					mentions(t, err, what, ref.Text(), "registry "+name)
					continue
				}
				if !test.ok || err != nil || tagsErr != nil {
					t.Errorf("%s: %v, %v; want success: %v", ref, err, tagsErr, test.ok)
				}
			}
		})
	}
	r := open(t, registry.Config{Insecure: []string{"10.0.0.0/8", "Some.Host:5"}})
	for host, want := range map[string]bool{
		"10.9.9.9": true, "10.9.9.9:5000": true, "far.test:1": true, "some.host:5": true, "127.9.0.1": true, "localhost:80": true,
		"11.0.0.1": false, "nowhere.invalid:1": false, "some.host:6": false, "[::2]:5000": false, "[::ffff:10.0.0.1]:1": true,
	} {
		if got := r.Insecure(ctx(t), host); got != want {
			t.Errorf("Insecure(%s) = %v", host, got)
		}
	}
}

// TestKnownCA: certificates in each of the places where they may be.
func TestKnownCA(t *testing.T) {
	s, name := abroad(t, server.Options{TLS: true})
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	ref := parse(t, name+"/"+s.ref.Path()+":1")
	dirs := map[string]registry.Config{"hosts.toml": {HostsDir: t.TempDir()}, "hosts": {HostsDir: t.TempDir()}, "certs": {CertsDir: t.TempDir()}}
	write(t, filepath.Join(dirs["hosts.toml"].HostsDir, name, "any.pem"), string(ca))
	write(t, filepath.Join(dirs["hosts.toml"].HostsDir, name, "hosts.toml"), fmt.Sprintf("server = %q\nca = \"any.pem\"\n", "https://"+name))
	write(t, filepath.Join(dirs["hosts"].HostsDir, name, "ca.crt"), string(ca))
	write(t, filepath.Join(dirs["certs"].CertsDir, name, "ca.crt"), string(ca))
	for where, c := range dirs {
		r := open(t, c)
		if _, err := resolve(t, r, ref, registry.Access{}); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if _, err := r.Tags(ctx(t), ref, registry.Access{}); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
	// Verification can be asked for where it is not needed.
	strict := open(t, registry.Config{Insecure: []string{"10.0.0.0/8"}, HostsDir: t.TempDir()})
	dir := t.TempDir()
	write(t, filepath.Join(dir, name, "hosts.toml"), fmt.Sprintf("server = %q\nskip_verify = false\n", "https://"+name))
	if _, err := resolve(t, strict, ref, registry.Access{}); err != nil {
		t.Error(err)
	}
	strict = open(t, registry.Config{Insecure: []string{"10.0.0.0/8"}, HostsDir: dir})
	if _, err := resolve(t, strict, ref, registry.Access{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("verification is off: %v", err)
	}
}

func TestBadHostsFile(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, s.Address, "hosts.toml"), "server = [")
	_, err := resolve(t, open(t, registry.Config{HostsDir: dir}), s.ref, registry.Access{})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v, want ErrFailedPrecondition", err)
	}
	mentions(t, err, file)
	if n := len(s.Log()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestHostsMirror: what hosts.toml puts in front of a registry.
func TestHostsMirror(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{}), serve(t, server.Options{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, s.Address, "hosts.toml"), fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", s.URL(), mirror.URL()))
	r := open(t, registry.Config{HostsDir: dir})
	if _, err := resolve(t, r, s.ref, registry.Access{}); err != nil {
		t.Fatal(err)
	}
	if len(s.Log()) != 0 || len(mirror.Log()) == 0 {
		t.Errorf("requests: %v at the registry, %v at the mirror", s.Log(), mirror.Log())
	}
	if got, err := fetch(ctx(t), r, s.ref, s.layer); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("fetch: %d bytes, %v", len(got), err)
	}
	mirror.Inject(server.Fault{Do: server.Answer(404, "NAME_UNKNOWN")})
	if _, err := resolve(t, r, s.ref, registry.Access{}); err != nil {
		t.Error(err)
	}
	if tags, err := r.Tags(ctx(t), s.ref, registry.Access{}); err != nil || !slices.Equal(tags, []string{"1"}) {
		t.Errorf("tags: %v, %v", tags, err)
	}
}

func mirrorConf(s, mirror *served, more string) string {
	return fmt.Sprintf("[[registry]]\nlocation = %q\n%s\n[[registry.mirror]]\nlocation = %q\n", s.Address, more, mirror.Address+"/cache")
}

// TestMirror: registries.conf's mirrors come first and may be anywhere.
func TestMirror(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{}), serveAs(t, server.Options{}, "cache/team/app:1")
	r := configured(t, mirrorConf(s, mirror, ""), registry.Config{})
	if desc, err := resolve(t, r, s.ref, registry.Access{}); err != nil || desc.Digest != s.manifest.Digest {
		t.Errorf("resolve: %v, %v", desc, err)
	}
	if got, err := fetch(ctx(t), r, s.ref, s.layer); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("fetch: %d bytes, %v", len(got), err)
	}
	if tags, err := r.Tags(ctx(t), s.ref, registry.Access{}); err != nil || !slices.Equal(tags, []string{"1"}) {
		t.Errorf("tags: %v, %v", tags, err)
	}
	if n := len(s.Log()); n != 0 || mirror.Count("", "/v2/cache/team/app/") == 0 {
		t.Errorf("%d requests at the registry; at the mirror %v", n, mirror.Log())
	}
}

// TestMirrorFails: then the registry is asked, even for the rest of a layer.
func TestMirrorFails(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{}), serveAs(t, server.Options{}, "cache/team/app:1")
	r := configured(t, mirrorConf(s, mirror, ""), registry.Config{})
	const half = layerBytes / 2
	faults := map[string]server.Action{
		"missing": server.Answer(404, "NAME_UNKNOWN"), "denied": server.Answer(403, "DENIED"), "broken": server.Answer(503, "UNAVAILABLE"),
		"lost": server.CutAfter(0), "ends": server.Truncate(half),
	}
	for name, do := range faults {
		t.Run(name, func(t *testing.T) {
			defer mirror.Inject(server.Fault{Do: do})()
			if name != "lost" && name != "ends" {
				if desc, err := resolve(t, r, s.ref, registry.Access{}); err != nil || desc.Digest != s.manifest.Digest {
					t.Errorf("resolve: %v, %v", desc, err)
				}
				if tags, err := r.Tags(ctx(t), s.ref, registry.Access{}); err != nil || !slices.Equal(tags, []string{"1"}) {
					t.Errorf("tags: %v, %v", tags, err)
				}
			}
			s.Forget()
			mirror.Forget()
			got, err := fetch(ctx(t), r, s.ref, s.layer)
			if err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("fetch: %d bytes, %v", len(got), err)
			}
			want := ""
			if name == "ends" {
				want = fmt.Sprintf("bytes=%d-", half)
			}
			if log := s.Log(); len(log) != 1 || log[0].Range != want {
				t.Errorf("requests %+v, want one with range %q", log, want)
			}
			if n := len(mirror.Log()); name == "broken" && n != 1 {
				t.Errorf("a broken mirror was asked %d times", n)
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		mirror.Inject(server.Fault{Do: server.Answer(403, "DENIED")})
		s.Inject(server.Fault{Do: server.Answer(404, "NAME_UNKNOWN")})
		_, err := resolve(t, r, s.ref, registry.Access{})
		if !errdefs.IsNotFound(err) || errdefs.IsPermissionDenied(err) {
			t.Errorf("error %v, want that of the registry", err)
		}
		mentions(t, err, s.ref.Text(), mirror.Address+"/cache/team/app:1", "access denied")
	})
}

// TestMirrorByDigestOnly: and the other restrictions of mirrors.
func TestMirrorByDigestOnly(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{}), serveAs(t, server.Options{}, "cache/team/app:1")
	byDigest, err := s.ref.WithDigest(s.manifest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		conf           string
		tagged, digest bool // whether the mirror is asked
	}{
		"digest only":        {mirrorConf(s, mirror, "mirror-by-digest-only = true"), false, true},
		"mirror digest only": {mirrorConf(s, mirror, "") + "pull-from-mirror = \"digest-only\"\n", false, true},
		"mirror tag only":    {mirrorConf(s, mirror, "") + "pull-from-mirror = \"tag-only\"\n", true, false},
	}
	for name, test := range tests {
		r := configured(t, test.conf, registry.Config{})
		for ref, want := range map[string]bool{s.ref.Text(): test.tagged, byDigest.Text(): test.digest} {
			mirror.Forget()
			if _, err := resolve(t, r, parse(t, ref), registry.Access{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := len(mirror.Log()) > 0; got != want {
				t.Errorf("%s: %s: mirror asked: %v, want %v", name, ref, got, want)
			}
		}
	}
}

func TestLocation(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := configured(t, fmt.Sprintf(`
[[registry]]
prefix = "example.test/things"
location = "%s/team"
[[registry]]
prefix = "*.wild.test"
location = %q
namespace-proxy = "wild.test"
[[registry]]
prefix = "bad.test"
location = "bad.test"
blocked = true
`, s.Address, s.Address), registry.Config{})
	for _, name := range []string{"example.test/things/app:1", "x.wild.test/team/app:1"} {
		ref := parse(t, name)
		if desc, err := resolve(t, r, ref, registry.Access{}); err != nil || desc.Digest != s.manifest.Digest {
			t.Errorf("%s: %v, %v", name, desc, err)
		}
		if got, err := fetch(ctx(t), r, ref, s.layer); err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	log := s.Log()
	if last := log[len(log)-1]; last.Query != "ns=wild.test" {
		t.Errorf("query %q, want the namespace", last.Query)
	}
	_, err := r.Resolver(ctx(t), parse(t, "bad.test/a:1"), registry.Access{})
	if !errors.Is(err, registry.ErrBlocked) || !errdefs.IsPermissionDenied(err) {
		t.Errorf("error %v, want ErrBlocked", err)
	}
	mentions(t, err, "bad.test/a:1")
	if _, err := r.Tags(ctx(t), parse(t, "bad.test/a"), registry.Access{}); !errors.Is(err, registry.ErrBlocked) {
		t.Errorf("tags: error %v, want ErrBlocked", err)
	}
}

// TestInsecureByConf: registries.conf's own word for it.
func TestInsecureByConf(t *testing.T) {
	s, name := abroad(t, server.Options{})
	ref := parse(t, name+"/team/app:1")
	for insecure, ok := range map[bool]bool{true: true, false: false} {
		r := configured(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = %v\n", name, insecure), registry.Config{})
		desc, err := resolve(t, r, ref, registry.Access{})
		if (err == nil) != ok || ok && desc.Digest != s.manifest.Digest {
			t.Errorf("insecure %v: %v", insecure, err)
		}
	}
}

// TestPush: what is pushed goes to the registry, whatever mirrors it has.
func TestPush(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{Auth: server.Token}), serve(t, server.Options{})
	r := configured(t, mirrorConf(s, mirror, ""), registry.Config{})
	ref := parse(t, s.Address+"/new/app:2")
	img, err := image.New(ref.Text(), nil, imageConfig)
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := r.Resolver(ctx(t), ref, registry.Access{Credentials: &registry.Credentials{Username: server.Username, Password: server.Password}})
	if err != nil {
		t.Fatal(err)
	}
	pusher, err := resolver.Pusher(ctx(t), ref.Text()+"@"+img.Manifest().Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	push(t, pusher, img)
	if _, desc, err := resolver.Resolve(ctx(t), ref.Text()); err != nil || desc.Digest != img.Manifest().Digest {
		t.Errorf("resolve: %v, %v", desc, err)
	}
	if mirror.Count(http.MethodPut, "") > 0 {
		t.Errorf("the mirror was written to: %v", mirror.Log())
	}
}

// TestSeek: a reader goes on where it is told to.
func TestSeek(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	resolver, err := open(t, registry.Config{}).Resolver(ctx(t), s.ref, registry.Access{})
	if err != nil {
		t.Fatal(err)
	}
	fetcher, err := resolver.Fetcher(ctx(t), s.ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := fetcher.Fetch(ctx(t), s.layer)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	seeker := reader.(io.Seeker)
	head := make([]byte, 100)
	if _, err := io.ReadFull(reader, head); err != nil || !bytes.Equal(head, s.content[:100]) {
		t.Errorf("head: %v", err)
	}
	for whence, offset := range map[int]int64{io.SeekStart: s.layer.Size - 50, io.SeekEnd: -50} {
		if at, err := seeker.Seek(offset, whence); err != nil || at != s.layer.Size-50 {
			t.Errorf("seek: %d, %v", at, err)
		}
		rest, err := io.ReadAll(reader)
		if err != nil || !bytes.Equal(rest, s.content[s.layer.Size-50:]) {
			t.Errorf("rest: %d bytes, %v", len(rest), err)
		}
	}
	if _, err := seeker.Seek(-1, io.SeekStart); !errdefs.IsInvalidArgument(err) {
		t.Errorf("seek before the beginning: %v", err)
	}
}

func TestTagsOfManyPages(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{Auth: server.Token})
	manifest, err := content.ReadBlob(ctx(t), s.image, s.manifest)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"1"}
	for i := range 230 {
		tag := fmt.Sprintf("v%03d", i)
		want = append(want, tag)
		s.tag(t, tag, manifest)
	}
	s.Forget()
	r := open(t, registry.Config{})
	got, err := r.Tags(ctx(t), s.ref, registry.Access{Credentials: &registry.Credentials{Username: server.Username, Password: server.Password}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := s.Count(http.MethodGet, "/tags/list"); n != 4 { // one of them without a token
		t.Errorf("%d requests for 3 pages", n)
	}
	if _, err := r.Tags(ctx(t), s.ref, registry.Access{}); !errdefs.IsUnauthorized(err) {
		t.Errorf("anonymous: %v, want ErrUnauthenticated", err)
	}
}

// TestLinkElsewhere: a page's link leads to no other host.
func TestLinkElsewhere(t *testing.T) {
	t.Parallel()
	s, other := serve(t, server.Options{}), serve(t, server.Options{})
	page := func(tags, link string) server.Action {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			if link != "" {
				w.Header().Set("Link", link)
			}
			fmt.Fprintf(w, `{"name":"x","tags":[%s]}`, tags)
		}
	}
	s.Inject(server.Fault{Path: "/tags/list", Times: 1, Do: page(`"a"`, fmt.Sprintf(`<%s/v2/team/app/tags/list?last=a>; rel="next"`, other.URL()))})
	s.Inject(server.Fault{Path: "/tags/list", Do: page(`"b"`, "")})
	got, err := open(t, registry.Config{}).Tags(ctx(t), s.ref, registry.Access{})
	if err != nil || strings.Join(got, " ") != "a b" {
		t.Errorf("tags %v, %v", got, err)
	}
	if n := len(other.Log()); n != 0 {
		t.Errorf("%d requests elsewhere", n)
	}
}

// TestNothingStays: after a while no connection is left, whatever became of what
// was asked for.
func TestNothingStays(t *testing.T) {
	s := serve(t, server.Options{TLS: true})
	sockets := func() (n int) {
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "socket:") {
				n++
			}
		}
		return n
	}
	before := sockets()
	r := open(t, registry.Config{})
	resolver, err := r.Resolver(ctx(t), s.ref, registry.Access{})
	if err != nil {
		t.Fatal(err)
	}
	fetcher, err := resolver.Fetcher(ctx(t), s.ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		half, err := fetcher.Fetch(ctx(t), s.layer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, half, layerBytes/2); err != nil {
			t.Error(err)
		}
		if err := half.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, do := range []server.Action{server.Answer(503, "UNAVAILABLE", "Retry-After", "0"), server.CutAfter(10), server.Truncate(10)} {
		remove := s.Inject(server.Fault{Path: s.layer.Digest.String(), Times: 20, Do: do})
		if _, err := fetchBy(ctx(t), resolver, s.ref, s.layer); err != nil {
			t.Log(err)
		}
		remove()
	}
	if _, err := r.Tags(ctx(t), s.ref, registry.Access{}); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(20 * time.Second); sockets() > before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sockets, before %d", sockets(), before)
		}
	}
}
