// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/host"
)

// theEnd is the last line of what the containers write.
const theEnd = "the end\n"

// writer writes the prepared data in pieces of a pipe's size and then stays, so
// that its shim's clock can be read when the last byte has arrived.
var writer = oci.WithProcessArgs("sh", "-c", "dd if=/data bs=64k 2>/dev/null; exec sleep 1000000")

// output measures how fast a container's output is handed on, and what of the
// processor the shim takes for it. The CRI log has no counterpart in the stock
// shim; it is compared with conmon, if there is one.
func (b *bench) output(ctx context.Context) error {
	ctx = b.daemon.Context(ctx)
	data := b.daemon.Dir + "/data"
	if err := prepare(data, b.settings.bytes, b.settings.line); err != nil {
		return err
	}
	progress("output: %d rounds of %d MB", b.settings.outputs, b.settings.bytes/1e6)
	err := b.turns(b.settings.outputs, func(r host.Runtime) error {
		if err := b.toFifo(ctx, r, data); err != nil {
			return fmt.Errorf("fifo: %w", err)
		}
		if err := b.toFile(ctx, r, data, "file"); err != nil {
			return fmt.Errorf("file: %w", err)
		}
		if r.Berth {
			if err := b.toFile(ctx, r, data, "cri"); err != nil {
				return fmt.Errorf("cri: %w", err)
			}
		}
		return b.quiet(ctx)
	})
	if err != nil {
		return err
	}
	return b.conmon(ctx, data)
}

// prepare writes lines of the given size, the last one being theEnd. They stay
// in the page cache.
func prepare(path string, size int64, line int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	one := []byte(strings.Repeat("x", line-1) + "\n")
	many := bytes.Repeat(one, 1<<20/line+1)
	for left := size - int64(len(theEnd)); left > 0; left -= int64(len(many)) {
		if _, err := f.Write(many[:min(left, int64(len(many)))]); err != nil {
			return err
		}
	}
	// A cut last line must not swallow the mark.
	if _, err := f.WriteAt([]byte("\n"+theEnd), size-int64(len(theEnd))-1); err != nil {
		return err
	}
	return f.Sync()
}

func dataMount(path string) oci.SpecOpts {
	return oci.WithMounts([]specs.Mount{{Destination: "/data", Type: "bind", Source: path, Options: []string{"rbind", "ro"}}})
}

// toFifo reads the output in this process, as containerd's CRI does.
func (b *bench) toFifo(ctx context.Context, r host.Runtime, data string) error {
	x, err := b.record(ctx, r, writer, dataMount(data))
	if err != nil {
		return err
	}
	var direct *cio.DirectIO
	err = x.create(ctx, func(id string) (cio.IO, error) {
		fifos, err := cio.NewFIFOSetInDir(b.daemon.Dir+"/fifo", id, false)
		if err != nil {
			return nil, err
		}
		// The stock shim wants stderr as well; nothing is written to it.
		fifos.Stdin = ""
		direct, err = cio.NewDirectIO(ctx, fifos)
		return direct, err
	})
	if err != nil {
		return err
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return err
	}
	before := seconds(own)
	err = b.time(ctx, x, "fifo", func() error {
		_, err := io.CopyBuffer(discard{}, io.LimitReader(onlyReader{direct.Stdout}, b.settings.bytes), make([]byte, 64<<10))
		return err
	})
	if err != nil {
		return err
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return err
	}
	b.report.add(r, "output", "fifo, the reader's CPU", seconds(own)-before)
	return x.remove(ctx)
}

// onlyReader and discard keep io.CopyBuffer from choosing other ways than read
// and write through its buffer.
type (
	onlyReader struct{ io.Reader }
	discard    struct{}
)

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// toFile lets the shim write a file: scheme file or cri.
func (b *bench) toFile(ctx context.Context, r host.Runtime, data, scheme string) error {
	x, err := b.record(ctx, r, writer, dataMount(data))
	if err != nil {
		return err
	}
	path := b.daemon.Dir + "/tmp/" + x.container.ID() + ".log"
	// cio.LogURI would use it for stderr, too, which the CRI log tells apart.
	if err := x.create(ctx, cio.LogURI(&url.URL{Scheme: scheme, Path: path})); err != nil {
		return err
	}
	if err := b.time(ctx, x, scheme, func() error { return awaitEnd(ctx, path) }); err != nil {
		return err
	}
	if err := b.complete(path, scheme); err != nil {
		return err
	}
	if err := x.remove(ctx); err != nil {
		return err
	}
	return os.Remove(path)
}

// time starts the task and measures until done returns.
func (b *bench) time(ctx context.Context, x *box, sink string, done func() error) error {
	pid, err := x.shim()
	if err != nil {
		return err
	}
	before, err := cpu(pid)
	if err != nil {
		return err
	}
	clock := newWatch()
	if err := x.task.Start(ctx); err != nil {
		return err
	}
	if err := done(); err != nil {
		return err
	}
	ms := clock.lap()
	after, err := cpu(pid)
	if err != nil {
		return err
	}
	b.reportOutput(x.runtime, sink, ms, after-before)
	return nil
}

func (b *bench) reportOutput(r host.Runtime, sink string, ms, cpu float64) {
	b.report.add(r, "output", sink+", rate", float64(b.settings.bytes)/1e6/(ms/1e3))
	b.report.add(r, "output", sink+", the shim's CPU", cpu)
}

// cpu is the processor time a process has used, all its threads together, ended
// ones too. It reads the process's own clock, which counts nanoseconds where
// /proc counts ticks; how a clock's number is made is in clock_getcpuclockid(3).
func cpu(pid int) (float64, error) {
	const scheduler = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &t); err != nil {
		return 0, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	return float64(t.Nano()) / 1e9, nil
}

func seconds(r unix.Rusage) float64 {
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// awaitEnd waits until the last line is in the file.
func awaitEnd(ctx context.Context, path string) error {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		ok, err := endsWithMark(path)
		if err != nil || ok {
			return err
		}
	}
	return ctx.Err()
}

func endsWithMark(path string) (bool, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < int64(len(theEnd)) {
		return false, err
	}
	tail := make([]byte, len(theEnd))
	_, err = f.ReadAt(tail, size-int64(len(tail)))
	return string(tail) == theEnd, err
}

// complete checks that nothing is missing: a rate without it is worth nothing.
func (b *bench) complete(path, scheme string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	got := int64(len(text))
	if scheme == "cri" {
		got = 0
		for line := range bytes.Lines(text) {
			// time, stream, tag, content; the newline of a partial line is the log's.
			words := bytes.SplitN(line, []byte(" "), 4)
			if len(words) != 4 {
				return fmt.Errorf("bad log line %q", line)
			}
			got += int64(len(words[3]))
			if string(words[2]) == "P" {
				got--
			}
		}
	}
	if got != b.settings.bytes {
		return fmt.Errorf("%d bytes arrived of %d", got, b.settings.bytes)
	}
	return nil
}
