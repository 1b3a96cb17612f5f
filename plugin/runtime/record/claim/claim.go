// SPDX-License-Identifier: Apache-2.0

// Package claim keeps processes from doing the same thing at once, and remembers
// what a process was about when it died.
//
// There is no daemon that could hold a mutex: several programs, or several users of
// one, work on the same records. A claim is a file that its holder has locked
// (F_OFD_SETLK in fcntl(2)); the kernel drops the lock when the holder dies, and the
// file then tells what was left undone. The package knows nothing of what is
// claimed.
package claim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pollInterval is how often a wait looks again. The kernel could wait, but not until
// a context ends.
const pollInterval = 5 * time.Millisecond

// Note is what a holder tells the others.
type Note struct {
	Owner string // on whose behalf: an ID
	Task  string // what for: one word
	// Details that whoever cleans up needs.
	Details map[string]string `json:",omitempty"`
}

// HeldError says that another living process, or another part of this one, holds
// the claim. Its class is AlreadyExists.
type HeldError struct {
	Name string
	By   Note
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%q is claimed by %s (%s): %v", e.Name, e.By.Owner, e.By.Task, errdefs.ErrAlreadyExists)
}

// Unwrap gives the class.
func (e *HeldError) Unwrap() error { return errdefs.ErrAlreadyExists }

// Dir is a folder of claims. It is made when it is needed.
type Dir string

// Claim is held until Release, or until the process ends. Not safe for concurrent
// use.
type Claim struct {
	file *os.File
	// Left is the note of a holder that died, or gave up, before it was done.
	Left *Note
}

// Take claims a name, which may be any text, or returns a HeldError.
func (d Dir) Take(name string, note Note) (*Claim, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("claim %q: %w", name, wrap(err))
	}
	path := d.path(name)
	for {
		c, err := take(path)
		if errors.Is(err, errReplaced) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &HeldError{Name: name, By: holder(path)}
		}
		if err == nil {
			err = c.write(name, note)
		}
		if err != nil {
			return nil, fmt.Errorf("claim %q: %w", name, wrap(err))
		}
		return c, nil
	}
}

// Wait is Take that waits for the holder, until ctx ends. If refuse is not nil, it
// does not wait for holders of which that says yes, but returns the HeldError.
func (d Dir) Wait(ctx context.Context, name string, note Note, refuse func(Note) bool) (*Claim, error) {
	refused := 0
	for {
		c, err := d.Take(name, note)
		var held *HeldError
		if !errors.As(err, &held) {
			return c, err
		}
		// Once is not enough: who takes over from the dead has not yet said so.
		if refuse != nil && refuse(held.By) {
			if refused++; refused > 1 {
				return nil, err
			}
		}
		if err := pause(ctx, err); err != nil {
			return nil, err
		}
	}
}

// Abandoned returns the names that a dead process had claimed, or that were
// claimed and kept by Leave, with the given prefix. Files of processes that died before
// they had written a name, and so had done nothing, it removes.
func (d Dir) Abandoned(prefix string) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	var names []string
	for _, e := range entries {
		path := filepath.Join(string(d), e.Name())
		switch t, err := abandoned(path); {
		case err != nil:
		case t.Name == "":
			removeNameless(path)
		case strings.HasPrefix(t.Name, prefix):
			names = append(names, t.Name)
		}
	}
	return names, nil
}

// begin is more than a process needs from making a file to locking it.
const begin = time.Second

func removeNameless(path string) {
	if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) < begin {
		return
	}
	c, err := take(path)
	switch {
	case err != nil: // by now it is somebody's
	case read(c.file).Name == "":
		c.Release()
	default:
		c.Leave()
	}
}

// abandoned reads a claim that nobody holds. It takes no lock, not even for a
// moment: somebody might fail over it.
func abandoned(path string) (text, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return text{}, err
	}
	defer f.Close()
	lock := exclusive()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return text{}, err
	}
	if lock.Type != unix.F_UNLCK {
		return text{}, unix.EWOULDBLOCK
	}
	return read(f), nil
}

// path is short and plain whatever the name is; names have IDs of 76 characters,
// file names 255.
func (d Dir) path(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(string(d), hex.EncodeToString(sum[:]))
}

var errReplaced = errors.New("removed by its holder meanwhile")

// take locks a file, which is made unless it is there.
func take(path string) (*Claim, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	lock := exclusive()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		_ = f.Close()
		return nil, err
	}
	if !names(path, f) {
		_ = f.Close()
		return nil, errReplaced
	}
	return &Claim{file: f}, nil
}

// text is what a claim's file holds.
type text struct {
	Name string
	Note
}

// write leaves the note; before it, it reads the last one's.
func (c *Claim) write(name string, note Note) error {
	if was := read(c.file); was.Name != "" {
		c.Left = &was.Note
	}
	b, err := json.Marshal(text{name, note})
	if err == nil {
		_, err = c.file.WriteAt(b, 0)
	}
	if err == nil {
		err = c.file.Truncate(int64(len(b))) // after it: at no time is there nothing
	}
	if err != nil {
		c.Leave()
	}
	return err
}

// read returns what was written last, zero if there is nothing. Behind it may be the
// end of a longer text, if its writer died.
func read(f *os.File) text {
	var t text
	if json.NewDecoder(io.NewSectionReader(f, 0, math.MaxInt64)).Decode(&t) != nil {
		return text{}
	}
	return t
}

func holder(path string) Note {
	f, err := os.Open(path)
	if err != nil {
		return Note{}
	}
	defer f.Close()
	return read(f).Note
}

func exclusive() unix.Flock_t { return unix.Flock_t{Type: unix.F_WRLCK} }

// Release ends the claim. What it was for is done, or undone.
func (c *Claim) Release() {
	// While it is locked: nobody else can have made another of that name.
	_ = os.Remove(c.file.Name())
	_ = c.file.Close()
}

// Leave ends the claim as the death of the process would, so that somebody cleans
// up.
func (c *Claim) Leave() { _ = c.file.Close() }

// Mode is how a directory is locked.
type Mode int

// Readers share a lock.
const (
	Shared    Mode = unix.LOCK_SH
	Exclusive Mode = unix.LOCK_EX
)

// LockDir locks a directory (flock(2)), which must be there, waiting until ctx ends. The
// returned function unlocks it. A directory that was replaced meanwhile is not
// locked but NotFound.
func LockDir(ctx context.Context, path string, mode Mode) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", wrap(err))
	}
	for err = flock(f, int(mode)); errors.Is(err, unix.EWOULDBLOCK); err = flock(f, int(mode)) {
		if err := pause(ctx, err); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
	if err == nil && !names(path, f) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, wrap(err))
	}
	return func() { _ = f.Close() }, nil
}

// pause waits a little while somebody else holds a lock.
func pause(ctx context.Context, held error) error {
	select {
	case <-ctx.Done():
		return errors.Join(ctx.Err(), held)
	case <-time.After(pollInterval):
		return nil
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}

// names tells whether the path still leads to the open file.
func names(path string, f *os.File) bool {
	now, err := os.Lstat(path)
	if err != nil {
		return false
	}
	opened, err := f.Stat()
	return err == nil && os.SameFile(now, opened)
}

// wrap gives errors of the system their class.
func wrap(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return err
}
