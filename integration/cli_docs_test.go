// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/integration/host"
	"github.com/berthd/berth/integration/programs"
)

// documentedImage is what documents run.
const documentedImage = "docker.io/library/busybox:latest"

// shell returns a command for lines of a document: its `berth` is that of the test.
func (c *cli) shell(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	berth := c.command(t)
	bin := t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\"\n", strings.Join(berth.Args, "' '"))
	programs.Write(t, filepath.Join(bin, "berth"), text)
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = c.Dir
	cmd.Env = append(slices.Clone(berth.Env), "PATH="+bin+":"+host.Deps("bin")+":"+os.Getenv("PATH"))
	return cmd
}

// The README shows a pod's life in ten lines. They work, one after the other.
func TestCLIReadme(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		text, err := os.ReadFile("../README.md")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(text), "A pod's life")
		block := regexp.MustCompile(`(?m)(?:^    .+\n)+`).FindString(rest)
		lines := strings.Split(strings.TrimSpace(block), "\n")
		if !found || len(lines) != 10 {
			t.Fatalf("README.md shows %d lines, want 10: %s", len(lines), block)
		}
		if out, err := c.Ctr("images", "tag", host.Busybox, documentedImage).CombinedOutput(); err != nil { // for the pull
			t.Fatalf("%v: %s", err, out)
		}
		t.Cleanup(func() { _ = c.Ctr("images", "rm", documentedImage).Run() })
		want := []string{"", `^[0-9a-f]{64}\n$`, `^[0-9a-f]{64}\n$`, `^hello\n$`, `site +web +` + documentedImage + ` +Running`, `httpd`, `^ready\n$`, `web +.*%`, `^web\n$`, `^web\n$`}
		for i, line := range lines {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "ctr ") {
				continue // there is no registry
			}
			out, err := c.shell(t, line).CombinedOutput()
			if err != nil || !regexp.MustCompile(want[i]).Match(out) {
				t.Errorf("%s: %v: %s, want %s", line, err, out, want[i])
			}
		}
		if got := c.must(t, "pods", "-q"); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}

// Documents mention only commands and flags that there are.
func TestCLIDocuments(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		for _, file := range []string{"../README.md", "../docs/cli.md", "../docs/images.md", "../docs/crio-migration.md"} {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile("(?m)(?:^    |`|\\$\\()(berth (?:pod|container|image|shim|run|exec|logs|ps|pods|pull|push|images|rmi|doctor)\\b[^`\n)]*)").FindAllStringSubmatch(string(text), -1) {
				checkCommand(t, c, file, m[1])
			}
		}
	})
}

// checkCommand looks for a documented command and its flags in the help.
func checkCommand(t *testing.T, c *cli, file, line string) {
	t.Helper()
	words := strings.Fields(strings.Split(line, "#")[0])[1:]
	names := words[:1]
	if slices.Contains([]string{"pod", "container", "image", "shim"}, names[0]) && len(words) > 1 && regexp.MustCompile(`^[a-z-]+$`).MatchString(words[1]) {
		names = words[:2]
	}
	r := c.run(t, append(slices.Clone(names), "--help")...)
	if r.code != 0 || !strings.Contains(r.out, "berth "+strings.Join(names, " ")) {
		t.Errorf("%s: %s: no such command: %s", file, line, r.err)
		return
	}
	for _, flag := range regexp.MustCompile(`(?:^| )(--[a-z][a-z-]+)`).FindAllStringSubmatch(strings.Join(words[len(names):], " "), -1) {
		if !strings.Contains(r.out, flag[1]+" ") && !strings.Contains(r.out, flag[1]+"\n") {
			t.Errorf("%s: %s: no flag %s", file, line, flag[1])
		}
	}
}
