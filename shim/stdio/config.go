// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"strconv"
	"strings"

	"github.com/berthd/berth/shim/crilog"
	"github.com/berthd/berth/shim/fault"
)

// Config says where the streams of one process go.
type Config struct {
	Namespace string
	ID        string // container
	Exec      string // "" for init
	Terminal  bool
	// Addresses of the streams: "", the path of a fifo, or a URI.
	Stdin, Stdout, Stderr string
	UID, GID              int    // owner of the pipes the process gets
	Work                  string // directory of spools; "": no spool
	Direct                bool   // hand output fifos to the process instead of copying
	SpoolMax              int64  // bytes per stream; 0: DefaultSpoolMax, negative: no spool
	Log                   LogConfig
	// Warn reports what went wrong with a stream while it goes on or ends. It may
	// be called from any goroutine. nil: not reported.
	Warn func(text string)
}

// DefaultSpoolMax bounds a stream's spool when Config does not.
const DefaultSpoolMax = 64 << 20

// LogConfig describes the logs that the shim writes itself, in addition to what
// the addresses ask for.
type LogConfig struct {
	// Drivers: k8s-file:PATH, journald, passthrough, and none, off or null. nil:
	// nothing beyond the addresses. Empty but not nil is refused.
	Drivers     []string
	MaxSize     int64    // bytes of a file before it is rotated; 0: no limit
	MaxFiles    int      // rotated files kept; 0 and 1: none, the file starts afresh
	GlobalMax   int64    // bytes in all, then output is discarded; 0: no limit
	NoSync      bool     // do not fsync at the end
	Name        string   // container's name for journald; "": none
	Labels      []string // KEY=VALUE for journald
	Tag         string   // for journald
	AllowedDirs []string // where rotation may rename; empty: anywhere that is safe
	// PlainPartial leaves out journald's mark of an incomplete line.
	PlainPartial bool
	// JournalSocket is where journald listens; "": JournalSocket.
	JournalSocket string
}

// driver is an entry of LogConfig.Drivers, taken apart.
type driver struct {
	name string
	path string
}

// The log drivers. Entries none, off and null are dropped while parsing.
const (
	driverFile        = "k8s-file"
	driverJournald    = "journald"
	driverPassthrough = "passthrough"
)

// layout is a checked Config: what Open has to build.
type layout struct {
	stdin   uri
	out     [2]uri // stdout, stderr
	drivers []driver
	direct  bool
}

// Check tells whether Open would understand cfg. Every fault is InvalidArgument.
func Check(cfg *Config) error {
	_, err := plan(cfg)
	return err
}

func plan(cfg *Config) (lay layout, err error) {
	if lay.stdin, err = parseURI(cfg.Stdin); err != nil {
		return lay, fault.In("stdin", err)
	}
	switch lay.stdin.scheme {
	case schemeNone, schemeFifo, schemePTY, schemePipe:
	default:
		return lay, invalid(cfg.Stdin, "stdin can only be read from a fifo")
	}
	for i, address := range [2]string{cfg.Stdout, cfg.Stderr} {
		if lay.out[i], err = parseURI(address); err != nil {
			return lay, fault.In(streamName(i), err)
		}
		if lay.out[i].scheme == schemeCRI {
			if _, err = criOptions(cfg, &lay.out[i]); err != nil {
				return lay, fault.In(streamName(i), err)
			}
		}
	}
	if !cfg.Terminal {
		for _, u := range [3]*uri{&lay.stdin, &lay.out[0], &lay.out[1]} {
			if u.scheme == schemePTY {
				return lay, fault.New(fault.InvalidArgument, "stdio pty:// needs a process with a terminal")
			}
		}
	}
	if lay.drivers, err = parseDrivers(&cfg.Log); err != nil {
		return lay, err
	}
	lay.direct = cfg.Direct && !cfg.Terminal
	if err = lay.checkDrivers(cfg); err != nil {
		return lay, err
	}
	return lay, nil
}

func parseDrivers(log *LogConfig) ([]driver, error) {
	if log.Drivers != nil && len(log.Drivers) == 0 {
		return nil, fault.New(fault.InvalidArgument, "no log driver given")
	}
	var ds []driver
	for _, entry := range log.Drivers {
		name, path, _ := strings.Cut(entry, ":")
		switch name {
		case "none", "off", "null":
			continue
		case driverFile:
			if !strings.HasPrefix(path, "/") {
				return nil, fault.New(fault.InvalidArgument, "log driver k8s-file needs an absolute path: "+strconv.Quote(entry))
			}
		case driverJournald, driverPassthrough:
		default:
			return nil, fault.New(fault.InvalidArgument, "unknown log driver "+strconv.Quote(entry))
		}
		ds = append(ds, driver{name, path})
	}
	return ds, nil
}

// checkDrivers holds the drivers against the rest and resolves passthrough.
func (lay *layout) checkDrivers(cfg *Config) error {
	journal, written := false, 0
	kept := lay.drivers[:0]
	for _, d := range lay.drivers {
		if d.name == driverPassthrough {
			if cfg.Terminal {
				return fault.New(fault.InvalidArgument, "log driver passthrough does not go with a terminal")
			}
			lay.direct = true
			continue
		}
		journal = journal || d.name == driverJournald
		written++
		kept = append(kept, d)
	}
	lay.drivers = kept
	if lay.direct && written > 0 {
		return fault.New(fault.InvalidArgument, "output handed to the process directly cannot be logged as well")
	}
	if !journal {
		if len(cfg.Log.Labels) > 0 || cfg.Log.Tag != "" {
			return fault.New(fault.InvalidArgument, "log labels and tag need the journald driver")
		}
		return nil
	}
	if len(cfg.ID) < shortID {
		return fault.New(fault.InvalidArgument, "container id "+strconv.Quote(cfg.ID)+" is too short for journald")
	}
	for _, label := range cfg.Log.Labels {
		if key, _, ok := strings.Cut(label, "="); !ok || !isField(key) {
			return fault.New(fault.InvalidArgument, "log label "+strconv.Quote(label)+" is not KEY=VALUE with a key of A-Z, 0-9 and _")
		}
	}
	return nil
}

// fileOptions describes a log file of the drivers.
func fileOptions(cfg *Config, path string) crilog.Options {
	return crilog.Options{
		Path: path, MaxSize: cfg.Log.MaxSize, MaxFiles: cfg.Log.MaxFiles, GlobalMax: cfg.Log.GlobalMax,
		NoSync: cfg.Log.NoSync, AllowedDirs: cfg.Log.AllowedDirs, Warn: cfg.Warn,
	}
}

// criOptions describes a log file given as cri:// URI: the drivers' settings,
// overridden by its query.
func criOptions(cfg *Config, u *uri) (crilog.Options, error) {
	o := fileOptions(cfg, u.path)
	for _, q := range u.query {
		ok := true
		switch q.key {
		case "max-size":
			o.MaxSize, ok = parseSize(q.value)
		case "max-total":
			o.GlobalMax, ok = parseSize(q.value)
		case "max-files":
			n, err := strconv.ParseUint(q.value, 10, 16)
			o.MaxFiles, ok = int(n), err == nil
		case "sync":
			sync, err := strconv.ParseBool(q.value)
			o.NoSync, ok = !sync, err == nil
		default:
			return o, invalid(u.path, "unknown setting "+strconv.Quote(q.key))
		}
		if !ok {
			return o, invalid(u.path, "bad value of "+q.key+": "+strconv.Quote(q.value))
		}
	}
	return o, nil
}

func streamName(i int) string {
	if i == 0 {
		return "stdout"
	}
	return "stderr"
}
