// SPDX-License-Identifier: Apache-2.0

package instruction_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/archive/instruction"
)

// base is what the lines of tests change.
func base() instruction.Config {
	return instruction.Config{ImageConfig: v1.ImageConfig{
		Env:        []string{"HOME=/root", "EMPTY="},
		Cmd:        []string{"old"},
		WorkingDir: "/srv",
		Labels:     map[string]string{"old": "1"},
	}}
}

func TestApply(t *testing.T) {
	type config = instruction.Config
	for _, c := range []struct {
		name  string
		lines []string
		want  func(*config)
	}{
		{"nothing", nil, func(*config) {}},
		{"comments", []string{"", "  # USER x", "\n\n"}, func(*config) {}},
		{"cmd as a line", []string{"CMD echo  $HOME 'a b'"}, func(c *config) { c.Cmd = []string{"/bin/sh", "-c", "echo  $HOME 'a b'"} }},
		{"cmd as a list", []string{`cmd ["a", "b c"]`}, func(c *config) { c.Cmd = []string{"a", "b c"} }},
		{"no cmd", []string{`CMD []`}, func(c *config) { c.Cmd = []string{} }},
		{"cmd that is nearly a list", []string{`CMD ['a']`}, func(c *config) { c.Cmd = []string{"/bin/sh", "-c", "['a']"} }},
		{"entrypoint drops cmd", []string{`ENTRYPOINT ["e"]`}, func(c *config) { c.Entrypoint, c.Cmd = []string{"e"}, nil }},
		{"entrypoint keeps new cmd", []string{`CMD ["c"]`, `ENTRYPOINT ["e"]`}, func(c *config) { c.Entrypoint, c.Cmd = []string{"e"}, []string{"c"} }},
		{"env", []string{`ENV A=1 B="x y" C='$HOME' D=$HOME/d E=a\ b F=`}, func(c *config) {
			c.Env = append(c.Env, "A=1", "B=x y", "C=$HOME", "D=/root/d", "E=a b", "F=")
		}},
		{"env replaced", []string{"ENV HOME=/a", "ENV HOME=$HOME/b"}, func(c *config) { c.Env[0] = "HOME=/a/b" }},
		{"env of before", []string{"ENV HOME=/a OLD=$HOME"}, func(c *config) { c.Env = []string{"HOME=/a", "EMPTY=", "OLD=/root"} }},
		{"old env", []string{"ENV A b  c = d"}, func(c *config) { c.Env = append(c.Env, "A=b  c = d") }},
		{"defaults", []string{`ENV A=${NO:-d} B=${HOME:-d} C=${NO:+s} D=${HOME:+s} E=${EMPTY:-e} F=$NO.$`}, func(c *config) {
			c.Env = append(c.Env, "A=d", "B=/root", "C=", "D=s", "E=e", "F=.$")
		}},
		{"label", []string{`LABEL a=b "c.d"="e f" old=2`}, func(c *config) { c.Labels = map[string]string{"a": "b", "c.d": "e f", "old": "2"} }},
		{"expose", []string{"EXPOSE 80 53/udp 7000-7002/TCP"}, func(c *config) {
			c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}, "7000/tcp": {}, "7001/tcp": {}, "7002/tcp": {}}
		}},
		{"volume", []string{`VOLUME /a "/b c"`, `VOLUME ["/d"]`}, func(c *config) {
			c.Volumes = map[string]struct{}{"/a": {}, "/b c": {}, "/d": {}}
		}},
		{"user", []string{"USER 1000:100"}, func(c *config) { c.User = "1000:100" }},
		{"workdir", []string{"WORKDIR a/../b"}, func(c *config) { c.WorkingDir = "/srv/b" }},
		{"absolute workdir", []string{"WORKDIR ${HOME}/x y"}, func(c *config) { c.WorkingDir = "/root/x y" }},
		{"stop signal", []string{"STOPSIGNAL SIGQUIT"}, func(c *config) { c.StopSignal = "SIGQUIT" }},
		{"stop signal's number", []string{"STOPSIGNAL 9"}, func(c *config) { c.StopSignal = "9" }},
		{"onbuild", []string{"ONBUILD RUN make"}, func(c *config) { c.OnBuild = []string{"RUN make"} }},
		{"no healthcheck", []string{"HEALTHCHECK NONE"}, func(c *config) { c.Healthcheck = &instruction.Healthcheck{Test: []string{"NONE"}} }},
		{"healthcheck", []string{`HEALTHCHECK --interval=5s --timeout=1m --start-period=2s --start-interval=1s --retries=3 CMD ["x"]`}, func(c *config) {
			c.Healthcheck = &instruction.Healthcheck{
				Test: []string{"CMD", "x"}, Interval: 5 * time.Second, Timeout: time.Minute,
				StartPeriod: 2 * time.Second, StartInterval: time.Second, Retries: 3,
			}
		}},
		{"lines in a line", []string{"ENV A=1 \\\n  # why\n B=2\nUSER x"}, func(c *config) {
			c.Env, c.User = append(c.Env, "A=1", "B=2"), "x"
		}},
		{"tab", []string{"USER\tx"}, func(c *config) { c.User = "x" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, want := base(), base()
			c.want(&want)
			if err := instruction.Apply(&got, c.lines); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for _, line := range []string{
		"RUN x", "FROM scratch", "COPY a b", "NOTHING", "user", "CMD", "ENV", "ENV A", "ENV =x", "ENV A=1 B", "LABEL a",
		`ENV A="x`, "ENV A='x", "ENV A=${X", "ENV A=${}", "ENV A=${X:?no}", "EXPOSE 0", "EXPOSE 65536", "EXPOSE 80/icmp",
		"EXPOSE 9-8", "EXPOSE http", "EXPOSE 8080:80", `VOLUME [""]`, "VOLUME ''", "USER ''", "WORKDIR $NO", "STOPSIGNAL SIGNOT",
		"ONBUILD FROM x", "ONBUILD onbuild RUN x", "HEALTHCHECK CMD", "HEALTHCHECK x", "HEALTHCHECK NONE x",
		"HEALTHCHECK --interval=1 CMD x", "HEALTHCHECK --timeout=1us CMD x", "HEALTHCHECK --retries=-1 CMD x", "HEALTHCHECK --x=1 CMD x",
		"USER a\x00b", "USER \xff",
	} {
		t.Run(line, func(t *testing.T) {
			got := base()
			err := instruction.Apply(&got, []string{"ENV HOME=/new", "LABEL old=2", line})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v, want an invalid argument", err)
			}
			if diff := cmp.Diff(base(), got); diff != "" {
				t.Errorf("changed all the same (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzApply has the outcome be a configuration that JSON keeps, or an error of the class
// and nothing changed.
func FuzzApply(f *testing.F) {
	for _, line := range []string{
		"CMD [\"a\"]", "ENV A=${B:-c} D='e' F=\"$A\"", "EXPOSE 1-3/udp", "HEALTHCHECK --retries=1 CMD x",
		"LABEL a=b \\\nc=d", "VOLUME [\"/x\"]", "ENV k v", "WORKDIR x", "ONBUILD RUN x", "STOPSIGNAL 9",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := base()
		err := instruction.Apply(&got, []string{line})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v, want an invalid argument", err)
			}
			if diff := cmp.Diff(base(), got); diff != "" {
				t.Errorf("changed all the same (-want +got):\n%s", diff)
			}
			return
		}
		text, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var back instruction.Config
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(back)
		if err != nil || string(again) != string(text) {
			t.Errorf("%s, %v, is not %s", again, err, text)
		}
	})
}
