// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/integration/host"
)

// start runs a container in the background that goes with the test.
func (c *cli) start(t testing.TB, name string, args ...string) string {
	t.Helper()
	made := c.must(t, append([]string{"run", "-d", "--name", name, "--network", "host"}, args...)...)
	t.Cleanup(func() { c.must(t, "container", "rm", "-f", made) })
	return made
}

// idling is a program that ends when it is asked to.
const idling = "trap exit TERM; while :; do sleep 0.1; done"

// What a container writes, reads and ends with is what berth does.
func TestCLIRun(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		work := t.TempDir()
		for _, s := range []struct {
			name string
			in   string
			args []string
			want result
		}{
			{"output", "", []string{host.Busybox, "sh", "-c", "echo out; echo err >&2"}, result{out: "out\n", err: "err\n"}},
			{"no last newline", "", []string{host.Busybox, "printf", "x"}, result{out: "x"}},
			{"exit code", "", []string{host.Busybox, "sh", "-c", "exit 7"}, result{code: 7}},
			{"signal", "", []string{host.Busybox, "sh", "-c", "kill -9 $$"}, result{code: 0}}, // a namespace's first process cannot kill itself
			{"input", "a\nb\n", []string{"-i", host.Busybox, "cat"}, result{out: "a\nb\n"}},
			{"no input", "a\n", []string{host.Busybox, "cat"}, result{}},
			{"input, no log", "a\n", []string{"-i", "--no-log", host.Busybox, "cat"}, result{out: "a\n"}},
			{"environment", "", []string{"-e", "A=1", "-w", "/tmp", host.Busybox, "sh", "-c", "echo $A; pwd"}, result{out: "1\n/tmp\n"}},
			{"user", "", []string{"-u", "7:8", host.Busybox, "sh", "-c", "id -u; id -g"}, result{out: "7\n8\n"}},
			{"entry point", "", []string{"--entrypoint", "echo", host.Busybox, "a", "b"}, result{out: "a b\n"}},
			{"hostname", "", []string{"--hostname", "harbour", host.Busybox, "hostname"}, result{out: "harbour\n"}},
			{"volume", "", []string{"-v", work + ":/data", host.Busybox, "sh", "-c", "echo x > /data/file"}, result{}},
			{"tmpfs", "", []string{"--tmpfs", "/t:size=64k", host.Busybox, "sh", "-c", "grep -c '^tmpfs /t tmpfs' /proc/mounts"}, result{out: "1\n"}},
			{"read-only", "", []string{"--read-only", host.Busybox, "sh", "-c", "echo x > /file || echo no"}, result{out: "no\n", err: "sh: can't create /file: Read-only file system\n"}},
			{"capabilities", "", []string{"--cap-drop", "ALL", host.Busybox, "grep", "CapEff", "/proc/self/status"}, result{out: "CapEff:\t0000000000000000\n"}},
			{"shared processes", "", []string{"--pid", "pod", host.Busybox, "sh", "-c", "[ $$ != 1 ] && echo other"}, result{out: "other\n"}},
			{"network", "", []string{host.Busybox, "sh", "-c", "ip -o -4 addr show eth0 | grep -c 198.19.255"}, result{out: "1\n"}},
		} {
			t.Run(s.name, func(t *testing.T) {
				if got := c.feed(t, s.in, append([]string{"run", "--rm"}, s.args...)...); got != s.want {
					t.Errorf("%+v, want %+v", got, s.want)
				}
			})
		}
		if b, err := os.ReadFile(filepath.Join(work, "file")); string(b) != "x\n" {
			t.Errorf("volume: %q, %v", b, err)
		}
		t.Run("no command", func(t *testing.T) {
			c.fails(t, 127, "nosuch", "run", "--rm", host.Busybox, "nosuch")
			c.fails(t, 126, "/etc", "run", "--rm", host.Busybox, "/etc")
			c.fails(t, 127, "nosuch", "run", "-d", host.Busybox, "nosuch")
		})
		if got := c.list(t, "pods", "-o", "json"); len(got) != 0 {
			t.Errorf("pods that are left: %v", got)
		}
	})
}

