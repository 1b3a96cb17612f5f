// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// initID is user and group of a pod's first process, those that pause has.
const initID = 65535

// helper is the process that makes a pod's namespaces and keeps them until they
// are pinned.
type helper struct {
	planned *planned
	job     job
	pid     int
	pidfd   int
	open    []int // descriptors to be closed
}

// startHelper forks the helper of a pod, which begins to work. It returns nil if
// the pod has no namespace to be made. The caller must end it.
func startHelper(p *planned) (h *helper, err error) {
	var unshare uintptr
	if p.owns(ipc) {
		unshare |= unix.CLONE_NEWIPC
	}
	if p.owns(uts) {
		unshare |= unix.CLONE_NEWUTS
	}
	if unshare == 0 && !p.owns(user) && !p.process && len(p.sysctls) == 0 {
		return nil, nil
	}
	h = &helper{planned: p, pidfd: -1}
	h.job = job{unshare: unshare, userns: p.userns, netns: p.netns, status: [2]int{-1, -1}, orders: [2]int{-1, -1}}
	defer func() {
		if err != nil {
			h.abort()
			h = nil
		}
	}()
	if p.owns(user) && p.userns < 0 {
		h.job.flags = unix.CLONE_NEWUSER
	}
	if p.owns(uts) {
		h.job.hostname = []byte(p.hostname)
	}
	if err := h.addSettings(); err != nil {
		return h, err
	}
	for _, pipe := range [...]*[2]int{&h.job.status, &h.job.orders} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return h, kernel("pipe", err)
		}
	}
	if p.process {
		if err := h.prepareInit(); err != nil {
			return h, err
		}
	}
	if err := h.fork(); err != nil {
		return h, err
	}
	return h, h.mapIDs()
}

// addSettings prepares the sysctls. The names in a UTS namespace have system calls,
// which work in a user namespace, too.
func (h *helper) addSettings() error {
	for _, s := range h.planned.sysctls {
		switch s.path {
		case domainPath:
			if len(s.value) > maxHostname {
				return invalid("sysctl " + s.name + ": " + strconv.Itoa(len(s.value)) + " bytes, Linux has room for " + strconv.Itoa(maxHostname))
			}
			h.job.domain = []byte(s.value)
		case hostnamePath: // is the hostname
		default:
			path, err := unix.BytePtrFromString("/proc/sys/" + s.path)
			if err != nil {
				return invalid("sysctl " + s.name + ": " + err.Error())
			}
			h.job.settings = append(h.job.settings, setting{path, []byte(s.value)})
		}
	}
	return nil
}

// prepareInit prepares all that the pod's first process is made from.
func (h *helper) prepareInit() (err error) {
	j, p := &h.job, h.planned
	j.init = true
	if j.program, err = initFile(); err != nil {
		return err
	}
	h.open = append(h.open, j.program)
	if j.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return kernel("/dev/null", err)
	}
	h.open = append(h.open, j.null)
	if j.root, err = emptyRoot(filepath.Join(p.dir, "root")); err != nil {
		return kernel("root directory of the pod's init", err)
	}
	h.open = append(h.open, j.root)
	j.id = initID
	for _, ids := range [...][]Mapping{p.uids, p.gids} {
		for _, m := range ids {
			if m.ContainerID == 0 {
				j.id = min(j.id, uintptr(m.Length-1))
			}
		}
	}
	if j.argv[0], err = unix.BytePtrFromString(initName); err != nil {
		return invalid(err.Error())
	}
	if j.empty, err = unix.BytePtrFromString(""); err != nil {
		return invalid(err.Error())
	}
	filter := initFilter()
	j.filter = unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return nil
}

// emptyRoot returns a descriptor of a mount that is nowhere in the tree, with a
// deleted directory. It makes and removes the directory at path.
func emptyRoot(path string) (int, error) {
	if err := unix.Mkdir(path, 0o555); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if rerr := unix.Rmdir(path); err == nil && rerr != nil {
		_ = unix.Close(fd)
		err = rerr
	}
	return fd, err
}

