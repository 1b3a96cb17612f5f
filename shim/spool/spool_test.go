// SPDX-License-Identifier: Apache-2.0

package spool_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/spool"
)

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func create(t *testing.T, limit int64) (*spool.File, string) {
	t.Helper()
	path := t.TempDir() + "/spool-stdout"
	f, err := spool.Create(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	return f, path
}

// numbered is n bytes of which each position is recognisable.
func numbered(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8 ^ i)
	}
	return b
}

func TestKeepsOrderThroughRestore(t *testing.T) {
	f, path := create(t, 1<<20)
	src, in := pipe(t)
	out, dst := pipe(t)
	want := numbered(300_000)
	for data := want; len(data) > 0; {
		n, _ := unix.Write(in, data[:min(len(data), 50_000)])
		data = data[n:]
		if len(data)%3 == 0 { // now and then as bytes rather than by splice
			b := make([]byte, 70_000)
			n, _ := unix.Read(src, b)
			if _, err := f.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
		}
		for {
			if n, err := f.Fill(src); err != nil || n == 0 {
				if err != unix.EAGAIN {
					t.Fatalf("got %d, %v", n, err)
				}
				break
			}
		}
	}
	var kept []int
	f, err := spool.Restore(f.Append(nil, func(fd int) { kept = append(kept, fd) }))
	if err != nil || len(kept) != 1 {
		t.Fatalf("got %v, kept %v", err, kept)
	}
	if f.Len() != int64(len(want)) {
		t.Errorf("got length %d", f.Len())
	}
	var got []byte
	buf, b := make([]byte, 10_000), make([]byte, 1<<20)
	for f.Len() > 0 {
		if _, err := f.Replay(dst, buf); err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		n, _ := unix.Read(out, b)
		got = append(got, b[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes that differ", len(got))
	}
	f.Remove()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
}

func TestTakesNoMoreThanItsLimit(t *testing.T) {
	f, _ := create(t, 1000)
	defer f.Remove()
	src, in := pipe(t)
	unix.Write(in, numbered(1500))
	if n, err := f.Fill(src); n != 1000 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := f.Fill(src); n != 0 || err != unix.ENOSPC || !f.Full() {
		t.Errorf("full: got %d, %v", n, err)
	}
	if n, err := f.Write([]byte("x")); n != 0 || err != unix.ENOSPC {
		t.Errorf("full: got %d, %v", n, err)
	}
	b := make([]byte, 2000)
	if n, _ := unix.Read(src, b); !bytes.Equal(b[:n], numbered(1500)[1000:]) {
		t.Errorf("%d bytes are left in the pipe", n)
	}
}

func TestFullDiskLosesNothing(t *testing.T) {
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("needs root: %v", err)
	}
	defer unix.Unmount(d, unix.MNT_DETACH)
	f, err := spool.Create(d+"/s", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Remove()
	src, in := pipe(t)
	want := numbered(200_000)
	total, data := 0, want
	for {
		n, _ := unix.Write(in, data)
		data = data[max(n, 0):]
		n, err := f.Fill(src)
		total += n
		if err != nil {
			if err != unix.ENOSPC || !f.Full() {
				t.Fatal(err)
			}
			break
		}
	}
	out, dst := pipe(t)
	b := make([]byte, 1<<20)
	if _, err := f.Replay(dst, b); err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	n, _ := unix.Read(out, b)
	got := bytes.Clone(b[:n])
	n, _ = unix.Read(src, b)
	got = append(got, b[:n]...)
	if !bytes.Equal(got, want[:len(got)]) || len(got) < total {
		t.Errorf("got %d bytes that differ after %d", len(got), total)
	}
}

func TestEndOfSource(t *testing.T) {
	f, _ := create(t, 1000)
	defer f.Remove()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	unix.Close(p[1])
	if n, err := f.Fill(p[0]); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}