// What docker's users know, and the service does in its own way.
func TestCLIRunAsDocker(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		for _, s := range []struct {
			name, script, want string
			flags              []string
		}{
			{"ulimit", "ulimit -n; ulimit -Hn", "90\n99\n", []string{"--ulimit", "nofile=90:99"}},
			{"add-host", "grep -e one$ -e two$ /etc/hosts", "192.0.2.1\tone\n2001:db8::1\ttwo\n", []string{"--add-host", "one:192.0.2.1", "--add-host", "two=2001:db8::1"}},
			{"shm-size", "df -k /dev/shm | tail -1 | awk '{print $2}'", "4096\n", []string{"--shm-size", "4m"}},
			{"no network", "ls /sys/class/net; ping -c1 -W1 127.0.0.1 >/dev/null && echo up", "lo\nup\n", []string{"--network", "none"}},
			{"init", "test $$ != 1 && echo child", "child\n", []string{"--init"}},
		} {
			t.Run(s.name, func(t *testing.T) {
				args := append([]string{"run", "--rm"}, s.flags...)
				if s.name != "no network" {
					args = append(args, "--network", "host")
				}
				got := c.run(t, append(args, host.Busybox, "sh", "-c", s.script)...)
				if got != (result{out: s.want}) {
					t.Errorf("%+v, want %q", got, s.want)
				}
			})
		}
		file := filepath.Join(t.TempDir(), "id")
		made := c.must(t, "run", "-d", "--network", "host", "--cidfile", file, host.Busybox, "sh", "-c", idling)
		t.Cleanup(func() { c.must(t, "container", "rm", "-f", made) })
		if b, err := os.ReadFile(file); err != nil || string(b) != made {
			t.Errorf("--cidfile: %q, %v, want %s", b, err, made)
		}
		c.fails(t, 125, "exists", "container", "create", "--network", "host", "--cidfile", file, host.Busybox)
		other := file + "2"
		c.fails(t, 127, "nosuch", "run", "--network", "host", "--cidfile", other, host.Busybox, "nosuch")
		if _, err := os.Stat(other); err == nil {
			t.Error("there is a --cidfile of no container")
		}
		if got := c.list(t, "ps", "-a", "-o", "json"); len(got) != 1 {
			t.Errorf("left: %v", got)
		}
	})
}

// What goes wrong is told in one line, once, with what to do about it.
func TestCLIFailures(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web", "--network", "host")
		made := c.must(t, "container", "create", "--pod", "web", "--name", "app", host.Busybox, "sh", "-c", idling)
		c.must(t, "container", "start", "app")
		for _, s := range []struct {
			code  int
			words string
			args  []string
		}{
			{125, "cannot start a container in running state", []string{"container", "start", "app"}},
			{127, "/missing", []string{"exec", "app", "/missing"}},
			{125, "cannot resume a container in running state", []string{"container", "unpause", "app"}},
			{127, "/missing", []string{"run", "--pod", "web", "--name", "other", host.Busybox, "/missing"}},
		} {
			c.fails(t, s.code, s.words, s.args...)
			if r := c.run(t, s.args...); strings.Count(r.err, made) > 1 || strings.Contains(r.err, "shim") {
				t.Errorf("berth %v: %s", s.args, r.err)
			}
		}
		c.fails(t, 125, "--network host", "--cni-netconfpath", t.TempDir(), "run", host.Busybox, "true")
		c.fails(t, 125, "--network host", "--cni-path", t.TempDir(), "run", host.Busybox, "true")
	})
}

// Who attaches without a terminal sees the output to its end, though his input has one.
func TestCLIAttach(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.start(t, "app", "-i", host.Busybox, "sh", "-c", "read word; sleep 0.5; echo got $word; exit 4")
		if got := c.feed(t, "one\n", "container", "attach", "app"); got != (result{out: "got one\n", code: 4}) {
			t.Errorf("%+v", got)
		}
		c.fails(t, 125, "Exited", "container", "attach", "app")
	})
}

// What a slow reader of a container's output gets is all of it.
func TestCLIRunSlowReader(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		const size = 40 << 20 // more than an attached client may be behind
		cmd := c.command(t, "run", "--rm", "--network", "host", host.Busybox, "sh", "-c", fmt.Sprintf("yes $(printf %%0999d 0) | head -c %d", size))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // it is slow
		n, err := io.Copy(io.Discard, out)
		if err := errors.Join(err, cmd.Wait()); err != nil || n != size {
			t.Errorf("%d bytes, %v, want %d", n, err, size)
		}
	})
}