func (h *helper) fork() error {
	// What the child uses of this thread is gone otherwise.
	runtime.LockOSThread()
	pid, pidfd, errno := h.job.run()
	runtime.UnlockOSThread()
	if errno != 0 {
		return kernel("process for the pod's namespaces", errno)
	}
	h.pid, h.pidfd = pid, pidfd
	// Its ends of the pipes: with them the ends of ours would not be seen.
	closeAll(&h.job.status[1], &h.job.orders[0])
	return nil
}

// mapIDs writes the maps of a user namespace that was born with the helper.
func (h *helper) mapIDs() error {
	if h.job.flags == 0 {
		return nil
	}
	for _, m := range [...]struct {
		file string
		ids  []Mapping
	}{{"uid_map", h.planned.uids}, {"gid_map", h.planned.gids}} {
		var text []byte
		for _, line := range m.ids {
			text = append(append(text, line.String()...), '\n')
		}
		if err := os.WriteFile("/proc/"+strconv.Itoa(h.pid)+"/"+m.file, text, 0); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return invalid("mappings of the user namespace: Linux refuses this " + m.file + ": " + strconv.Quote(string(text)))
			}
			return kernel("user namespace", err)
		}
	}
	return h.order()
}

// order sends the helper on.
func (h *helper) order() error {
	_, err := unix.Write(h.job.orders[1], []byte{1})
	return kernel("process for the pod's namespaces", err)
}

// finish waits until the helper has made everything, and returns the pid of the
// pod's first process, 0 if it has none.
func (h *helper) finish() (int, error) {
	status := os.NewFile(uintptr(h.job.status[0]), "status")
	h.job.status[0] = -1
	defer status.Close()
	// The end of the file means that the init has had its exec.
	text, err := io.ReadAll(status)
	if err != nil {
		return 0, kernel("process for the pod's namespaces", err)
	}
	var first report
	for i := 0; i+reportBytes <= len(text); i += reportBytes {
		field := func(n int) int32 { return int32(binary.NativeEndian.Uint32(text[i+4*n:])) }
		r := report{step(field(0)), field(1), field(2), field(3)}
		if r.errno != 0 {
			return 0, h.failed(r)
		}
		if first.pid == 0 {
			first = r
		}
	}
	if len(text) == 0 {
		return 0, fault.New(fault.Internal, "process for the pod's namespaces: killed")
	}
	return int(first.pid), nil
}

// failed says in words what the helper could not do.
func (h *helper) failed(r report) error {
	errno := syscall.Errno(r.errno)
	if r.step == stepSysctl {
		s := h.job.settings[r.index]
		i := 0
		for "/proc/sys/"+h.planned.sysctls[i].path != unix.BytePtrToString(s.path) {
			i++
		}
		what := "sysctl " + h.planned.sysctls[i].name + "=" + strconv.Quote(string(s.value))
		if errno == unix.ENOENT {
			return invalid(what + ": the pod's namespaces have no such")
		}
		return fault.Wrap(fault.InvalidArgument, what, errno)
	}
	what := [...]string{
		stepJoinUser: "join the user namespace of " + h.planned.request.NetnsPath, stepMapped: "user namespace",
		stepCredentials: "become root of the user namespace", stepUnshare: "new namespaces", stepHostname: "hostname",
		stepDomain: "domain name", stepNetwork: "join the network namespace " + h.planned.request.NetnsPath,
		stepClone: "process namespace", stepRoot: "root directory of the pod's init", stepStdio: "descriptors of the pod's init",
		stepDrop: "privileges of the pod's init", stepExec: "program of the pod's init",
	}[r.step]
	return kernel(what, errno)
}

// release ends the helper. The init, if there is one, goes on, with the nearest
// subreaper above as its parent.
func (h *helper) release() error {
	err := h.order()
	h.abort()
	return err
}

// abort ends the helper, and the init, unless release did it.
func (h *helper) abort() {
	closeAll(&h.job.orders[0], &h.job.orders[1], &h.job.status[0], &h.job.status[1])
	for i := range h.open {
		closeAll(&h.open[i])
	}
	if h.pidfd < 0 {
		return
	}
	// It ends by itself: its pipe has.
	for unix.Waitid(unix.P_PIDFD, h.pidfd, nil, unix.WEXITED|unix.WALL, nil) == unix.EINTR {
	}
	closeAll(&h.pidfd)
}

func closeAll(fds ...*int) {
	for _, fd := range fds {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}
