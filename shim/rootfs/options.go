// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// options are a mount's type and options, taken apart for mount(2).
type options struct {
	fstype      string
	flags       uintptr
	cleared     uintptr // flags that an option switched off
	propagation uintptr
	data        []string
	loop        bool // the source is a file, to be seen through a loop device
	directIO    bool // of the loop device
	uidmap      string
	gidmap      string
}

// flagNames are the options of mount(8) that are flags of mount(2).
var flagNames = [...]struct {
	name  string
	flag  uintptr
	clear bool
}{
	{"async", unix.MS_SYNCHRONOUS, true},
	{"atime", unix.MS_NOATIME, true},
	{"bind", unix.MS_BIND, false},
	{"dev", unix.MS_NODEV, true},
	{"diratime", unix.MS_NODIRATIME, true},
	{"dirsync", unix.MS_DIRSYNC, false},
	{"exec", unix.MS_NOEXEC, true},
	{"mand", unix.MS_MANDLOCK, false},
	{"noatime", unix.MS_NOATIME, false},
	{"nodev", unix.MS_NODEV, false},
	{"nodiratime", unix.MS_NODIRATIME, false},
	{"noexec", unix.MS_NOEXEC, false},
	{"nomand", unix.MS_MANDLOCK, true},
	{"norelatime", unix.MS_RELATIME, true},
	{"nostrictatime", unix.MS_STRICTATIME, true},
	{"nosuid", unix.MS_NOSUID, false},
	{"rbind", unix.MS_BIND | unix.MS_REC, false},
	{"relatime", unix.MS_RELATIME, false},
	{"remount", unix.MS_REMOUNT, false},
	{"ro", unix.MS_RDONLY, false},
	{"rw", unix.MS_RDONLY, true},
	{"strictatime", unix.MS_STRICTATIME, false},
	{"suid", unix.MS_NOSUID, true},
	{"sync", unix.MS_SYNCHRONOUS, false},
}

// propagationNames are those that need a call of their own.
var propagationNames = [...]struct {
	name string
	flag uintptr
}{
	{"private", unix.MS_PRIVATE},
	{"rprivate", unix.MS_PRIVATE | unix.MS_REC},
	{"shared", unix.MS_SHARED},
	{"rshared", unix.MS_SHARED | unix.MS_REC},
	{"slave", unix.MS_SLAVE},
	{"rslave", unix.MS_SLAVE | unix.MS_REC},
	{"unbindable", unix.MS_UNBINDABLE},
	{"runbindable", unix.MS_UNBINDABLE | unix.MS_REC},
}

// parseOptions takes apart what check has let pass. Of contradicting options the
// last counts; an unknown one is for the file system.
func parseOptions(m *wire.Mount) *options {
	o := &options{fstype: m.Type}
	switch m.Type {
	case "bind":
		o.flags = unix.MS_BIND
	case "rbind":
		o.flags = unix.MS_BIND | unix.MS_REC
	}
	for _, name := range m.Options {
		o.add(name)
	}
	return o
}

func (o *options) add(name string) {
	for i := range flagNames {
		f := &flagNames[i]
		if f.name != name {
			continue
		}
		if f.clear {
			o.flags, o.cleared = o.flags&^f.flag, o.cleared|f.flag
		} else {
			o.flags, o.cleared = o.flags|f.flag, o.cleared&^f.flag
		}
		return
	}
	for i := range propagationNames {
		if propagationNames[i].name == name {
			o.propagation = propagationNames[i].flag
			return
		}
	}
	switch {
	case name == "defaults", name == "":
	case name == "loop":
		o.loop = true
	case name == "direct-io" && o.loop:
		o.directIO = true
	case strings.HasPrefix(name, "uidmap="):
		o.uidmap = strings.TrimPrefix(name, "uidmap=")
	case strings.HasPrefix(name, "gidmap="):
		o.gidmap = strings.TrimPrefix(name, "gidmap=")
	default:
		o.data = append(o.data, name)
	}
}

// check refuses what is written for containerd's mount manager and must not reach
// a kernel, and types that need a helper program.
func check(m *wire.Mount) error {
	if strings.Contains(m.Type, "/") {
		return unmanaged("type " + m.Type)
	}
	if strings.Contains(m.Source, "{{") {
		return unmanaged("source " + m.Source)
	}
	for _, o := range m.Options {
		if strings.HasPrefix(o, "X-containerd.") || strings.Contains(o, "{{") {
			return unmanaged("option " + o)
		}
	}
	if strings.HasPrefix(m.Type, "fuse.") || strings.HasPrefix(m.Type, "fuse3.") {
		return fault.New(fault.InvalidArgument, "type "+m.Type+": file systems in user space are not supported")
	}
	return nil
}

func unmanaged(what string) error {
	return fault.New(fault.InvalidArgument, what+" was not resolved by containerd's mount manager")
}
