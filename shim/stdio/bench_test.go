// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchBytes is what figures are given for: 200 MB in lines of 80 bytes.
const benchBytes = 200_000_000

// BenchmarkOutput measures the way from the process to the reader or the log:
// throughput, and processor time of the shim for 200 MB. Run it with -cpu 1, as
// the shim runs, and -benchtime 3x.
func BenchmarkOutput(b *testing.B) {
	for _, tc := range []struct {
		name      string
		configure func(r *rig, cfg *Config) (read string)
	}{
		{"fifo", func(r *rig, cfg *Config) string { cfg.Stdout = r.fifo("out"); return cfg.Stdout }},
		{"direct", func(r *rig, cfg *Config) string { cfg.Stdout, cfg.Direct = r.fifo("out"), true; return cfg.Stdout }},
		{"cri", func(r *rig, cfg *Config) string { cfg.Stdout = "cri://" + r.dir + "/log?sync=false"; return "" }},
		{"cri-rotated", func(r *rig, cfg *Config) string {
			cfg.Stdout = "cri://" + r.dir + "/log?sync=false&max-size=10MiB&max-files=5"
			return ""
		}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			r := newRig(b)
			data := r.dir + "/data"
			line := append(bytes.Repeat([]byte("x"), 79), '\n')
			if err := os.WriteFile(data, bytes.Repeat(line, benchBytes/len(line)), 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(benchBytes)
			var used time.Duration
			for i := 0; b.Loop(); i++ {
				os.Remove(r.dir + "/out")
				os.Remove(r.dir + "/log")
				cfg := r.config()
				read := tc.configure(r, cfg)
				before := processorTime(b)
				p := r.run(cfg, "cat "+data)
				if read != "" {
					drain(b, read)
				}
				p.exit()
				p.drained()
				used += processorTime(b) - before
				r.on(p.Close)
			}
			b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

// drain reads a fifo to its end, by splice to nowhere: the reader's own time
// should not count.
func drain(b *testing.B, path string) {
	b.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	if _, err := io.Copy(null, f); err != nil {
		b.Fatal(err)
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLine measures what one short line costs: the shim's heap is never
// collected, so bytes per line matter.
func BenchmarkLine(b *testing.B) {
	for _, scheme := range []string{"fifo://", "cri://"} {
		b.Run(scheme[:len(scheme)-3], func(b *testing.B) {
			r := newRig(b)
			cfg := r.config()
			path := r.dir + "/out"
			cfg.Stdout = scheme + path
			if scheme == "fifo://" {
				r.fifo("out")
			}
			s := r.open(cfg)
			w, err := unix.Dup(s.Files()[1])
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(w)
			r.on(s.Begin)
			log, err := unix.Open(path, unix.O_RDONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(log)
			line, buf := []byte("hello, world\n"), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := unix.Write(w, line); err != nil {
					b.Fatal(err)
				}
				for {
					if n, _ := unix.Read(log, buf); n > 0 {
						break
					}
				}
			}
			r.on(s.Close)
		})
	}
}
