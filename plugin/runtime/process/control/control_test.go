// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestAddress(t *testing.T) {
	for name, c := range map[string]struct {
		file, content string
		want          string
		is            func(error) bool
	}{
		"bootstrap":    {"bootstrap.json", `{"version": 2, "address": "unix:///run/s/1", "protocol": "ttrpc"}`, "/run/s/1", nil},
		"legacy":       {"address", "unix:///run/s/1\n", "/run/s/1", nil},
		"no bundle":    {"", "", "", errdefs.IsNotFound},
		"half a file":  {"bootstrap.json", `{"version": 2, "addr`, "", errdefs.IsDataLoss},
		"other scheme": {"bootstrap.json", `{"address": "vsock://3:1"}`, "", errdefs.IsNotImplemented},
		"grpc":         {"bootstrap.json", `{"address": "unix:///run/s/1", "protocol": "grpc"}`, "", errdefs.IsNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			s := Shim{Bundle: t.TempDir(), ID: "c"}
			if c.file != "" {
				if err := os.WriteFile(filepath.Join(s.Bundle, c.file), []byte(c.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.address()
			if got != c.want || (c.is == nil) != (err == nil) || c.is != nil && !c.is(err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	if err := (Shim{ID: "c"}).ReopenLog(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("without a bundle: %v", err)
	}
	gone := Shim{Bundle: t.TempDir(), ID: "c"}
	if err := os.WriteFile(filepath.Join(gone.Bundle, "address"), []byte("unix://"+gone.Bundle+"/none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := gone.StopExecs(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without a shim: %v", err)
	}
}

func TestBundle(t *testing.T) {
	if _, err := Bundle(os.Getpid(), "c"); !errdefs.IsNotFound(err) { // another parent
		t.Errorf("got %v", err)
	}
	if _, err := Bundle(1<<30, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func FuzzPathOf(f *testing.F) {
	good := appendString(appendBool(nil, 7, true), 1, "/run/s/1")
	f.Add(good)
	f.Add(protowire.AppendTag(nil, 1, protowire.BytesType))
	f.Fuzz(func(t *testing.T, b []byte) {
		if path, err := pathOf(b); (path == "") != errdefs.IsDataLoss(err) {
			t.Errorf("%x: got %q, %v", b, path, err)
		}
	})
	if path, err := pathOf(good); path != "/run/s/1" || err != nil {
		f.Errorf("got %q, %v", path, err)
	}
}

// pair returns a connection and its peer.
func pair(t *testing.T) (*Connection, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &Connection{conn: conn.(*net.UnixConn)}
	t.Cleanup(func() { _, _ = c.Close(), peer.Close() })
	return c, peer.(*net.UnixConn)
}

func TestConnection(t *testing.T) {
	t.Run("output", func(t *testing.T) {
		c, peer := pair(t)
		for _, packet := range []string{"\x02out", "\x03err", "\x02" + strings.Repeat("x", 8192)} {
			if _, err := peer.Write([]byte(packet)); err != nil {
				t.Fatal(err)
			}
		}
		_ = peer.Close()
		var out, errs bytes.Buffer
		if err := c.Copy(&out, &errs); err != nil || out.String() != "out"+strings.Repeat("x", 8192) || errs.String() != "err" {
			t.Errorf("got %v, %d bytes, %q", err, out.Len(), errs.String())
		}
	})
	t.Run("unknown mark", func(t *testing.T) {
		c, peer := pair(t)
		_, _ = peer.Write([]byte("\x09x"))
		if err := c.Copy(io.Discard, nil); !errdefs.IsDataLoss(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("writer", func(t *testing.T) {
		c, peer := pair(t)
		_, _ = peer.Write([]byte("\x03to nobody"))
		_, _ = peer.Write([]byte("\x02x"))
		if err := c.Copy(failing{}, nil); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("input", func(t *testing.T) {
		c, peer := pair(t)
		data := bytes.Repeat([]byte("y"), maxInput+1)
		if n, err := c.Write(data); n != len(data) || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
		_ = c.CloseWrite()
		buffer := make([]byte, 2*maxInput)
		for _, want := range []int{maxInput, 1, 0} {
			if n, err := peer.Read(buffer); n != want || (err == io.EOF) != (want == 0) {
				t.Errorf("got %d, %v, want %d", n, err, want)
			}
		}
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
