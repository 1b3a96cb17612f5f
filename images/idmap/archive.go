// SPDX-License-Identifier: Apache-2.0

package idmap

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// whiteout begins the names of entries that stand for a removed file (OCI image
// specification, layer.md). They have no owner.
const whiteout = ".wh."

// recordCapability is the attribute in an archive's extended header.
const recordCapability = "SCHILY.xattr." + attrCapability

// Unshift copies a layer's archive, which is not compressed, and changes the owners
// of its entries from the host's to those in the namespace. Capabilities become
// those that any namespace's root may give. The error names the entry whose owner is
// not mapped, and is then of the class ErrFailedPrecondition.
func Unshift(w io.Writer, r io.Reader, m Map) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		if !strings.HasPrefix(path.Base(h.Name), whiteout) {
			if err := m.unshift(h); err != nil {
				return fmt.Errorf("layer: %s: %w", h.Name, err)
			}
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("layer: %s: %w", h.Name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("layer: %s: %w", h.Name, err)
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	// The reader stops at the end's mark; whoever writes wants all of it read.
	_, err := io.Copy(io.Discard, r)
	return err
}

func (m Map) unshift(h *tar.Header) error {
	var err error
	if h.Uid, h.Gid, err = m.ToContainer(h.Uid, h.Gid); err != nil {
		return err
	}
	// The host's names of its users.
	h.Uname, h.Gname = "", ""
	//lint:ignore SA1019 the reader fills it beside the records, and the writer prefers it
	h.Xattrs = nil
	if value, ok := h.PAXRecords[recordCapability]; ok {
		h.PAXRecords[recordCapability] = string(portable([]byte(value)))
	}
	return nil
}
