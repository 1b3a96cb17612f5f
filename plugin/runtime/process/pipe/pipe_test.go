// SPDX-License-Identifier: Apache-2.0

package pipe

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// writer opens a stream as a shim does.
func writer(t *testing.T, address string) *os.File {
	t.Helper()
	f, err := os.OpenFile(strings.TrimPrefix(address, "file://"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What a process has written is read when it has ended, and those who keep its
// streams are not waited for.
func TestDrain(t *testing.T) {
	for name, c := range map[string]struct {
		kept, chatty bool
		want         time.Duration
	}{
		"ended":  {},
		"kept":   {kept: true, want: 100 * time.Millisecond},
		"chatty": {kept: true, chatty: true, want: 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(Options{Stdout: true, Stderr: true, Direct: true, Patience: Patience{100 * time.Millisecond, 300 * time.Millisecond}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			w := writer(t, s.Addresses().Stdout)
			defer w.Close()
			_ = writer(t, s.Addresses().Stderr).Close()
			s.Started()
			if _, err := w.WriteString(strings.Repeat("x", 10000)); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			s.CopyTo(&out, nil)
			stop := make(chan struct{})
			defer close(stop)
			if c.chatty {
				go func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(10 * time.Millisecond):
							_, _ = w.WriteString("y")
						}
					}
				}()
			}
			if !c.kept {
				_ = w.Close()
			}
			begun := time.Now()
			s.Drain()
			if d := time.Since(begun); d < c.want-20*time.Millisecond || d > c.want+time.Second {
				t.Errorf("took %v, want %v", d, c.want)
			}
			if n := strings.Count(out.String(), "x"); n != 10000 {
				t.Errorf("got %d bytes", n)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	s, err := Open(Options{Stdin: true, Stdout: true, Stderr: true, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	a := s.Addresses()
	if a.Stdin == "" || !strings.HasPrefix(a.Stdout, "/proc/") || a.Stderr != "" {
		t.Errorf("got %+v", a)
	}
	info, err := os.Stat(a.Stdout)
	if err != nil || info.Mode().Perm() != pipeMode || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("got %v, %v", info, err)
	}
	s.Close()
	s.Close()
	if _, err := os.Stat(a.Stdout); err == nil {
		t.Error("it is left")
	}
}
