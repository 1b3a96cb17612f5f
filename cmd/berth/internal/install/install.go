// SPDX-License-Identifier: Apache-2.0

// Package install puts berth's programs and containerd's configuration for them in
// place on a host, and takes them away again. It owns the record of what it did, and
// refuses to touch what it has not made, or what somebody has changed since. It makes
// no RPC: the host may be a folder that becomes one.
package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/docs/systemd"
	"github.com/berthd/berth/plugin/runtime/doctor"
)

// servicePath is systemd's PATH for services.
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// session is one installation or removal.
type session struct {
	tree    tree
	out     io.Writer
	dry     bool // say what would be done, and do nothing
	restart bool // have systemd use what was done
}

func (s *session) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// did says what was done to a path, or would be.
func (s *session) did(verb, path, what string) {
	if s.dry {
		verb = "would " + verb
	}
	s.say("%-14s %s (%s)", verb, path, what)
}

// held calls f with the record, which is empty where nothing is installed, and
// nobody else's meanwhile. made are the folders of the record that were not there.
func (s *session) held(f func(r *record, made []string) error) (err error) {
	made, err := s.tree.missing(recordPath)
	if err != nil {
		return err
	}
	if !s.dry {
		for _, dir := range made {
			if err := s.tree.makeDir(dir); err != nil {
				return err
			}
		}
		lock, err := s.tree.lock()
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	r, err := s.tree.load()
	if err != nil {
		return err
	}
	if r == nil {
		r = &record{Version: recordVersion}
		defer func() {
			for _, dir := range slices.Backward(made) {
				_ = os.Remove(s.tree.at(dir)) // unless there is something in it now
			}
		}()
	}
	return f(r, made)
}

// install does what the request says.
func (s *session) install(ctx context.Context, request *Request) error {
	if err := request.validate(); err != nil {
		return err
	}
	if err := s.systemd(); err != nil {
		return err
	}
	return s.held(func(r *record, made []string) error {
		p := &planner{request: request, tree: s.tree, record: r}
		p.keepParts()
		if err := p.findContainerd(ctx); err != nil {
			return err
		}
		if err := s.checks(ctx, p); err != nil {
			return err
		}
		if err := p.make(ctx); err != nil {
			return err
		}
		changes, unchanged, err := s.tree.changes(p.items, r, request.Force)
		if err != nil {
			return err
		}
		for i, c := range changes {
			changes[i].entry.Serves = cmp.Or(p.serves[c.item.path], c.entry.Serves)
		}
		for _, i := range unchanged {
			s.say("%-14s %s (%s)", "unchanged", i.path, i.what)
		}
		if err := s.apply(r, made, changes); err != nil {
			return err
		}
		return s.after(ctx, p, changes)
	})
}

func (s *session) apply(r *record, made []string, changes []change) error {
	said := func(c change) { s.did(c.verb, c.item.path, c.item.what) }
	if s.dry {
		for _, c := range changes {
			said(c)
		}
		return nil
	}
	if len(changes) == 0 && (r.Phase == installed || r.Phase == "") {
		return nil
	}
	return s.tree.apply(r, made, changes, said)
}

// keepParts has an installation that is made again include what it has.
func (p *planner) keepParts() {
	p.request.Shim = p.request.Shim || p.record.program(shimProgram) != nil
	p.request.Verify = p.request.Verify || p.record.program(verifyProgram) != nil
	p.request.Proxy = p.request.Proxy || p.record.program(daemonProgram) != nil
}

// checks says what the host is, and refuses one that cannot run containers.
func (s *session) checks(ctx context.Context, p *planner) error {
	s.say("%-14s %s, containerd %s", "found", p.daemon.program, p.daemon.version)
	if !s.tree.isHost() {
		s.say("%-14s kernel, cgroups and runtimes: %s is not this host", "not looked at", s.tree)
		return nil
	}
	path := cmp.Or(searchPathOf(p.daemon.program), servicePath)
	if p.request.Shim && !slices.Contains(filepath.SplitList(path), p.request.BinDir) && filepath.Dir(p.daemon.program) != p.request.BinDir {
		p.notes = append(p.notes, p.request.BinDir+" is not in containerd's PATH: it does not find "+shimProgram+" there")
	}
	var lacking []error
	d := doctor.Doctor{Path: path}
	for _, c := range d.Examine(ctx) {
		if !slices.Contains([]string{"kernel", "pidfd", "cgroups", "runc", "crun"}, c.Name) {
			continue
		}
		switch c.Status {
		case doctor.Missing:
			lacking = append(lacking, fmt.Errorf("%s: %s: %s", c.Name, c.Found, c.Remedy))
		case doctor.OK:
			s.say("%-14s %s: %s", "found", c.Name, c.Found)
		}
	}
	if err := errors.Join(lacking...); err != nil && !p.request.Force {
		return fmt.Errorf("%w: %w; --force installs nonetheless", errdefs.ErrFailedPrecondition, err)
	} else if err != nil {
		p.notes = append(p.notes, err.Error())
	}
	return nil
}

// after says what is left to do, and has systemd do its part.
func (s *session) after(ctx context.Context, p *planner, changes []change) error {
	if p.request.Shim {
		if users := processesOf(s.tree.at(filepath.Join(p.request.BinDir, shimProgram))); len(users) > 0 {
			p.steps = append(p.steps, fmt.Sprintf("%d shims run. To have them go on as the new program, without a restart of any container: berth shim upgrade --all", len(users)))
		}
	}
	for _, note := range p.notes {
		s.say("note: %s", note)
	}
	var commands [][]string
	if p.request.Proxy {
		commands = append(commands, []string{"daemon-reload"}, []string{"enable", "--now", systemd.ProxySocketName, systemd.ProxyServiceName},
			[]string{"reload", systemd.ProxyServiceName})
	}
	if slices.ContainsFunc(changes, func(c change) bool { return filepath.Ext(c.item.path) == tomlExt }) {
		commands = append(commands, []string{"restart", "containerd.service"})
	}
	switch {
	case len(changes) == 0:
		s.say("nothing has changed")
	case s.restart:
		if err := s.systemctl(ctx, commands); err != nil {
			return err
		}
	default:
		s.next(commands)
	}
	for _, step := range p.steps {
		s.say("\n%s", step)
	}
	if p.request.Shim && len(changes) > 0 {
		s.say(runtimeClass, p.request.Handler)
	}
	return nil
}

// next says what to tell systemd.
func (s *session) next(commands [][]string) {
	if len(commands) == 0 {
		return
	}
	s.say("\nNext, on the host:")
	for _, c := range commands {
		s.say("    systemctl %s", strings.Join(c, " "))
	}
}

const runtimeClass = `
Once per cluster, for pods that name it (runtimeClassName: %[1]s):

apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: %[1]s
handler: %[1]s`

// uninstall undoes what was installed.
func (s *session) uninstall(ctx context.Context, force bool) error {
	if err := s.systemd(); err != nil {
		return err
	}
	return s.held(func(r *record, _ []string) error {
		if len(r.Entries) == 0 {
			s.say("nothing is installed: there is no %s", s.tree.at(recordPath))
			return nil
		}
		if err := s.obstructed(r, force); err != nil {
			return err
		}
		undos, err := s.tree.undos(r, force)
		if err != nil {
			return err
		}
		proxied := r.entry(filepath.Join(unitDir, systemd.ProxyServiceName)) != nil
		if proxied {
			if err := s.systemctl(ctx, [][]string{{"disable", "--now", systemd.ProxySocketName, systemd.ProxyServiceName}}); err != nil {
				return err
			}
		}
		said := func(u undo) {
			if u.verb == "" {
				s.say("%-14s %s (%s)", "stays", u.entry.Path, u.why)
				return
			}
			s.did(u.verb, u.entry.Path, u.entry.What)
		}
		if s.dry {
			for _, u := range undos {
				said(u)
			}
			return nil
		}
		kept, err := s.tree.undo(r, undos, said)
		for _, dir := range kept {
			s.say("%-14s %s (something else is in it)", "stays", dir)
		}
		if err != nil {
			return err
		}
		commands := [][]string{{"restart", "containerd.service"}}
		if proxied {
			commands = append([][]string{{"daemon-reload"}}, commands...)
		}
		if s.restart {
			return s.systemctl(ctx, commands)
		}
		s.next(commands)
		return nil
	})
}

// obstructed refuses to take away what is in use or was changed.
func (s *session) obstructed(r *record, force bool) error {
	stopped := ""
	if e := r.program(daemonProgram); s.restart && e != nil {
		stopped = e.Path
	}
	found, err := s.tree.obstacles(r, stopped)
	if err != nil || len(found) == 0 {
		return err
	}
	if force {
		for _, why := range found {
			s.say("note: %v", why)
		}
		return nil
	}
	return fmt.Errorf("%w: %w; nothing was done. End containers and services of berth first, or give --force", errdefs.ErrFailedPrecondition, errors.Join(found...))
}

// systemd makes sure that it can be told of what was done, if it is to be.
func (s *session) systemd() error {
	if !s.restart {
		return nil
	}
	if !s.tree.isHost() {
		return fmt.Errorf("%s is not this host, and nothing there can be restarted: %w", s.tree, errdefs.ErrInvalidArgument)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return fmt.Errorf("systemd does not run here: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return nil
}

// systemctl runs commands, if systemd is to be told.
func (s *session) systemctl(ctx context.Context, commands [][]string) error {
	if !s.restart {
		return nil
	}
	for _, args := range commands {
		line := "systemctl " + strings.Join(args, " ")
		if s.dry {
			s.say("would run      %s", line)
			continue
		}
		out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, lastLine(string(out)))
		}
		s.say("%-14s %s", "ran", line)
	}
	return nil
}
