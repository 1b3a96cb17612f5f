// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// initName is what ps shows of a pod's first process.
const initName = "berth-init"

// initText returns where the code of initcode begins, in this program's text.
func initText() uintptr

const (
	initMark  = "berthend" // behind initcode
	initBytes = 512        // more than initcode has on any architecture
)

// initProgram returns the program of a pod's first process: a static executable
// of some hundred bytes, whose process has a stack and nothing else. It reaps
// whatever becomes its child, for ever. A first process ignores every signal that
// it has no handler for, but SIGKILL and SIGSTOP from outside its namespace.
func initProgram() ([]byte, error) {
	// The address of code is a pointer that neither moves nor ends.
	text := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(new(initText())))), initBytes)
	code, _, found := bytes.Cut(text, []byte(initMark))
	if !found {
		return nil, fault.New(fault.Internal, "the code of a pod's init has no end")
	}
	return executable(code), nil
}

// executable wraps position-independent code into an ELF file (elf(5)): one
// segment, mapped from the file's begin, and a stack that is not executable.
func executable(code []byte) []byte {
	const (
		base  = 0x400000
		align = 0x10000 // the largest page of any architecture here
		head  = 64
		entry = 56
		start = head + 2*entry
	)
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	le := binary.LittleEndian
	// ident: 64 bits, little endian, version 1
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+start)
	b = le.AppendUint64(b, head) // program headers
	b = le.AppendUint64(b, 0)    // no sections
	b = le.AppendUint32(b, 0)    // flags
	for _, v := range [...]uint16{head, entry, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(typ, flags uint32, at, size, align uint64) {
		b = le.AppendUint32(b, typ)
		b = le.AppendUint32(b, flags)
		for _, v := range [...]uint64{0, at, at, size, size, align} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 5, base, uint64(start+len(code)), align) // PT_LOAD, read and execute
	segment(0x6474e551, 6, 0, 0, 16)                    // PT_GNU_STACK, read and write
	return append(b, code...)
}

// initFile returns a descriptor of the program in memory, for execveat(2).
func initFile() (int, error) {
	program, err := initProgram()
	if err != nil {
		return -1, err
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(initName, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all are executable
		fd, err = unix.MemfdCreate(initName, flags)
	}
	if err != nil {
		return -1, kernel("program of the pod's init", err)
	}
	// One write, since a file in memory takes all or, without memory, nothing. The
	// seals keep out a container of the pod that finds the file as /proc/1/exe.
	_, err = unix.Write(fd, program)
	if err == nil {
		// Who executes what it cannot read is not to be traced, but with
		// CAP_SYS_PTRACE where the file has its owner: in no user namespace.
		err = unix.Fchmod(fd, 0o111)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, kernel("program of the pod's init", err)
	}
	return fd, nil
}

// initFilter is the seccomp(2) program of a pod's first process: it fails every
// system call but those that it needs between its exec and its end. A container
// that may trace the processes of its pod gets at nothing through this one.
func initFilter() []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		leave = unix.BPF_RET | unix.BPF_K
	)
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	// write(2) is for telling that the exec failed.
	calls := [...]uint32{unix.SYS_WAIT4, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_EXECVEAT, unix.SYS_WRITE, unix.SYS_PRCTL, unix.SYS_RT_SIGPROCMASK, unix.SYS_EXIT_GROUP}
	// Offsets in struct seccomp_data: nr is at 0, arch at 4.
	filter := []unix.SockFilter{{Code: load, K: 4}, {Code: equal, K: arch, Jf: uint8(len(calls) + 1)}, {Code: load, K: 0}}
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: equal, K: nr, Jt: uint8(len(calls) - i)})
	}
	return append(filter,
		unix.SockFilter{Code: leave, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		unix.SockFilter{Code: leave, K: unix.SECCOMP_RET_ALLOW})
}
