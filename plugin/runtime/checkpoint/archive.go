// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
)

// Export writes a checkpoint to an archive at path, which is replaced if it is
// there: a tar file that only its owner can read, as it holds the container's
// memory. When it returns the archive is on disk.
func (c *Checkpoint) Export(ctx context.Context, path string) (err error) {
	// Beside it, to be renamed: nobody sees half an archive.
	f, err := os.CreateTemp(filepath.Dir(path), ".checkpoint-*") // mode 0600
	if err != nil {
		return fmt.Errorf("export checkpoint: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("export checkpoint to %s: %w", path, err)
		}
	}()
	err = pack(ctx, c.Dir, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// pack writes the files and directories below dir as tar. Other kinds do not
// belong into a checkpoint.
func pack(ctx context.Context, dir string, w io.Writer) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || path == dir || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return packFile(out, path, name)
	})
	return errors.Join(err, out.Close())
}

func packFile(out *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(st, "")
	if err != nil {
		return err
	}
	if h.Name = name; st.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", "" // names of this machine
	if err := out.WriteHeader(h); err != nil || st.IsDir() {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}

// Import unpacks an archive into dir and checks what is there. The parent of dir
// exists; what is in dir is replaced. An archive that is none, or not of a
// checkpoint, is InvalidArgument; dir does not exist then.
func Import(ctx context.Context, path, dir string) (_ *Checkpoint, err error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
		}
		return nil, fmt.Errorf("import checkpoint: %w", err)
	}
	defer f.Close()
	c, err := receive(dir, func() error { return unpack(ctx, f, dir) })
	if err != nil {
		return nil, fmt.Errorf("import checkpoint %s: %w", path, err)
	}
	return c, nil
}

// receive has dir filled and loads what is there then.
func receive(dir string, fill func() error) (c *Checkpoint, err error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("directory %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
	}
	if err := clear(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := fill(); err != nil {
		return nil, err
	}
	return Load(dir)
}

// unpack extracts an archive, compressed or not. It comes from elsewhere: only
// files and directories are taken, with our own modes, and none outside of dir.
func unpack(ctx context.Context, r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	defer plain.Close()
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		if err := errors.Join(ctx.Err(), extract(root, h, in)); err != nil {
			return err
		}
	}
}

func extract(root *os.Root, h *tar.Header, content io.Reader) (err error) {
	name := filepath.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("entry %q leads outside: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg:
	default:
		return fmt.Errorf("entry %q is neither file nor directory: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	return nil
}
