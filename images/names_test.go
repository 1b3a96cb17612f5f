// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/integration/host"
)

const searching = `unqualified-search-registries = ["b.io", "a.io"]
[aliases]
"known" = "c.io/x/known"
`

// 4, 5, 6
func TestNames(t *testing.T) {
	d := host.Run(t, host.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte(searching), 0o644); err != nil {
		t.Fatal(err)
	}
	registries, err := registry.New(registry.Config{RegistriesConf: conf})
	if err != nil {
		t.Fatal(err)
	}
	s, err := images.New(images.Config{Client: d.Client(), Namespace: d.Namespace, Registry: registries})
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List(ctx, images.ListOptions{})
	if err != nil || len(list) != 1 {
		t.Fatalf("images: %v, %v", list, err)
	}
	id := list[0].ID.Hex()
	absent := strings.Repeat("0123", 16)
	tests := map[string]struct {
		want string // an ID, or candidates
		err  error
	}{
		id:                {want: id},
		id[:3]:            {want: id},
		id[:2]:            {want: "b.io/" + id[:2] + ":latest a.io/" + id[:2] + ":latest"},
		absent:            {err: reference.ErrCannotParseImageID},
		"foo/bar:1":       {want: "b.io/foo/bar:1 a.io/foo/bar:1"},
		"known":           {want: "c.io/x/known:latest"},
		"r.io/a":          {want: "r.io/a:latest"},
		"docker://r.io/a": {want: "r.io/a:latest"},
		"oci://a":         {err: errdefs.ErrInvalidArgument},
		"Foo/bar":         {err: errdefs.ErrInvalidArgument},
		"":                {err: errdefs.ErrInvalidArgument},
	}
	for input, test := range tests {
		meant, err := s.ResolveNames(ctx, input)
		if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
			t.Errorf("%q: error %v, want %v", input, err, test.err)
		}
		var got []string
		for _, ref := range meant.Candidates {
			got = append(got, ref.Text())
		}
		if meant.ID != nil {
			got = append(got, meant.ID.Hex())
		}
		if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", input, diff)
		}
	}
	for input, want := range map[string]string{"ab": "", id[:3]: id, "zzz": "", absent: absent} {
		got := ""
		if found := s.TryIDPrefix(ctx, input); found != nil {
			got = found.Hex()
		}
		if got != want {
			t.Errorf("TryIDPrefix(%q) = %q, want %q", input, got, want)
		}
	}
}
