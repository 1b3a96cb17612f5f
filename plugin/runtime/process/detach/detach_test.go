// SPDX-License-Identifier: Apache-2.0

package detach

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
)

func TestKeys(t *testing.T) {
	for text, want := range map[string]string{"": "", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "Ctrl-@,ctrl-_,x": "\x00\x1fx", "ctrl-[": "\x1b"} {
		if got, err := Parse(text); err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"ctrl-", "ctrl-1", "ab", "ctrl-p,", "shift-a"} {
		if got, err := Parse(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for typed, want := range map[string]struct {
		out string
		end error
	}{
		"abc":              {"abc", nil},
		"a\x10\x11b":       {"a", Err},
		"\x10x\x10\x11":    {"\x10x", Err},
		"\x10\x10\x11":     {"\x10", Err},
		"a\x10":            {"a\x10", nil},
		"\x11\x10a\x10b\n": {"\x11\x10a\x10b\n", nil},
	} {
		got, err := io.ReadAll(Reader(iotest.OneByteReader(strings.NewReader(typed)), []byte("\x10\x11")))
		if string(got) != want.out || !errors.Is(err, want.end) {
			t.Errorf("%q: got %q, %v", typed, got, err)
		}
	}
	if r := strings.NewReader("a"); Reader(r, nil) != io.Reader(r) {
		t.Error("without keys the reader should be the same")
	}
}
