// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/shim/fault"
)

func TestCheckRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"unknown scheme":          {Config{Stdout: "http://x/y"}, `unknown scheme "http"`},
		"streaming":               {Config{Stdin: "ttrpc+unix:///run/x?stream_id=1"}, "version 3"},
		"streaming over grpc":     {Config{Stderr: "grpc+vsock://1:2"}, "version 3"},
		"relative path":           {Config{Stdout: "out"}, "not absolute"},
		"host in a file":          {Config{Stdout: "file://host/path"}, "not absolute"},
		"bad escape":              {Config{Stdout: "file:///a%2"}, "escape"},
		"zero byte":               {Config{Stdout: "file:///a%00"}, "zero byte"},
		"file as stdin":           {Config{Stdin: "file:///a"}, "stdin"},
		"pty without terminal":    {Config{Stdout: "pty://"}, "terminal"},
		"cri setting":             {Config{Stdout: "cri:///a?colour=red"}, `"colour"`},
		"cri size":                {Config{Stderr: "cri:///a?max-size=10MiBs"}, "max-size"},
		"cri files":               {Config{Stderr: "cri:///a?max-files=-1"}, "max-files"},
		"no driver":               {Config{Log: LogConfig{Drivers: []string{}}}, "no log driver"},
		"unknown driver":          {Config{Log: LogConfig{Drivers: []string{"json"}}}, `unknown log driver "json"`},
		"empty driver":            {Config{Log: LogConfig{Drivers: []string{""}}}, "unknown log driver"},
		"k8s-file without path":   {Config{Log: LogConfig{Drivers: []string{"k8s-file"}}}, "path"},
		"k8s-file relative":       {Config{Log: LogConfig{Drivers: []string{"k8s-file:a"}}}, "path"},
		"passthrough of terminal": {Config{Terminal: true, Log: LogConfig{Drivers: []string{"passthrough"}}}, "terminal"},
		"passthrough and a file":  {Config{Log: LogConfig{Drivers: []string{"passthrough", "k8s-file:/a"}}}, "directly"},
		"labels elsewhere":        {Config{Log: LogConfig{Drivers: []string{"k8s-file:/a"}, Labels: []string{"A=b"}}}, "journald"},
		"tag elsewhere":           {Config{Log: LogConfig{Tag: "x"}}, "journald"},
		"label in lower case":     {Config{ID: "0123456789ab", Log: LogConfig{Drivers: []string{"journald"}, Labels: []string{"a=b"}}}, `"a=b"`},
		"label without value":     {Config{ID: "0123456789ab", Log: LogConfig{Drivers: []string{"journald"}, Labels: []string{"A"}}}, `"A"`},
		"label of the journal's":  {Config{ID: "0123456789ab", Log: LogConfig{Drivers: []string{"journald"}, Labels: []string{"_PID=1"}}}, `"_PID=1"`},
		"short id":                {Config{ID: "0123456789a", Log: LogConfig{Drivers: []string{"journald"}}}, "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(&tc.cfg)
			if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tc.want)
			}
		})
	}
}

func TestCheckAccepts(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Stdin: "/a:b//c", Stdout: "fifo:///x?y", Stderr: "file:///x"},
		{Terminal: true, Stdin: "pty://", Stdout: "pty://"},
		{Stdout: "cri:///a?max-size=10MiB&max-files=5&max-total=1Gi&sync=0"},
		{Stdout: "binary-v2:///bin/x?a=b"},
		{ID: "0123456789ab", Log: LogConfig{Drivers: []string{"journald", "k8s-file:/x", "off"}, Labels: []string{"A_1="}, Tag: "t"}},
		{Log: LogConfig{Drivers: []string{"none"}}},
		{Log: LogConfig{Drivers: []string{"passthrough", "null"}}},
	} {
		if err := Check(&cfg); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestParseURI(t *testing.T) {
	for in, want := range map[string]uri{
		"":                               {},
		"/a%20b?c":                       {scheme: "fifo", path: "/a%20b?c"},
		"/odd://path":                    {scheme: "fifo", path: "/odd://path"},
		"fifo:///a%20b":                  {scheme: "fifo", path: "/a%20b"},
		"file:///a%20b+c":                {scheme: "file", path: "/a b+c"},
		"binary:///x?b=1&a=%26&&e&s=x+y": {scheme: "binary", path: "/x", query: []pair{{"b", "1"}, {"a", "&"}, {"e", ""}, {"s", "x y"}}},
	} {
		got, err := parseURI(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(uri{}, pair{})); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "10": 10, "10MiB": 10 << 20, "2Ki": 2048, "3GB": 3e9, "1kB": 1000} {
		if got, ok := parseSize(in); got != want || !ok {
			t.Errorf("%q: got %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "x", "-1", "1.5MiB", "MiB", "99999999999GiB", "1 MiB"} {
		if got, ok := parseSize(in); ok {
			t.Errorf("%q: got %d", in, got)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"", "/a", "file:///a%20", "binary:///x?a=b&c=%", "cri:///a?max-size=1", "x://", "pty://", "://", "ttrpc+unix://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURI(s)
		switch {
		case err != nil:
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%q: class %d", s, fault.CodeOf(err))
			}
		case u.scheme == schemeNone || u.scheme == schemePTY:
		case !strings.HasPrefix(u.path, "/") || strings.Contains(u.path, "\x00"):
			t.Errorf("%q: got %+v", s, u)
		}
		_ = Check(&Config{Stdin: s, Stdout: s, Stderr: s, Terminal: true})
	})
}
