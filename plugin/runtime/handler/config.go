// SPDX-License-Identifier: Apache-2.0

// Package handler knows runtime handlers: the named ways of running containers
// that an administrator sets up in [runtime] of /etc/berth/berth.toml. It says
// what is wrong with a configuration, which handler a name means, what a handler
// allows a pod to ask for, and how containerd is to be told of it. It also has
// the volumes in which Kata's handlers are told of images.
//
// It starts no runtime and looks at no container.
package handler

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/settings"
)

// DefaultPath is berth's configuration.
const DefaultPath = settings.DefaultPath

// Config is the table [runtime]. The zero value means Default.
type Config struct {
	// DefaultHandler is what pods get that name none. Default: "runc".
	DefaultHandler string `toml:"default_handler"`
	// Timezone of containers: "" leaves theirs, "Local" is the host's, else a name
	// such as Europe/Vienna.
	Timezone string `toml:"timezone"`
	// DropInfra makes pods without a process of their own, unless their containers
	// share a process namespace. Default: true. Pods stay as they were made.
	DropInfra bool `toml:"drop_infra_ctr"`
	// PauseImage is what the process of a pod in a virtual machine runs, pulled with
	// the credentials of PauseImageAuthFile, if that is set. Default: Kubernetes'.
	PauseImage         string `toml:"pause_image"`
	PauseImageAuthFile string `toml:"pause_image_auth_file"`
	// Handlers by name. "runc" is always there and can be changed.
	Handlers map[string]*Handler `toml:"handlers"`
}

const defaultHandler = "runc"

// Default returns the configuration of a host that says nothing.
func Default() *Config {
	return &Config{
		DefaultHandler: defaultHandler,
		DropInfra:      true,
		PauseImage:     "registry.k8s.io/pause:3.10.1",
		Handlers:       map[string]*Handler{defaultHandler: {Path: "runc"}},
	}
}

// Parse overlays Default with the table [runtime] of a configuration and checks
// it, files that it names included. All faults come at once, each with its key,
// as one InvalidArgument.
func Parse(text []byte) (*Config, error) {
	document := struct {
		Runtime *Config `toml:"runtime"`
	}{Default()}
	if err := settings.Decode(text, &document, "runtime"); err != nil {
		return nil, err
	}
	c := document.Runtime
	for name, h := range c.Handlers {
		h.Name = name
	}
	c.inherit()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// inherit completes handlers that take the default one's runtime.
func (c *Config) inherit() {
	from := c.Handlers[c.DefaultHandler]
	if from == nil {
		return // Validate says so
	}
	for _, h := range c.Handlers {
		if h.InheritDefaultRuntime && h != from {
			h.inherit(from)
		}
	}
}

// Validate returns all faults as one InvalidArgument.
func (c *Config) Validate() error {
	var faults []error
	if c.Handlers[c.DefaultHandler] == nil {
		faults = append(faults, fmt.Errorf("runtime.default_handler: no handler %q", c.DefaultHandler))
	} else if c.Handlers[c.DefaultHandler].InheritDefaultRuntime {
		faults = append(faults, fmt.Errorf("runtime.handlers.%s.inherit_default_runtime: it is the default itself", c.DefaultHandler))
	}
	if _, err := c.Localtime(); err != nil {
		faults = append(faults, fmt.Errorf("runtime.timezone: %w", err))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		if !handlerName.MatchString(name) {
			faults = append(faults, fmt.Errorf("runtime.handlers: %q is not a name of a handler", name))
		}
		for _, err := range c.Handlers[name].faults() {
			faults = append(faults, fmt.Errorf("runtime.handlers.%s.%w", name, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

const zoneinfo = "/usr/share/zoneinfo"

// Localtime is the file that containers get as /etc/localtime, "" for none.
func (c *Config) Localtime() (string, error) {
	switch {
	case c.Timezone == "":
		return "", nil
	case c.Timezone == "Local":
		return "/etc/localtime", nil
	case !filepath.IsLocal(c.Timezone):
		return "", fmt.Errorf("%q is not a time zone: %w", c.Timezone, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(zoneinfo, c.Timezone)
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf("time zone %q is unknown here: %w", c.Timezone, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// Handlers are those of a file. Safe for concurrent use.
type Handlers struct {
	path    string
	current atomic.Pointer[Config]
}

// Open reads the file at path, DefaultPath if empty. A file that does not exist
// says nothing.
func Open(path string) (*Handlers, error) {
	if path == "" {
		path = DefaultPath
	}
	h := &Handlers{path: path}
	return h, h.Reload()
}

// New returns handlers that come from no file. The caller does not change c any
// more.
func New(c *Config) (*Handlers, error) {
	for name, h := range c.Handlers {
		h.Name = name
	}
	c.inherit()
	h := &Handlers{}
	h.current.Store(c)
	return h, c.Validate()
}

// Reload reads the file again. After an error what was read before stays in
// force.
func (h *Handlers) Reload() error {
	if h.path == "" {
		return nil
	}
	b, err := os.ReadFile(h.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("runtime handlers: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	c, err := Parse(b)
	if err != nil {
		return fmt.Errorf("runtime handlers: %s: %w", h.path, err)
	}
	h.current.Store(c)
	return nil
}

// Config is what is in force. The caller does not change it.
func (h *Handlers) Config() *Config { return h.current.Load() }

// Validate returns the handler with a name. None is InvalidArgument, an unknown
// one NotFound, one without a runtime FailedPrecondition.
func (h *Handlers) Validate(name string) (*Handler, error) {
	if name == "" {
		return nil, fmt.Errorf("empty runtime handler: %w", errdefs.ErrInvalidArgument)
	}
	found := h.current.Load().Handlers[name]
	if found == nil {
		return nil, fmt.Errorf("runtime handler %q: %w", name, errdefs.ErrNotFound)
	}
	if found.Path == "" {
		return nil, fmt.Errorf("runtime handler %q has no path: %w", name, errdefs.ErrFailedPrecondition)
	}
	return found, nil
}

// Choose is Validate that takes no name for the default handler's.
func (h *Handlers) Choose(name string) (*Handler, error) {
	if name == "" {
		name = h.current.Load().DefaultHandler
	}
	return h.Validate(name)
}
