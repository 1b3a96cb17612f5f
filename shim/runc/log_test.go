// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/berthd/berth/shim/fault"
)

// Lines that runc 1.5.2 and crun 1.21 have written.
var samples = []struct {
	line string
	msg  string
	code fault.Code
}{
	{`{"level":"error","msg":"container does not exist","time":"2026-11-21T00:22:26Z"}`, "container does not exist", fault.NotFound},
	{`{"level":"error","msg":"container not running","time":"2026-11-21T00:22:27Z"}`, "container not running", fault.NotFound},
	{`{"level":"error","msg":"runc create failed: container with given ID already exists","time":"2026-11-21T00:22:26Z"}`, "runc create failed: container with given ID already exists", fault.AlreadyExists},
	{`{"level":"error","msg":"cannot start an already running container","time":"2026-11-21T00:22:26Z"}`, "cannot start an already running container", fault.FailedPrecondition},
	{`{"level":"error","msg":"cannot start a container that has stopped","time":"2026-11-21T00:22:27Z"}`, "cannot start a container that has stopped", fault.FailedPrecondition},
	{`{"level":"error","msg":"cannot delete container x2 that is not stopped: running","time":"2026-11-21T00:22:26Z"}`, "cannot delete container x2 that is not stopped: running", fault.FailedPrecondition},
	{`{"level":"error","msg":"container not paused","time":"2026-11-21T00:22:26Z"}`, "container not paused", fault.FailedPrecondition},
	{`{"level":"error","msg":"exec failed: cannot exec in a paused container (use --ignore-paused to override)","time":"2026-11-21T00:22:26Z"}`, "exec failed: cannot exec in a paused container (use --ignore-paused to override)", fault.FailedPrecondition},
	{`{"level":"error","msg":"exec failed: cannot exec in a stopped container","time":"2026-11-21T00:22:27Z"}`, "exec failed: cannot exec in a stopped container", fault.FailedPrecondition},
	{`{"level":"error","msg":"exec failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH","time":"2026-11-21T00:22:26Z"}`, `exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`, fault.Unknown},
	{`{"level":"error","msg":"runc create failed: unable to start container process: error during container init: exec: \"/etc\": stat /etc: no such file or directory","time":"2026-11-21T00:22:27Z"}`, `runc create failed: unable to start container process: error during container init: exec: "/etc": stat /etc: no such file or directory`, fault.Unknown},
	{`{"level":"error","msg":"No help topic for 'nosuchverb'\n","time":"2026-11-21T00:22:27Z"}`, "No help topic for 'nosuchverb'", fault.Unknown},

	{"{\"msg\":\"error opening file `/run/crun/nosuch/status`: No such file or directory\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:18.710603Z\"}", "error opening file `/run/crun/nosuch/status`: No such file or directory", fault.NotFound},
	{"{\"msg\":\"cannot open directory `/run/crun/x2`: No such file or directory\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:24.769146Z\"}", "cannot open directory `/run/crun/x2`: No such file or directory", fault.NotFound},
	{"{\"msg\":\"container `x2` is not running\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:24.516049Z\"}", "container `x2` is not running", fault.NotFound},
	{`{"msg":"kill container: No such process","level":"error","time":"2026-11-21T00:22:23.551891Z"}`, "kill container: No such process", fault.NotFound},
	{"{\"msg\":\"container `x2` already exists\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:19.174472Z\"}", "container `x2` already exists", fault.AlreadyExists},
	{"{\"msg\":\"cannot open `/run/crun/x2/exec.fifo`: No such file or directory\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:19.389469Z\"}", "cannot open `/run/crun/x2/exec.fifo`: No such file or directory", fault.FailedPrecondition},
	{"{\"msg\":\"the container `x2` is not in `created` or `stopped` state\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:19.846385Z\"}", "the container `x2` is not in `created` or `stopped` state", fault.FailedPrecondition},
	{"{\"msg\":\"the container `x2` is paused\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:21.543600Z\"}", "the container `x2` is paused", fault.FailedPrecondition},
	{"{\"msg\":\"executable file `nosuch` not found in $PATH: No such file or directory\",\"level\":\"error\",\"time\":\"2026-11-21T00:22:24.821548Z\"}", "executable file `nosuch` not found in $PATH: No such file or directory", fault.Unknown},
}

func TestLogSamples(t *testing.T) {
	for _, s := range samples {
		err := failure("create", 1, []byte(s.line+"\n"))
		if want := "OCI runtime create failed: " + s.msg; err.Error() != want {
			t.Errorf("got  %s\nwant %s", err, want)
		}
		if got := fault.CodeOf(err); got != s.code {
			t.Errorf("%s: class %d, want %d", s.msg, got, s.code)
		}
	}
}

func TestLastError(t *testing.T) {
	for name, tc := range map[string]struct{ output, want string }{
		"nothing":                  {"", ""},
		"last of errors":           {`{"level":"error","msg":"a"}` + "\n" + `{"level":"fatal","msg":"b"}`, "b"},
		"warnings do not count":    {`{"level":"error","msg":"a"}` + "\n" + `{"level":"warning","msg":"b"}`, "a"},
		"only plain text":          {"\nloader: cannot open shared object\n\n", "loader: cannot open shared object"},
		"text beside an error":     {`{"level":"error","msg":"a"}` + "\na\n", "a"},
		"text instead of an error": {`{"level":"debug","msg":"a"}` + "\nSegmentation fault\n", "Segmentation fault"},
		"cut in the middle":        {`level":"error","msg":"half"}` + "\n" + `{"level":"error","msg":"whole"}`, "whole"},
		"escapes":                  {`{"level":"error","msg":"\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00<\u003e"}`, "\"\\/\b\f\n\r\tä😀<>"},
		"other values":             {`{"a":1,"b":[{"c":"}"}],"d":null,"e":true,"level":"error","msg":"x","f":{}}`, "x"},
		"level is no text":         {`{"level":3,"msg":"x"}`, ""},
	} {
		if got := lastError([]byte(tc.output)); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
	if got, want := failure("start", 7, nil).Error(), "OCI runtime start failed: exit status 7"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzEntry holds entry against encoding/json: what that takes as an object with
// two texts, entry reads as the same.
func FuzzEntry(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s.line))
	}
	f.Add([]byte(`{"level":"error","msg":"\ud83d\ude00\ud83d","x":[1,{"y":"}"}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		level, msg, ok := entry(line)
		_ = lastError(line)
		var fields map[string]json.RawMessage
		if json.Unmarshal(line, &fields) != nil || fields == nil {
			return
		}
		if !ok {
			t.Fatalf("%q refused", line)
		}
		text := string(line)
		if !utf8.Valid(line) || strings.Contains(text, `\`) || strings.Count(text, "level") != 1 || strings.Count(text, "msg") != 1 {
			return // unpaired surrogates and bad text become the replacement character there
		}
		var wantLevel, wantMsg string
		_ = json.Unmarshal(fields["level"], &wantLevel)
		_ = json.Unmarshal(fields["msg"], &wantMsg)
		if level != wantLevel || msg != wantMsg {
			t.Errorf("%s: got %q, %q, want %q, %q", text, level, msg, wantLevel, wantMsg)
		}
	})
}
