// SPDX-License-Identifier: Apache-2.0

package image

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// Other tables are others', and a host may say nothing.
func TestParse(t *testing.T) {
	c, err := Parse([]byte("[runtime]\ndefault_handler = \"runc\"\n[images]\npinned_images = [\"a*\"]\npull_progress_timeout = \"1m\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.PullProgressTimeout.Minutes() != 1 || !cmp.Equal(c.PinnedImages, []string{"a*"}) {
		t.Errorf("%+v", c)
	}
	c, err = Load(filepath.Join(t.TempDir(), "missing"))
	if err != nil || !reflect.DeepEqual(*c, Config{}) {
		t.Errorf("no file: %+v, %v", c, err)
	}
}

// What is wrong is named by its key.
func TestParseWrong(t *testing.T) {
	for text, want := range map[string]string{
		"[images]\npined = 1":                          "images.pined",
		"[image]\npinned_images = []":                  "image",
		"[images]\npinned_images = 1":                  "images.pinned_images",
		"[images]\nhosts_dir = \"certs.d\"":            "images.hosts_dir",
		"[images]\nmax_concurrent_uploads = -1":        "images.max_concurrent_uploads",
		"[images]\npull_progress_timeout = \"a day\"":  "images.pull_progress_timeout",
		"[images]\npull_progress_timeout = \"-1s\"":    "images.pull_progress_timeout",
		"[images]\nsignature_policy = \"policy.json\"": "images.signature_policy",
	} {
		_, err := Parse([]byte(text))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want InvalidArgument and %s", text, err, want)
		}
	}
}

// The documentation shows all keys, and a file that is right.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/images.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```toml\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("docs/images.md shows no settings")
	}
	c, err := Parse(block[1])
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(*c)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("docs/images.md does not show %s", v.Type().Field(i).Tag.Get("toml"))
		}
	}
}
