// SPDX-License-Identifier: Apache-2.0

package fault_test

import (
	"errors"
	"io"
	"testing"

	"github.com/berthd/berth/shim/fault"
)

func TestClassAndTextSurviveWrapping(t *testing.T) {
	base := fault.New(fault.NotFound, "no such thing")
	for name, tc := range map[string]struct {
		err  error
		code fault.Code
		text string
	}{
		"nil":              {nil, fault.OK, ""},
		"without a class":  {io.EOF, fault.Unknown, "EOF"},
		"new":              {base, fault.NotFound, "no such thing"},
		"in":               {fault.In("delete", base), fault.NotFound, "delete: no such thing"},
		"another class":    {fault.Wrap(fault.Internal, "delete", base), fault.Internal, "delete: no such thing"},
		"joined":           {errors.Join(io.EOF, base), fault.NotFound, "EOF\nno such thing"},
		"in without class": {fault.In("read", io.EOF), fault.Unknown, "read: EOF"},
	} {
		if got := fault.CodeOf(tc.err); got != tc.code {
			t.Errorf("%s: class %d, want %d", name, got, tc.code)
		}
		if tc.err != nil && tc.err.Error() != tc.text {
			t.Errorf("%s: got %q, want %q", name, tc.err, tc.text)
		}
	}
	if fault.In("nothing", nil) != nil {
		t.Error("In makes an error of nil")
	}
	if !errors.Is(fault.In("read", io.EOF), io.EOF) {
		t.Error("the cause is lost")
	}
}
