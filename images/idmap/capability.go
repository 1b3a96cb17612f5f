// SPDX-License-Identifier: Apache-2.0

package idmap

import "encoding/binary"

// What the kernel keeps of a file's capabilities (linux/capability.h,
// capabilities(7)): a word with the revision and a flag, then the sets; revision 3
// ends with the host's id of the namespace's root.
const (
	attrCapability    = "security.capability"
	revisionMask      = 0xff000000
	revision2         = 0x02000000
	revision3         = 0x03000000
	bytesOfRevision2  = 20
	bytesOfRevision3  = 24
	bytesOfFirstWord  = 4
	flagsOfCapability = ^uint32(revisionMask)
)

// portable returns capabilities without the namespace they are for: revision 2 means
// the root of whoever runs the file, so it is right on the host, in an image and for
// the new owner alike.
func portable(data []byte) []byte {
	if len(data) != bytesOfRevision3 {
		return data
	}
	word := binary.LittleEndian.Uint32(data)
	if word&revisionMask != revision3 {
		return data
	}
	short := append([]byte(nil), data[:bytesOfRevision2]...)
	binary.LittleEndian.PutUint32(short[:bytesOfFirstWord], revision2|word&flagsOfCapability)
	return short
}
