// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// tree is a host's file system: "/", or a folder that is to become one. Paths given
// to its methods are those of the host.
type tree string

// at is where a path of the host is here.
func (t tree) at(path string) string { return filepath.Join(string(t), path) }

// is tells whether the tree is this machine's own.
func (t tree) isHost() bool { return t == "/" }

// state is what is at a path. The zero value is nothing.
type state struct {
	// Digest is that of a file's content, hexadecimal SHA-256; empty for a link.
	Digest string `json:"digest,omitempty"`
	// Target is a link's.
	Target string `json:"target,omitempty"`

	Mode     fs.FileMode `json:"mode,omitempty"`
	UID      uint32      `json:"uid,omitempty"`
	GID      uint32      `json:"gid,omitempty"`
	Modified time.Time   `json:"modified,omitzero"`
}

func (s state) absent() bool { return s.Digest == "" && s.Target == "" }

// same tells whether the content is the same.
func (s state) same(o state) bool { return s.Digest == o.Digest && s.Target == o.Target }

// look returns what is at a path. Anything but a file, a link and nothing is an error.
func (t tree) look(path string) (state, error) {
	name := t.at(path)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, err
	}
	s := state{Mode: info.Mode().Perm(), Modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.UID, s.GID = sys.Uid, sys.Gid
	}
	switch info.Mode().Type() {
	case 0:
		s.Digest, err = digestOf(name)
	case fs.ModeSymlink:
		s.Target, err = os.Readlink(name)
	default:
		err = fmt.Errorf("%s is neither a file nor a link", name)
	}
	return s, err
}

func digestOf(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// item is a file or a link that is to be somewhere.
type item struct {
	path   string
	what   string // for people
	source string // the program that is copied; or
	data   []byte // the content; or
	target string // the link's target
	mode   fs.FileMode
}

// state is what look returns once the item is there.
func (i item) state() (state, error) {
	switch {
	case i.target != "":
		return state{Target: i.target}, nil
	case i.source != "":
		digest, err := digestOf(i.source)
		return state{Digest: digest, Mode: i.mode}, err
	}
	sum := sha256.Sum256(i.data)
	return state{Digest: hex.EncodeToString(sum[:]), Mode: i.mode}, nil
}

func (i item) open() (io.ReadCloser, error) {
	if i.source != "" {
		return os.Open(i.source)
	}
	return io.NopCloser(bytes.NewReader(i.data)), nil
}

// put puts an item in its place, at once for whoever looks: a kill leaves what was
// there or what is to be, and at worst a file of the name that draft returns.
func (t tree) put(i item) error {
	name := t.at(i.path)
	temp := draft(name)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if i.target != "" {
		if err := os.Symlink(i.target, temp); err != nil {
			return err
		}
		return settle(temp, name)
	}
	content, err := i.open()
	if err != nil {
		return err
	}
	defer content.Close()
	if err := write(temp, content, i.mode); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return settle(temp, name)
}

// draft is where the successor of a file is made. It does not end as files do that
// containerd imports.
func draft(name string) string { return name + ".berth-draft" }

// write makes a file that is on the disk when it returns.
func write(name string, content io.Reader, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	// Whatever the umask is.
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// settle moves a file to its name, for good.
func settle(temp, name string) error {
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// restore puts back what was at a path: content is that of a file.
func (t tree) restore(path string, s state, backup string) error {
	name := t.at(path)
	if s.absent() {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(filepath.Dir(name))
	}
	i := item{path: path, target: s.Target, mode: s.Mode}
	if s.Target == "" {
		i.source = backup
	}
	if err := t.put(i); err != nil {
		return err
	}
	if err := os.Lchown(name, int(s.UID), int(s.GID)); err != nil {
		return err
	}
	if s.Target != "" {
		return nil
	}
	return os.Chtimes(name, time.Time{}, s.Modified)
}

// missing returns the folders that have to be made for a path, outermost first.
func (t tree) missing(path string) ([]string, error) {
	var dirs []string
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(t.at(dir))
		if err == nil && !info.IsDir() {
			return nil, fmt.Errorf("%s is no folder", t.at(dir))
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		dirs = append([]string{dir}, dirs...)
	}
	return dirs, nil
}
