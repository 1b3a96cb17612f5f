// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/sandbox"
	"github.com/berthd/berth/shim/wire"
)

// planned is a pod that was asked for, checked, and not made yet.
type planned struct {
	id, dir    string
	request    wire.CreateSandboxRequest
	config     *config
	namespaces map[string]Namespace
	hostname   string
	resolv     []byte
	sysctls    []sysctl
	uids, gids []Mapping
	rootUID    int // what the pod's root is on the host
	rootGID    int

	cgroupParent string
	mountLabel   string
	process      bool // there is a first process

	netns, userns int // descriptors, or -1
}

// plan checks a request. It changes nothing on the machine.
func (m *Maker) plan(request []byte) (*planned, error) {
	p := &planned{id: m.ID, netns: -1, userns: -1}
	var err error
	if p.dir, err = sandbox.Dir(m.State, m.Namespace, m.ID); err != nil {
		return nil, err
	}
	if err := p.request.Decode(request); err != nil {
		return nil, fault.In("request for a sandbox", err)
	}
	if p.request.SandboxID != m.ID {
		return nil, invalid("request is for the sandbox " + strconv.Quote(p.request.SandboxID))
	}
	if p.config, err = decodeConfig(&p.request.Options); err != nil {
		return nil, err
	}
	if err := p.planNamespaces(); err != nil {
		return nil, err
	}
	p.process = m.Process || p.owns(pid)
	for _, check := range [...]func() error{p.checkHostname, p.checkDNS, p.checkCgroup, p.checkLabel, p.openNamespaces} {
		if err := check(); err != nil {
			p.close()
			return nil, err
		}
	}
	if err := p.checkSysctls(p.config.Linux.Sysctls); err != nil {
		p.close()
		return nil, err
	}
	p.addDefaults(m)
	return p, nil
}

// close closes the descriptors.
func (p *planned) close() {
	for _, fd := range [...]*int{&p.netns, &p.userns} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

func (p *planned) owns(typ string) bool { return p.namespaces[typ].Mode == Own }

// planNamespaces decides whose each namespace is. As in podsandbox a mode of the
// network or IPC that is not the host's is the pod's, and the pod has a UTS
// namespace unless it has the host's network.
func (p *planned) planNamespaces() error {
	modes := &p.config.Linux.Security.Namespaces
	own := func(typ, name string) Namespace { return Namespace{Own, filepath.Join(p.dir, name)} }
	p.namespaces = map[string]Namespace{
		network: {Own, p.request.NetnsPath},
		ipc:     own(ipc, sandbox.PinIPC),
		uts:     own(uts, sandbox.PinUTS),
		user:    {Mode: Node},
	}
	if modes.Network == modeNode {
		p.namespaces[network], p.namespaces[uts] = Namespace{Mode: Node}, Namespace{Mode: Node}
	}
	if modes.IPC == modeNode {
		p.namespaces[ipc] = Namespace{Mode: Node}
	}
	switch modes.PID {
	case modePod:
		p.namespaces[pid] = own(pid, sandbox.PinPID)
	case modeContainer:
		p.namespaces[pid] = Namespace{Mode: Each}
	case modeNode:
		p.namespaces[pid] = Namespace{Mode: Node}
	default:
		return invalid("process namespace of a pod: mode " + strconv.Itoa(int(modes.PID)) + ": want 0 (pod), 1 (container) or 2 (node)")
	}
	return p.planUser(modes.User)
}

func (p *planned) planUser(u *userns) (err error) {
	switch {
	case u == nil:
		return nil
	case u.Mode == modeNode:
		if len(u.UIDs)+len(u.GIDs) > 0 {
			return invalid("user namespace of the host: it takes no id mappings")
		}
		return nil
	case u.Mode != modePod:
		return invalid("user namespace of a pod: mode " + strconv.Itoa(int(u.Mode)) + ": want 0 (pod) or 2 (node)")
	}
	p.namespaces[user] = Namespace{Own, filepath.Join(p.dir, sandbox.PinUser)}
	p.uids, p.gids = u.UIDs, u.GIDs
	if p.rootUID, err = rootOf("uid", u.UIDs); err != nil {
		return err
	}
	p.rootGID, err = rootOf("gid", u.GIDs)
	return err
}

// rootOf returns what id 0 is on the host.
func rootOf(what string, mappings []Mapping) (int, error) {
	root := -1
	for _, m := range mappings {
		if m.Length == 0 || uint64(m.HostID)+uint64(m.Length) > 1<<32-1 || uint64(m.ContainerID)+uint64(m.Length) > 1<<32-1 {
			return 0, invalid(what + " mapping " + m.String() + ": not a range of ids")
		}
		if m.ContainerID == 0 {
			root = int(m.HostID)
		}
	}
	if root < 0 {
		return 0, invalid(what + " mappings: none is for 0, the pod's root")
	}
	return root, nil
}

// String is a line of a map file.
func (m Mapping) String() string {
	return strconv.FormatUint(uint64(m.ContainerID), 10) + " " + strconv.FormatUint(uint64(m.HostID), 10) + " " + strconv.FormatUint(uint64(m.Length), 10)
}

// maxHostname is the kernel's (uname(2)).
const maxHostname = 64

func (p *planned) checkHostname() error {
	p.hostname = p.config.Hostname
	if p.hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return fault.Wrap(fault.Internal, "hostname", err)
		}
		p.hostname = name
		return nil
	}
	if n := len(p.hostname); n > maxHostname {
		return invalid("hostname " + strconv.Quote(p.hostname) + ": " + strconv.Itoa(n) + " bytes, Linux has room for " + strconv.Itoa(maxHostname))
	}
	if strings.ContainsRune(p.hostname, '/') || blank(p.hostname) {
		return invalid("hostname " + strconv.Quote(p.hostname) + " of " + strconv.Itoa(len(p.hostname)) + " bytes: slash, white space or control character")
	}
	return nil
}

