// SPDX-License-Identifier: Apache-2.0

package reference_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/reference"
)

const (
	hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	sum = "sha256:" + hex
)

func TestParseID(t *testing.T) {
	tests := map[string]string{
		"63 digits": hex[1:],
		"65 digits": hex + "0",
		"upper":     strings.ToUpper(hex),
		"prefix":    sum,
		"empty":     "",
		"no digit":  "g" + hex[1:],
		"newline":   hex[1:] + "\n",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := reference.ParseID(text); !errdefs.IsInvalidArgument(err) {
				t.Errorf("ParseID(%q): error %v, want ErrInvalidArgument", text, err)
			}
		})
	}
	a, errA := reference.ParseID(hex)
	b, errB := reference.IDFromDigest(sum)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if keys := map[reference.ID]bool{a: true}; a != b || !keys[b] {
		t.Errorf("two parses of one ID differ: %v, %v", a, b)
	}
	if got, want := fmt.Sprintf("%v %s %+v %q", a, a, a, a), hex+" "+hex+" "+hex+` "`+hex+`"`; got != want {
		t.Errorf("formatted %s, want %s", got, want)
	}
	if a.Digest() != sum {
		t.Errorf("digest %s, want %s", a.Digest(), sum)
	}
	if _, ok := any(a).(fmt.Stringer); ok {
		t.Error("an ID has a String method")
	}
}

func TestIDFromDigest(t *testing.T) {
	for _, d := range []digest.Digest{"", hex, "sha256:12", digest.SHA512.FromString("x")} {
		if _, err := reference.IDFromDigest(d); !errdefs.IsInvalidArgument(err) {
			t.Errorf("IDFromDigest(%q): error %v, want ErrInvalidArgument", d, err)
		}
	}
}

func TestParse(t *testing.T) {
	tests := []struct{ in, want string }{
		{"busybox", "docker.io/library/busybox:latest"},
		{"foo/bar", "docker.io/foo/bar:latest"},
		{"docker.io/x", "docker.io/library/x:latest"},
		{"index.docker.io/x:1", "docker.io/library/x:1"},
		{"localhost/x", "localhost/x:latest"},
		{"r.io:5000/a/b:T", "r.io:5000/a/b:T"},
		{"[::1]:5000/a", "[::1]:5000/a:latest"},
		{"r.io/a@" + sum, "r.io/a@" + sum},
		{"r.io/a:1@" + sum, "r.io/a@" + sum},
	}
	for _, test := range tests {
		ref, err := reference.Parse(test.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", test.in, err)
			continue
		}
		if ref.Text() != test.want {
			t.Errorf("Parse(%q) = %s, want %s", test.in, ref.Text(), test.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"", "@", "example.com/", "/a", "Foo/bar", "a:", "a@", "a@sha256:12", "a@md5:d41d8cd98f00b204e9800998ecf8427e",
		"a:b c", "a//b", "docker://a", "a:" + strings.Repeat("t", 129), hex,
	} {
		if ref, err := reference.Parse(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Parse(%q) = %v, %v; want ErrInvalidArgument", in, ref, err)
		}
	}
	if _, err := reference.Parse(hex); !errors.Is(err, reference.ErrCannotParseImageID) {
		t.Errorf("Parse of an ID: error %v, want ErrCannotParseImageID", err)
	}
}

func TestParts(t *testing.T) {
	type parts struct {
		Host, Path, Repository, Tag, Familiar string
		Digest                                digest.Digest
	}
	of := func(in string) parts {
		r, err := reference.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		return parts{r.Host(), r.Path(), r.Repository(), r.Tag(), r.Familiar(), r.Digest()}
	}
	want := parts{"r.io:5000", "a/b", "r.io:5000/a/b", "1", "r.io:5000/a/b:1", ""}
	if diff := cmp.Diff(want, of("r.io:5000/a/b:1")); diff != "" {
		t.Error(diff)
	}
	want = parts{"docker.io", "library/x", "docker.io/library/x", "", "x@" + sum, sum}
	if diff := cmp.Diff(want, of("x:1@"+sum)); diff != "" {
		t.Error(diff)
	}
}

func TestWith(t *testing.T) {
	ref, err := reference.Parse("x@" + sum)
	if err != nil {
		t.Fatal(err)
	}
	tagged, err := ref.WithTag("2")
	if err != nil || tagged.Text() != "docker.io/library/x:2" {
		t.Errorf("WithTag: %v, %v", tagged, err)
	}
	if back, err := tagged.WithDigest(sum); err != nil || back != ref {
		t.Errorf("WithDigest: %v, %v; want %v", back, err, ref)
	}
	if _, err := ref.WithTag("no tag"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("WithTag: error %v, want ErrInvalidArgument", err)
	}
	if _, err := ref.WithDigest("sha256:1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("WithDigest: error %v, want ErrInvalidArgument", err)
	}
}

func TestZeroPanics(t *testing.T) {
	var id reference.ID
	var ref reference.Reference
	uses := map[string]func(){
		"Hex":        func() { _ = id.Hex() },
		"ID.Digest":  func() { _ = id.Digest() },
		"Text":       func() { _ = ref.Text() },
		"Familiar":   func() { _ = ref.Familiar() },
		"Host":       func() { _ = ref.Host() },
		"Path":       func() { _ = ref.Path() },
		"Repository": func() { _ = ref.Repository() },
		"Tag":        func() { _ = ref.Tag() },
		"Digest":     func() { _ = ref.Digest() },
		"Named":      func() { _ = ref.Named() },
		"WithTag":    func() { _, _ = ref.WithTag("1") },
		"WithDigest": func() { _, _ = ref.WithDigest(sum) },
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the zero value was used")
				}
			}()
			use()
		})
	}
	if got := fmt.Sprint(id, ref); !strings.Contains(got, "PANIC") {
		t.Errorf("zero values print as %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"busybox", "r.io:5000/a/b:1@" + sum, "Foo/bar", hex, "[::1]:5/x", "@", "a.b/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if id, err := reference.ParseID(in); err == nil && id.Hex() != in {
			t.Errorf("ParseID(%q) = %v", in, id)
		}
		ref, err := reference.Parse(in)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("Parse(%q): error %v, want ErrInvalidArgument", in, err)
			}
			return
		}
		if (ref.Tag() == "") == (ref.Digest() == "") {
			t.Errorf("Parse(%q) has tag %q and digest %q", in, ref.Tag(), ref.Digest())
		}
		for _, text := range []string{ref.Text(), ref.Familiar()} {
			if again, err := reference.Parse(text); err != nil || again != ref {
				t.Errorf("Parse(%q) = %v, whose text %q gives %v, %v", in, ref, text, again, err)
			}
		}
	})
}
