// SPDX-License-Identifier: Apache-2.0

// Package instruction changes an image's configuration by lines of a Dockerfile, as
// `docker import --change` and `docker commit --change` take them. It owns what these
// lines mean (docs.docker.com, "Dockerfile reference"); it refuses all that would build
// something.
package instruction

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is the configuration of an image's containers with the members that Docker
// adds to OCI's, under their names in JSON (moby, image specification 1.3).
type Config struct {
	v1.ImageConfig
	Healthcheck *Healthcheck `json:",omitempty"`
	OnBuild     []string     `json:",omitempty"`
	Shell       []string     `json:",omitempty"`
}

// Healthcheck says how to find out whether a container works.
type Healthcheck struct {
	Test          []string      `json:",omitempty"` // NONE, or CMD or CMD-SHELL and the command
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// Apply changes c by the lines, in their order: CMD, ENTRYPOINT, ENV, EXPOSE,
// HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR. A line may have
// line breaks in it and be several instructions. Variables are those of c's
// environment. The class is ErrInvalidArgument for a line that cannot be, which the
// error shows; c is as before then.
func Apply(c *Config, lines []string) error {
	text := strings.Join(lines, "\n")
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return fmt.Errorf("changes: not text: %w", errdefs.ErrInvalidArgument)
	}
	e := &editor{Config: clone(c)}
	for line := range logical(text) {
		if err := e.apply(line); err != nil {
			return fmt.Errorf("change %q: %w: %w", line, err, errdefs.ErrInvalidArgument)
		}
	}
	*c = e.Config
	return nil
}

// clone copies what instructions change in place.
func clone(c *Config) Config {
	copied := *c
	copied.Env = slices.Clone(c.Env)
	copied.OnBuild = slices.Clone(c.OnBuild)
	copied.Labels = maps.Clone(c.Labels)
	copied.Volumes = maps.Clone(c.Volumes)
	copied.ExposedPorts = maps.Clone(c.ExposedPorts)
	return copied
}

// logical yields the lines with those put together that a backslash joins, without
// comments and empty ones.
func logical(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var joined strings.Builder
		for line := range strings.SplitSeq(text, "\n") {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if rest, more := strings.CutSuffix(line, `\`); more {
				joined.WriteString(rest)
				continue
			}
			joined.WriteString(line)
			if !yield(joined.String()) {
				return
			}
			joined.Reset()
		}
		if joined.Len() > 0 {
			yield(joined.String())
		}
	}
}

// editor is a configuration that is being changed.
type editor struct {
	Config
	commanded bool // one of the lines was CMD
}

var errNoArgument = errors.New("an argument is missing")

func (e *editor) apply(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	if tab := strings.IndexByte(word, '\t'); tab >= 0 {
		word, rest = line[:tab], line[tab:]
	}
	instructions := map[string]func(string) error{
		"CMD":         e.cmd,
		"ENTRYPOINT":  e.entrypoint,
		"ENV":         e.env,
		"EXPOSE":      e.expose,
		"HEALTHCHECK": e.healthcheck,
		"LABEL":       e.label,
		"ONBUILD":     e.onBuild,
		"STOPSIGNAL":  e.stopSignal,
		"USER":        e.user,
		"VOLUME":      e.volume,
		"WORKDIR":     e.workDir,
	}
	do := instructions[strings.ToUpper(word)]
	if do == nil {
		known := slices.Sorted(maps.Keys(instructions))
		return fmt.Errorf("%s is none of %s", word, strings.Join(known, ", "))
	}
	if rest = strings.TrimSpace(rest); rest == "" {
		return errNoArgument
	}
	return do(rest)
}
