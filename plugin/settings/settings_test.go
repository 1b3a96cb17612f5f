// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type document struct {
	Proxy struct {
		Address string `toml:"address"`
	} `toml:"proxy"`
}

func TestDecode(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"own", "[proxy]\naddress = 'x'", ""},
		{"others'", "[images]\nwhatever = 1\n[runtime.handlers.x]\ny = 2", ""},
		{"key", "[proxy]\nadress = 'x'", "line 2: unknown key proxy.adress"},
		{"table", "[prxy]\naddress = 'x'", "line 1: unknown key prxy"},
		{"type", "[proxy]\naddress = 1", "line 2: proxy.address: "},
		{"text", "[proxy", "line 1: "},
	} {
		var d document
		err := Decode([]byte(c.text), &d, "proxy")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	var d document
	path := filepath.Join(t.TempDir(), "berth.toml")
	if err := Read(path, &d, "proxy"); err != nil {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(path, []byte("[proxy]\naddress = '/x'\n[bad]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Read(path, &d, "proxy"); err == nil || !strings.Contains(err.Error(), path+": ") {
		t.Errorf("error %v does not name the file", err)
	}
	if err := Read(filepath.Dir(path), &d, "proxy"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a directory: %v", err)
	}
}
