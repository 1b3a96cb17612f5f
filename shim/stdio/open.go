// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

const (
	// pipeMode lets a process that is not root open /dev/stdout and the like again.
	pipeMode = 0o666
	// loggedPipe is the size of a pipe that the job empties: more per read, and a
	// container that runs on while a log is written.
	loggedPipe = 256 << 10
	// defaultPipeMax stands in for /proc/sys/fs/pipe-max-size where it cannot be read.
	defaultPipeMax = 1 << 20

	dirMode  = 0o755
	fileMode = 0o644
)

// Open opens what cfg asks for, and starts logging programs and waits for them.
// It blocks and is called in a job. Faults of cfg are InvalidArgument, and nothing
// is left of what was opened before an error.
func Open(l *loop.Loop, t *process.Table, cfg *Config) (*Streams, error) {
	lay, err := plan(cfg)
	if err != nil {
		return nil, err
	}
	s := newStreams(l, t, cfg)
	if err := s.open(&lay); err != nil {
		s.Abort()
		return nil, err
	}
	return s, nil
}

func newStreams(l *loop.Loop, t *process.Table, cfg *Config) *Streams {
	return &Streams{
		l: l, t: t, cfg: *cfg,
		files: [3]int{-1, -1, -1}, keep: [2]int{-1, -1}, keeper: -1, master: -1, connected: true,
	}
}

func (s *Streams) open(lay *layout) error {
	if err := s.openInput(&lay.stdin); err != nil {
		return fault.In("stdin", err)
	}
	for _, d := range lay.drivers {
		if err := s.openDriver(d); err != nil {
			return err
		}
	}
	for i := range lay.out {
		if s.cfg.Terminal && i == 1 {
			break // a terminal has one output
		}
		if err := s.openOutput(lay, i); err != nil {
			return fault.In(streamName(i), err)
		}
	}
	return nil
}