// blank tells whether text has white space or control characters.
func blank(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r == 0x7f || r >= 0x80 && r <= 0xa0 || r == 0x2028 || r == 0x2029
	})
}

// checkDNS makes the text of resolv.conf(5). No DNS configuration at all means the
// host's; an empty one an empty file. Empty words are left out.
func (p *planned) checkDNS() error {
	d := p.config.DNS
	if d == nil {
		text, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			return fault.Wrap(fault.FailedPrecondition, "the host's resolv.conf", err)
		}
		p.resolv = text
		return nil
	}
	var lines []string
	for _, list := range [...]struct {
		key, what, separator string
		words                []string
	}{
		{"search ", "search domain", " ", d.Searches},
		{"nameserver ", "server", "\nnameserver ", d.Servers}, // one a line
		{"options ", "option", " ", d.Options},
	} {
		var words []string
		for _, word := range list.words {
			if blank(word) {
				return invalid("DNS " + list.what + " " + strconv.Quote(word) + ": white space or control character")
			}
			if word != "" {
				words = append(words, word)
			}
		}
		if len(words) > 0 {
			lines = append(lines, list.key+strings.Join(words, list.separator)+"\n")
		}
	}
	p.resolv = []byte(strings.Join(lines, ""))
	return nil
}

func (p *planned) checkCgroup() error {
	parent := p.config.Linux.CgroupParent
	if parent == "" {
		return nil
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." {
			return invalid("cgroup parent " + strconv.Quote(parent) + ": leads upwards")
		}
	}
	p.cgroupParent = path.Clean(parent)
	if !path.IsAbs(parent) && !isSlice(parent) || strings.ContainsFunc(parent, func(r rune) bool { return r < ' ' || r == ':' }) {
		return invalid("cgroup parent " + strconv.Quote(parent) + ": want an absolute path or the name of a slice")
	}
	return nil
}

// openNamespaces opens the network namespace that CRI made, and the user namespace
// that owns it.
func (p *planned) openNamespaces() (err error) {
	if !p.owns(network) {
		return nil
	}
	at := p.request.NetnsPath
	if at == "" {
		return invalid("network namespace: the pod is to have one, and there is no path to it")
	}
	p.netns, err = unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.NotFound, "network namespace "+at+": "+err.Error())
	}
	if err != nil {
		return kernel("network namespace "+at, err)
	}
	if typ, err := unix.IoctlRetInt(p.netns, unix.NS_GET_NSTYPE); err != nil || typ != unix.CLONE_NEWNET {
		return invalid("network namespace " + at + ": the file is none")
	}
	if host, err := isOwn(p.netns, "/proc/self/ns/net"); host || err != nil {
		return refuseHost("network namespace "+at, err)
	}
	if !p.owns(user) {
		return nil
	}
	if p.userns, err = unix.IoctlRetInt(p.netns, unix.NS_GET_USERNS); err != nil {
		return kernel("user namespace of "+at, err)
	}
	unix.CloseOnExec(p.userns)
	if host, err := isOwn(p.userns, "/proc/self/ns/user"); host || err != nil {
		return refuseHost("user namespace of "+at, err)
	}
	return nil
}

// isOwn tells whether the namespace of fd is this process's at path.
func isOwn(fd int, path string) (bool, error) {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(fd, &theirs); err != nil {
		return false, err
	}
	if err := unix.Stat(path, &ours); err != nil {
		return false, err
	}
	return theirs.Dev == ours.Dev && theirs.Ino == ours.Ino, nil
}

func refuseHost(what string, err error) error {
	if err != nil {
		return kernel(what, err)
	}
	return fault.New(fault.FailedPrecondition, what+": it is the host's, and the pod is to have its own")
}

// kernel gives an error of the kernel its class.
func kernel(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN),
		errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fault.Wrap(fault.ResourceExhausted, what, err)
	}
	return fault.Wrap(fault.Internal, what, err)
}
