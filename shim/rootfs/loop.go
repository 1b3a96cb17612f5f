// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
)

// loopAttempts bounds the search for a free loop device, of which others may be
// faster to take one.
const loopAttempts = 100

// attachLoop shows file as a block device, until the device has no user left. The
// caller closes what it returns. Needs Linux 5.8.
func attachLoop(file string, readOnly, directIO bool) (*os.File, error) {
	mode := os.O_RDWR
	config := unix.LoopConfig{}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		mode = os.O_RDONLY
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if directIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	copy(config.Info.File_name[:], file) // shown by losetup, cut off if too long
	backing, err := os.OpenFile(file, mode, 0)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "loop device", err)
	}
	defer backing.Close()
	config.Fd = uint32(backing.Fd())
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "loop device", err)
	}
	defer control.Close()
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, kernel("free loop device", err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, "loop device", err)
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if err != unix.EBUSY {
			return nil, kernel("loop device for "+file, err)
		}
	}
	return nil, fault.New(fault.Unavailable, "loop device for "+file+": others keep taking the free ones")
}