// A container's life by single steps.
func TestCLIContainer(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		pod := c.pod(t, "web", "--network", "host")
		made := c.must(t, "container", "create", "--pod", "web", "--name", "app", "--label", "a=b", "--memory", "64m", host.Busybox, "sh", "-c", idling)
		fields(t, c.only(t, "container", "inspect", "app"), object{
			"id": made, "name": "app", "podID": pod, "podName": "web", "state": "Created", "owner": "berth", "image": host.Busybox, "labels": object{"a": "b"},
		})
		if got := c.must(t, "ps", "-q"); got != "" {
			t.Errorf("ps shows what does not run: %q", got)
		}
		c.fails(t, 125, "app", "container", "create", "--pod", "web", "--name", "app", host.Busybox)
		c.must(t, "container", "start", "app")
		c.fails(t, 125, "running", "container", "start", "app")
		row := strings.Fields(strings.Split(c.must(t, "ps"), "\n")[1])
		if row[0] != made[:12] || row[1] != "app" || row[2] != "web" || row[3] != host.Busybox || row[4] != "Running" {
			t.Errorf("row %q", row)
		}
		if got := c.must(t, "pods", "-f", "name=web"); !strings.Contains(got, "1/1") {
			t.Errorf("pod: %s", got)
		}

		c.must(t, "container", "pause", "app")
		fields(t, c.only(t, "ps", "-o", "json"), object{"state": "Paused"})
		c.must(t, "container", "unpause", "app")
		c.must(t, "container", "update", "--memory", "128m", "app")
		if got := c.only(t, "container", "stats", "--no-stream", "-o", "json", "app"); got["name"] != "app" || got["id"] != made {
			t.Errorf("statistics: %v", got)
		} else if memory, _ := got["memory"].(object); memory["limit"] != float64(128<<20) {
			t.Errorf("limit after the update: %v", memory)
		}
		if got := c.must(t, "container", "stats", "--no-stream"); !strings.Contains(got, "app") || !strings.Contains(got, "128MiB") || !strings.Contains(got, "%") {
			t.Errorf("statistics: %s", got)
		}
		if got := c.must(t, "pod", "stats", "--no-stream"); !strings.Contains(got, "web") || !strings.Contains(got, "%") {
			t.Errorf("statistics of the pod: %s", got)
		}
		if got := c.must(t, "container", "top", "app"); !strings.Contains(got, "while :") {
			t.Errorf("top: %s", got)
		}
		if got := c.list(t, "container", "top", "-o", "json", "app"); len(got) == 0 || got[0]["pid"] == nil || got[0]["command"] == nil {
			t.Errorf("top: %v", got)
		}
		root := c.must(t, "container", "mount", "app")
		if _, err := os.Stat(root + "/bin/busybox"); err != nil {
			t.Error(err)
		}
		c.must(t, "container", "unmount", "app")

		c.fails(t, 125, "Running", "container", "rm", "app")
		c.must(t, "container", "kill", "-s", "TERM", "app")
		eventually(t, patience, func() string {
			if got := c.only(t, "container", "inspect", "app"); got["state"] != "Exited" {
				return fmt.Sprint(got["state"])
			}
			return ""
		})
		if got := c.must(t, "ps", "-a", "-f", "state=exited"); !strings.Contains(got, "Exited (") {
			t.Errorf("ps -a: %s", got)
		}
		c.fails(t, 125, "not running", "exec", "app", "true")
		c.must(t, "container", "stop", "app")
		c.must(t, "container", "rm", "app")
		c.fails(t, 125, "app", "container", "rm", "app")
		c.must(t, "container", "rm", "-f", "app")
	})
}

// A container that is to end gets its time, and what is left is killed.
func TestCLIStop(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.start(t, "polite", host.Busybox, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
		c.start(t, "deaf", host.Busybox, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
		if got := c.must(t, "container", "stop", "-t", "2", "polite", "deaf"); got != "polite\ndeaf" {
			t.Errorf("output %q", got)
		}
		fields(t, c.only(t, "container", "inspect", "polite"), object{"exitCode": 3.0})
		fields(t, c.only(t, "container", "inspect", "deaf"), object{"exitCode": 137.0})
		r := c.run(t, "container", "stop", "nosuch", "polite")
		if r.code != 125 || r.out != "polite\n" || !strings.Contains(r.err, "nosuch") {
			t.Errorf("one of two: %+v", r)
		}
	})
}

