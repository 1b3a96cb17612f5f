// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Busybox is a shell and the usual commands, from a statically linked busybox
// of this machine. As root, in /, it runs sh.
func Busybox(ref, program string) (*Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("image %s: applets of %s: %w", ref, program, err)
	}
	files := []File{
		dir("bin", 0o755),
		{Path: "bin/busybox", Mode: 0o755, Data: data},
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			files = append(files, File{Path: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Link: "busybox"})
		}
	}
	files = append(files, dir("dev", 0o755), dir("etc", 0o755))
	files = append(files, users()...)
	files = append(files, dir("home", 0o755), dir("proc", 0o755), dir("root", 0o700), dir("sys", 0o755),
		dir("tmp", 0o777|fs.ModeSticky), dir("usr", 0o755), dir("usr/bin", 0o755), dir("var", 0o755))
	return New(ref, files, v1.ImageConfig{Cmd: []string{"sh"}})
}

// Single is one statically linked program and the users' names, nothing else.
func Single(ref, program, name string, config v1.ImageConfig) (*Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	files := append([]File{{Path: name, Mode: 0o755, Data: data}, dir("etc", 0o755)}, users()...)
	config.Entrypoint = []string{"/" + name}
	return New(ref, files, config)
}

func dir(path string, mode fs.FileMode) File { return File{Path: path, Mode: fs.ModeDir | mode} }

// users are the two names that callers look up: root and an unprivileged one.
func users() []File {
	return []File{
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\ntty:x:5:\nusers:x:100:berth\nnogroup:x:65534:\n")},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\n" +
			"berth:x:1000:100:berth:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
	}
}