// openInput makes the process's side of stdin. The client's side, a fifo, is left
// to OpenInput. A fifo that is missing is no input.
func (s *Streams) openInput(u *uri) (err error) {
	switch u.scheme {
	case schemeNone:
		return nil
	case schemePTY, schemePipe:
		s.in = s.newFlow(-1)
		s.in.fed = true
		if !s.cfg.Terminal {
			s.files[0], s.in.dst, err = s.processPipe(1)
		}
		return err
	}
	var st unix.Stat_t
	err = unix.Stat(u.path, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return pathError("stat", u.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO { // a file, or a device: the process can have it
		if s.cfg.Terminal {
			return nil
		}
		if s.files[0], err = unix.Open(u.path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return pathError("open", u.path, err)
		}
		return nil
	}
	s.in = s.newFlow(-1)
	s.inputPath = u.path
	if s.cfg.Terminal {
		return nil
	}
	s.files[0], s.in.dst, err = s.processPipe(1)
	return err
}

// OpenInput opens the client's side of stdin and starts copying. It is called
// when the process runs, not before: a client that hears of the end of its own
// input only calls CloseIO if it knows of the process by then, and it cannot get
// rid of its input earlier than somebody opens the fifo.
func (s *Streams) OpenInput() {
	if s.inputPath == "" || s.in == nil || s.closed {
		return
	}
	path := s.inputPath
	s.inputPath = ""
	// The keeper first: the fifo must not be at its end before a client has come.
	keeper, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		s.keeper = keeper
		s.in.src, err = unix.Open(fdPath(keeper), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		s.in.src = -1
		if err != unix.ENOENT {
			s.warn("stdin", pathError("open", path, err))
		}
	}
	s.in.start()
}

// openDriver opens a log that both streams go to.
func (s *Streams) openDriver(d driver) error {
	if d.name == driverJournald {
		j, err := openJournal(&s.cfg)
		if err != nil {
			return err
		}
		s.logs = append(s.logs, tap{log: j, kind: tapJournal, streams: [2]bool{true, true}})
		return nil
	}
	for i := range 2 {
		if err := s.openCRI(i, fileOptions(&s.cfg, d.path)); err != nil {
			return fault.In("log driver "+d.name, err)
		}
	}
	return nil
}

// shared makes stream see a log that is already open at path.
func (s *Streams) shared(stream int, kind uint8, path string) bool {
	for i := range s.logs {
		if t := &s.logs[i]; t.kind == kind && t.path == path {
			t.streams[stream] = true
			return true
		}
	}
	return false
}

func (s *Streams) openCRI(stream int, o crilog.Options) error {
	if s.shared(stream, tapCRI, o.Path) {
		return nil
	}
	w, err := crilog.Open(o)
	if err != nil {
		return err
	}
	s.addTap(stream, tapCRI, o.Path, w)
	return nil
}

func (s *Streams) openRaw(stream int, path string) error {
	if s.shared(stream, tapRaw, path) {
		return nil
	}
	fd, err := openFile(path)
	if err != nil {
		return err
	}
	s.addTap(stream, tapRaw, path, &rawFile{path: path, fd: fd, warn: s.cfg.Warn})
	return nil
}

func (s *Streams) addTap(stream int, kind uint8, path string, g log) {
	t := tap{log: g, kind: kind, path: path}
	t.streams[stream] = true
	s.logs = append(s.logs, t)
}

// openOutput connects stdout or stderr.
func (s *Streams) openOutput(lay *layout, i int) error {
	u := &lay.out[i]
	if u.scheme == schemeFifo && !isFifoPath(u.path) {
		u.scheme = schemeFile // a path without scheme can be a file or a device, too
	}
	logged := len(lay.drivers) > 0
	switch {
	case u.scheme == schemeCRI:
		o, err := criOptions(&s.cfg, u)
		if err != nil {
			return err
		}
		if err := s.openCRI(i, o); err != nil {
			return err
		}
		return s.openFlow(i, -1)
	case u.scheme == schemeFile && (logged || s.cfg.Terminal):
		if err := s.openRaw(i, u.path); err != nil {
			return err
		}
		return s.openFlow(i, -1)
	case u.scheme == schemeFile:
		return s.giveFile(lay, i)
	case u.isLogger():
		return s.openLogger(lay, i, logged)
	case u.scheme == schemeFifo && lay.direct:
		return s.giveFifo(i, u.path)
	case u.scheme == schemeFifo:
		fd, err := unix.Open(u.path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return pathError("open", u.path, err)
		}
		if err := s.openFlow(i, fd); err != nil {
			return err
		}
		s.out[i].fifo = true
		return nil
	case logged || u.scheme == schemePipe:
		return s.openFlow(i, -1)
	}
	return nil // no output, or a terminal's without a client
}

// openFlow makes the flow of stream i into dst, which it takes over (-1: none).
func (s *Streams) openFlow(i, dst int) error {
	f := s.newFlow(i)
	f.dst = dst
	s.out[i] = f
	if s.cfg.Terminal {
		return nil
	}
	var err error
	if f.src, s.files[1+i], err = s.processPipe(0); err != nil {
		return err
	}
	if f.logged() {
		growPipe(f.src, loggedPipe)
	}
	return nil
}

// giveFile hands the file to the process: it appends whole writes, as the shim
// would. Equal paths are one descriptor.
func (s *Streams) giveFile(lay *layout, i int) error {
	if i == 1 && lay.out[0].scheme == schemeFile && lay.out[0].path == lay.out[1].path {
		s.files[2] = s.files[1]
		return nil
	}
	fd, err := openFile(lay.out[i].path)
	if err != nil {
		return err
	}
	s.files[1+i] = fd
	return nil
}

// giveFifo hands the fifo to the process and keeps a descriptor that stands in
// for a reader who is away.
func (s *Streams) giveFifo(i int, path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", path, err)
	}
	s.keep[i] = fd
	growPipe(fd, pipeMax())
	if err := s.own(fd); err != nil {
		return pathError("chown", path, err)
	}
	// Opened again: the process's end blocks.
	w, err := unix.Open(fdPath(fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", path, err)
	}
	s.files[1+i] = w
	return nil
}

// openLogger starts the logging program of stream i. If both streams have the
// same one, it is started once, and gets both.
func (s *Streams) openLogger(lay *layout, i int, logged bool) error {
	u := &lay.out[i]
	same := !s.cfg.Terminal && s.cfg.Stdout == s.cfg.Stderr
	if same && i == 1 {
		return nil
	}
	ends := [2]int{-1, -1} // the program's
	defer func() { closeFD(&ends[0]); closeFD(&ends[1]) }()
	for stream := range ends {
		if stream != i && !same {
			continue
		}
		var err error
		if !logged && !s.cfg.Terminal { // what the process writes goes straight to the program
			if ends[stream], s.files[1+stream], err = s.processPipe(-1); err != nil {
				return err
			}
			continue
		}
		r, w, err := pipe()
		if err != nil {
			return err
		}
		ends[stream] = r
		if err := unix.SetNonblock(w, true); err != nil {
			return err
		}
		if err := s.openFlow(stream, w); err != nil {
			return err
		}
	}
	lg, err := s.startLogger(u, ends[0], ends[1])
	if err != nil {
		return err
	}
	s.loggers = append(s.loggers, lg)
	return nil
}

// processPipe makes a pipe with an end for the process, which it can open again
// by name, whoever it is. ours, 0 for the reading and 1 for the writing end, will
// not block; -1: neither is the shim's.
func (s *Streams) processPipe(ours int) (r, w int, err error) {
	if r, w, err = pipe(); err != nil {
		return -1, -1, err
	}
	err = s.own(r)
	if err == nil && ours >= 0 {
		err = unix.SetNonblock([2]int{r, w}[ours], true)
	}
	if err != nil {
		closeFD(&r)
		closeFD(&w)
		return -1, -1, fault.Wrap(fault.Unknown, "pipe", err)
	}
	return r, w, nil
}

// own gives a pipe to the user that the process runs as.
func (s *Streams) own(fd int) error {
	if err := unix.Fchmod(fd, pipeMode); err != nil {
		return err
	}
	return unix.Fchown(fd, s.cfg.UID, s.cfg.GID)
}

func pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fault.Wrap(fault.ResourceExhausted, "pipe", err)
	}
	return p[0], p[1], nil
}

// openFile opens a file for appending, and makes it and its directories.
func openFile(path string) (int, error) {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		if err := os.MkdirAll(path[:i], dirMode); err != nil {
			return -1, fault.Wrap(fault.Unknown, "stdio", err)
		}
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, fileMode)
	if err != nil {
		return -1, pathError("open", path, err)
	}
	return fd, nil
}

// isFifoPath tells whether path is a fifo, or nothing, which opening it will tell.
func isFifoPath(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// pipeMax is the size up to which pipes can be grown.
func pipeMax() int {
	b, err := os.ReadFile("/proc/sys/fs/pipe-max-size")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			return n
		}
	}
	return defaultPipeMax
}

func pathError(op, path string, err error) error {
	class := fault.Unknown
	switch err {
	case unix.ENOENT, unix.ENOTDIR:
		class = fault.NotFound
	case unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE:
		class = fault.ResourceExhausted
	}
	return fault.Wrap(class, "stdio", &os.PathError{Op: op, Path: path, Err: err})
}