// An exec has its own input, output and end.
func TestCLIExec(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.start(t, "app", "-e", "A=1", host.Busybox, "sh", "-c", idling)
		for _, s := range []struct {
			name string
			in   string
			args []string
			want result
		}{
			{"output", "", []string{"app", "sh", "-c", "echo out; echo err >&2; exit 7"}, result{"out\n", "err\n", 7}},
			{"input", "a\n", []string{"-i", "app", "cat"}, result{out: "a\n"}},
			{"no input", "a\n", []string{"app", "cat"}, result{}},
			{"process", "", []string{"-u", "7", "-w", "/tmp", "-e", "B=2", "app", "sh", "-c", "id -u; pwd; echo $A$B"}, result{out: "7\n/tmp\n12\n"}},
			{"flags of the command", "", []string{"app", "echo", "-i", "--help"}, result{out: "-i --help\n"}},
			{"killed", "", []string{"app", "sh", "-c", "kill -9 $$"}, result{code: 137}},
		} {
			t.Run(s.name, func(t *testing.T) {
				if got := c.feed(t, s.in, append([]string{"exec"}, s.args...)...); got != s.want {
					t.Errorf("%+v, want %+v", got, s.want)
				}
			})
		}
		c.fails(t, 127, "nosuch", "exec", "app", "nosuch")
		c.fails(t, 126, "/etc", "exec", "app", "/etc")

		c.must(t, "exec", "-d", "app", "sh", "-c", "cat; for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; echo done > /marker")
		eventually(t, patience, func() string { return c.run(t, "exec", "app", "cat", "/marker").err })
	})
}

func TestCLILogs(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web", "--network", "host")
		member := func(name, script string, flags ...string) string {
			return c.must(t, append(append([]string{"run", "-d", "--pod", "web", "--name", name}, flags...), host.Busybox, "sh", "-c", script)...)
		}
		member("a", "echo one; sleep 0.3; echo two >&2; sleep 0.3; echo three; "+idling)
		member("b", "echo four")
		eventually(t, patience, func() string {
			if got := c.run(t, "pod", "logs", "web"); strings.Count(got.out+got.err, "\n") != 4 {
				return fmt.Sprintf("%+v", got)
			}
			return ""
		})
		if got := c.run(t, "pod", "logs", "web"); got.err != "[a] two\n" || !strings.Contains(got.out, "[b] four\n") || !strings.Contains(got.out, "[a] one\n[a] three\n") {
			t.Errorf("logs of the pod: %+v", got)
		}
		if got := c.run(t, "logs", "--tail", "2", "a"); got != (result{"three\n", "two\n", 0}) {
			t.Errorf("tail: %+v", got)
		}
		if got := c.must(t, "logs", "--timestamps", "--tail", "1", "a"); !strings.HasPrefix(got, time.Now().UTC().Format("2006-01-")) || !strings.HasSuffix(got, " three") {
			t.Errorf("timestamps: %q", got)
		}
		if got := c.must(t, "logs", "--since", time.Now().Add(time.Hour).Format(time.RFC3339), "a"); got != "" {
			t.Errorf("of later: %q", got)
		}

		follow := c.command(t, "logs", "-f", "a")
		var out bytes.Buffer
		follow.Stdout = &out
		if err := follow.Start(); err != nil {
			t.Fatal(err)
		}
		c.must(t, "container", "stop", "a")
		if err := follow.Wait(); err != nil || out.String() != "one\nthree\n" {
			t.Errorf("follow: %v: %q", err, out.String())
		}

		c.fails(t, 125, "previous", "logs", "-p", "a")
		member("again", "echo first", "--attempt", "0")
		second := member("again", "echo second", "--attempt", "1")
		eventually(t, patience, func() string {
			got := c.run(t, "logs", "-p", second)
			if got.out != "first\n" {
				return fmt.Sprintf("previous: %+v", got)
			}
			return ""
		})
	})
}

