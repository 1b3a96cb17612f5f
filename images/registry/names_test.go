// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
)

const someHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

const three = `unqualified-search-registries = ["b.io", "a.io:5000", "docker.io", "b.io"]
short-name-mode = "permissive"
[aliases]
"known" = "c.io/x/known"
`

func candidates(t *testing.T, r *registry.Registry, name string) []string {
	t.Helper()
	found, err := r.Candidates(name)
	if err != nil {
		t.Errorf("candidates for %q: %v", name, err)
	}
	var all []string
	for _, ref := range found {
		all = append(all, ref.Text())
	}
	return all
}

// 4
func TestCandidates(t *testing.T) {
	r := configured(t, three, registry.Config{})
	tests := []struct {
		name string
		want []string
	}{
		{"foo/bar", []string{"b.io/foo/bar:latest", "a.io:5000/foo/bar:latest", "docker.io/foo/bar:latest"}},
		{"x", []string{"b.io/x:latest", "a.io:5000/x:latest", "docker.io/library/x:latest"}},
		{"x:1", []string{"b.io/x:1", "a.io:5000/x:1", "docker.io/library/x:1"}},
		{"x:1@sha256:" + someHex, []string{"b.io/x@sha256:" + someHex, "a.io:5000/x@sha256:" + someHex, "docker.io/library/x@sha256:" + someHex}},
		{"known:2", []string{"c.io/x/known:2"}},
		{"known", []string{"c.io/x/known:latest"}},
		{"r.io/a", []string{"r.io/a:latest"}},
		{"docker.io/x", []string{"docker.io/library/x:latest"}},
		{"localhost/x", []string{"localhost/x:latest"}},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, candidates(t, r, test.name)); diff != "" {
			t.Errorf("candidates for %q (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestCandidatesRefused(t *testing.T) {
	r := configured(t, three, registry.Config{})
	for _, name := range []string{"", "Foo", "Foo/bar", "a b", "docker://r.io/a", "x@sha256:12", someHex} {
		if found, err := r.Candidates(name); !errdefs.IsInvalidArgument(err) || found != nil {
			t.Errorf("candidates for %q: %v, %v; want ErrInvalidArgument", name, found, err)
		}
	}
	if _, err := r.Candidates(someHex); !errors.Is(err, reference.ErrCannotParseImageID) {
		t.Errorf("candidates for an ID: %v, want ErrCannotParseImageID", err)
	}
}

// 5
func TestNoSearchRegistries(t *testing.T) {
	for _, conf := range []string{"", "[[registry]]\nlocation = \"r.io\"\n"} {
		found, err := configured(t, conf, registry.Config{}).Candidates("foo/bar")
		if !errors.Is(err, registry.ErrNoSearchRegistries) || found != nil {
			t.Errorf("%v, %v; want ErrNoSearchRegistries", found, err)
		}
		mentions(t, err, "foo/bar")
	}
}

func TestShortNameModes(t *testing.T) {
	var asked []string
	choose := func(name string, all []reference.Reference) (reference.Reference, error) {
		asked = append(asked, name)
		if name == "declined" {
			return reference.Reference{}, errdefs.ErrAborted
		}
		return all[1], nil
	}
	tests := []struct {
		mode    string
		chooser bool
		want    int // candidates; 0: an error
		asks    bool
	}{
		{"disabled", false, 2, false},
		{"disabled", true, 2, false},
		{"permissive", false, 2, false},
		{"permissive", true, 1, true},
		{"enforcing", false, 0, false},
		{"enforcing", true, 1, true},
	}
	for _, test := range tests {
		conf := "unqualified-search-registries = [\"a.io\", \"b.io\"]\nshort-name-mode = \"" + test.mode + "\"\n"
		c := registry.Config{}
		if test.chooser {
			c.Choose = choose
		}
		r := configured(t, conf, c)
		asked = nil
		found, err := r.Candidates("x")
		if len(found) != test.want || (err != nil) != (test.want == 0) || (len(asked) > 0) != test.asks {
			t.Errorf("%+v: %v, %v, asked %v", test, found, err, asked)
		}
		if err != nil && !errors.Is(err, registry.ErrAmbiguousName) {
			t.Errorf("%+v: error %v, want ErrAmbiguousName", test, err)
		}
		if len(found) == 1 && found[0].Text() != "b.io/x:latest" {
			t.Errorf("%+v: chose %v", test, found)
		}
		// One candidate leaves nothing to choose.
		if diff := cmp.Diff([]string{"r.io/x:latest"}, candidates(t, r, "r.io/x")); diff != "" {
			t.Error(diff)
		}
		asked = nil
		if all, err := r.Search("x"); err != nil || len(all) != 2 || len(asked) > 0 {
			t.Errorf("%+v: searched %v, %v, asked %v", test, all, err, asked)
		}
		if test.asks {
			if _, err := r.Candidates("declined"); !errors.Is(err, errdefs.ErrAborted) {
				t.Errorf("declined: %v", err)
			}
		}
	}
}

// Who has chosen is not asked again, once what he chose was pulled.
func TestPulled(t *testing.T) {
	aliases := filepath.Join(t.TempDir(), "deep", "aliases.conf")
	asked := 0
	c := registry.Config{Aliases: aliases, Choose: func(_ string, all []reference.Reference) (reference.Reference, error) {
		asked++
		return all[1], nil
	}}
	r := configured(t, three, c)
	for range 2 {
		if diff := cmp.Diff([]string{"a.io:5000/x:7"}, candidates(t, r, "x:7")); diff != "" {
			t.Error(diff)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times before anything was pulled, want 2", asked)
	}
	for name, ref := range map[string]string{"x:7": "a.io:5000/x:7", "known": "c.io/x/known:latest", "r.io/x": "r.io/x:latest"} {
		if err := r.Pulled(name, parse(t, ref)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff([]string{"a.io:5000/x:8"}, candidates(t, r, "x:8")); diff != "" || asked != 2 {
		t.Errorf("asked %d times: %s", asked, diff)
	}
	if text, err := os.ReadFile(aliases); err != nil || strings.Count(string(text), " = ") != 1 {
		t.Errorf("aliases: %q, %v, want one", text, err)
	}
	// Nobody has chosen what was tried in turn.
	c.Choose, c.Aliases = nil, filepath.Join(t.TempDir(), "aliases.conf")
	if err := configured(t, three, c).Pulled("x:7", parse(t, "a.io:5000/x:7")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.Aliases); err == nil {
		t.Error("an alias was recorded that nobody has chosen")
	}
}

func TestDropIns(t *testing.T) {
	conf := write(t, filepath.Join(t.TempDir(), "registries.conf"), three)
	write(t, filepath.Join(conf+".d", "50-more.conf"), "[aliases]\n\"more\" = \"d.io/more\"\n")
	r := open(t, registry.Config{RegistriesConf: conf})
	if diff := cmp.Diff([]string{"d.io/more:1", "c.io/x/known:1"}, append(candidates(t, r, "more:1"), candidates(t, r, "known:1")...)); diff != "" {
		t.Error(diff)
	}
}

func TestBadConfiguration(t *testing.T) {
	bad := map[string]registry.Config{
		"insecure path":     {Insecure: []string{"r.io/a"}},
		"insecure empty":    {Insecure: []string{""}},
		"insecure CIDR":     {Insecure: []string{"10.0.0.0/33"}},
		"registries.conf":   {RegistriesConf: write(t, filepath.Join(t.TempDir(), "registries.conf"), "[[registry")},
		"registries.conf 1": {RegistriesConf: write(t, filepath.Join(t.TempDir(), "registries.conf"), "[registries.search]\nregistries = [\"a.io\"]\n")},
		"no such file":      {RegistriesConf: filepath.Join(t.TempDir(), "none")},
	}
	for name, c := range bad {
		if _, err := registry.New(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want ErrInvalidArgument", name, err)
		} else if c.Insecure != nil && !strings.Contains(err.Error(), c.Insecure[0]) {
			t.Errorf("%s: %v does not name it", name, err)
		}
	}
}
