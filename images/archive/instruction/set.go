// SPDX-License-Identifier: Apache-2.0

package instruction

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/signal"
)

func (e *editor) cmd(text string) error {
	e.Cmd, e.commanded = e.command(text), true
	return nil
}

func (e *editor) entrypoint(text string) error {
	e.Entrypoint = e.command(text)
	if !e.commanded {
		e.Cmd = nil // they were the arguments of another program
	}
	return nil
}

// command reads a command in either form: a JSON array, or a line for the shell.
func (e *editor) command(text string) []string {
	if words, ok := array(text); ok {
		return words
	}
	shell := e.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), text)
}

func array(text string) ([]string, bool) {
	words := []string{}
	if !strings.HasPrefix(text, "[") || json.Unmarshal([]byte(text), &words) != nil {
		return nil, false
	}
	return words, true
}

func (e *editor) env(text string) error {
	pairs, err := e.pairs(text)
	for _, p := range pairs {
		variable := p[0] + "=" + p[1]
		i := slices.IndexFunc(e.Env, func(old string) bool { return strings.HasPrefix(old, p[0]+"=") })
		if i >= 0 {
			e.Env[i] = variable
		} else {
			e.Env = append(e.Env, variable)
		}
	}
	return err
}

func (e *editor) label(text string) error {
	pairs, err := e.pairs(text)
	for _, p := range pairs {
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[p[0]] = p[1]
	}
	return err
}

// pairs reads "key=value ..." and the older "key value".
func (e *editor) pairs(text string) ([][2]string, error) {
	key, value, _ := strings.Cut(text, " ")
	if !strings.Contains(key, "=") && !strings.ContainsAny(key, `"'`) {
		value, err := e.word(strings.TrimSpace(value))
		if err == nil && value == "" {
			err = fmt.Errorf("%s has no value", key)
		}
		return [][2]string{{key, value}}, err
	}
	words, err := e.words(text)
	if err != nil {
		return nil, err
	}
	var pairs [][2]string
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not key=value", word)
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs, nil
}

func (e *editor) expose(text string) error {
	words, err := e.words(text)
	if err != nil {
		return err
	}
	for _, word := range words {
		ports, protocol, ok := strings.Cut(strings.ToLower(word), "/")
		if !ok {
			protocol = "tcp"
		}
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			return fmt.Errorf("protocol of %q is none of tcp, udp, sctp", word)
		}
		first, last, ok := strings.Cut(ports, "-")
		if !ok {
			last = first
		}
		from, errFrom := port(first)
		to, errTo := port(last)
		if errFrom != nil || errTo != nil || from > to {
			return fmt.Errorf("%q is neither a port nor a range of them", word)
		}
		if e.ExposedPorts == nil {
			e.ExposedPorts = map[string]struct{}{}
		}
		for p := from; p <= to; p++ {
			e.ExposedPorts[fmt.Sprintf("%d/%s", p, protocol)] = struct{}{}
		}
	}
	return nil
}

func port(text string) (int, error) {
	p, err := strconv.ParseUint(text, 10, 16)
	if err == nil && p == 0 {
		err = strconv.ErrRange
	}
	return int(p), err
}

func (e *editor) onBuild(text string) error {
	switch trigger, _, _ := strings.Cut(strings.ToUpper(text), " "); trigger {
	case "ONBUILD", "FROM", "MAINTAINER":
		return fmt.Errorf("%s cannot be a trigger", trigger)
	}
	e.OnBuild = append(e.OnBuild, text)
	return nil
}

func (e *editor) stopSignal(text string) error {
	name, err := e.word(text)
	if err == nil {
		_, err = signal.ParseSignal(name)
	}
	if err == nil {
		e.StopSignal = name
	}
	return err
}

func (e *editor) user(text string) error {
	user, err := e.word(text)
	if err == nil && user == "" {
		err = errNoArgument
	}
	e.User = user
	return err
}

func (e *editor) volume(text string) error {
	words, ok := array(text)
	if !ok {
		var err error
		if words, err = e.words(text); err != nil {
			return err
		}
	}
	for _, word := range words {
		if strings.TrimSpace(word) == "" {
			return errors.New("a volume has no path")
		}
		if e.Volumes == nil {
			e.Volumes = map[string]struct{}{}
		}
		e.Volumes[word] = struct{}{}
	}
	return nil
}

func (e *editor) workDir(text string) error {
	dir, err := e.word(text)
	if err != nil {
		return err
	}
	if dir == "" {
		return errNoArgument
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", e.WorkingDir, dir)
	}
	e.WorkingDir = path.Clean(dir)
	return nil
}

func (e *editor) healthcheck(text string) error {
	check := &Healthcheck{}
	for strings.HasPrefix(text, "--") {
		flag, rest, _ := strings.Cut(text, " ")
		if err := check.flag(strings.TrimPrefix(flag, "--")); err != nil {
			return err
		}
		text = strings.TrimSpace(rest)
	}
	kind, command, _ := strings.Cut(text, " ")
	command = strings.TrimSpace(command)
	switch kind = strings.ToUpper(kind); {
	case kind == "NONE" && command == "":
		check.Test = []string{"NONE"}
	case kind == "CMD" && command != "":
		if words, ok := array(command); ok {
			check.Test = append([]string{"CMD"}, words...)
		} else {
			check.Test = []string{"CMD-SHELL", command}
		}
	default:
		return fmt.Errorf("%q is neither NONE nor CMD and a command", text)
	}
	e.Healthcheck = check
	return nil
}

// flag sets what --name=value says.
func (h *Healthcheck) flag(text string) error {
	name, value, _ := strings.Cut(text, "=")
	durations := map[string]*time.Duration{
		"interval":       &h.Interval,
		"timeout":        &h.Timeout,
		"start-period":   &h.StartPeriod,
		"start-interval": &h.StartInterval,
	}
	var err error
	if name == "retries" {
		h.Retries, err = strconv.Atoi(value)
		if err == nil && h.Retries < 0 {
			err = strconv.ErrRange
		}
	} else if d := durations[name]; d != nil {
		*d, err = time.ParseDuration(value)
		// Docker's own bound: zero means the default, and less is surely a slip.
		if err == nil && *d != 0 && *d < time.Millisecond {
			err = errors.New("less than a millisecond")
		}
	} else {
		err = errors.New("no such flag")
	}
	if err != nil {
		return fmt.Errorf("--%s: %w", text, err)
	}
	return nil
}