// Ports of a pod are reached, through the host and through berth.
func TestCLIPortForward(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web")
		c.must(t, "run", "-d", "--pod", "web", "--name", "httpd", host.Busybox, "sh", "-c", "echo hello > /index.html; exec httpd -f -p 127.0.0.1:80 -h /")
		cmd := c.command(t, "pod", "port-forward", "web", ":80")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		n, err := out.Read(line)
		address, _, _ := strings.Cut(string(line[:n]), " -> 80")
		if err != nil || address == "" {
			t.Fatalf("%v: %q", err, line[:n])
		}
		get := func() string {
			r, err := http.Get("http://" + address + "/index.html")
			if err != nil {
				return err.Error()
			}
			defer r.Body.Close()
			if b, _ := io.ReadAll(r.Body); string(b) != "hello\n" {
				return fmt.Sprintf("%d: %s", r.StatusCode, b)
			}
			return ""
		}
		eventually(t, patience, get)
		if why := get(); why != "" {
			t.Errorf("again: %s", why)
		}
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after an interrupt: %v", err)
		}
	})
}

// Lists and measurements that go on.
func TestCLIWatch(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.start(t, "app", host.Busybox, "sh", "-c", idling)
		for _, args := range [][]string{
			{"ps", "-a", "--watch", "--interval", "50ms"},
			{"pods", "-w", "--interval", "50ms"},
			{"ps", "-a", "-w", "-o", "json", "--interval", "50ms"},
			{"container", "stats", "--interval", "50ms"},
			{"pod", "stats", "-o", "json", "--interval", "50ms"},
		} {
			t.Run(strings.Join(args, " "), func(t *testing.T) {
				cmd := c.command(t, args...)
				var out lines
				cmd.Stdout = &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				eventually(t, patience, func() string { return out.lacks(1, "app") })
				if strings.Contains(args[len(args)-3]+args[1], "stats") {
					eventually(t, patience, func() string { return out.lacks(4, "app") })
				}
				_ = cmd.Process.Signal(os.Interrupt)
				if err := cmd.Wait(); err != nil {
					t.Errorf("after an interrupt: %v", err)
				}
				if strings.Contains(out.String(), "\x1b") {
					t.Errorf("escape sequences where there is no terminal: %q", out.String())
				}
			})
		}
	})
}

// A checkpoint goes on as another container. Needs criu.
func TestCLICheckpoint(t *testing.T) {
	if os.Getenv("BERTH_TEST_OCI") == "crun" {
		t.Skip("Debian's crun needs libcriu, which .deps does not have")
	}
	forCLI(t, func(t *testing.T, c *cli) {
		if _, err := os.Stat(host.Deps("bin/criu")); err != nil {
			t.Fatal(err)
		}
		c.start(t, "counter", host.Busybox, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done")
		count := func(name string) (n int) {
			_, _ = fmt.Sscan(c.run(t, "exec", name, "cat", "/count").out, &n)
			return n
		}
		eventually(t, patience, func() string {
			if count("counter") < 20 {
				return "it does not count"
			}
			return ""
		})
		file := filepath.Join(t.TempDir(), "counter.tar")
		c.must(t, "container", "checkpoint", "-e", file, "counter")
		fields(t, c.only(t, "container", "inspect", "counter"), object{"state": "Exited", "exitCode": 0.0, "reason": "Completed"})
		made := c.must(t, "container", "restore", "-i", file, "--name", "again")
		t.Cleanup(func() { c.must(t, "container", "rm", "-f", made) })
		first := count("again")
		if first < 20 {
			t.Errorf("it goes on at %d", first)
		}
		eventually(t, patience, func() string {
			if count("again") <= first {
				return "it does not go on"
			}
			return ""
		})
	})
}

// Shims that run go on as the program that is installed.
func TestCLIShimUpgrade(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		made := c.start(t, "app", host.Busybox, "sh", "-c", idling)
		args := []string{"shim", "upgrade", "--containerd-state", c.State(), "--program", host.Native.Binary(), "--id"}
		if got := c.must(t, append(args, made)...); !strings.Contains(got, made+": runs ") {
			t.Errorf("upgrade: %q", got)
		}
		if got := c.must(t, "exec", "app", "echo", "x"); got != "x" {
			t.Errorf("afterwards: %q", got)
		}
		if r := c.run(t, append(args, "nosuch")...); r.code != 125 || !strings.Contains(r.err, "no shim") {
			t.Errorf("no such shim: %+v", r)
		}
	})
}
