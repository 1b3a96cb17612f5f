// SPDX-License-Identifier: Apache-2.0

package argument

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/signal"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime"
)

// Container are the flags of a new container, and those of a pod made for it.
type Container struct {
	r            runtime.ContainerRequest
	pod          Pod
	resources    Resources
	entrypoint   string
	attempt      uint32
	id           string
	env, envFile []string
	volumes      []string
	mounts       []string
	tmpfs        []string
	devices      []string
	groups       []string
	labels       []string
	annotations  []string
	security     []string
	logSize      string
	ulimits      []string
	shmSize      string
	oom          int
	init         bool
	flags        *pflag.FlagSet
}

// Bind declares the flags.
func (c *Container) Bind(flags *pflag.FlagSet) {
	c.flags = flags
	r := &c.r
	flags.StringVar(&r.Pod, "pod", "", "`POD` that it belongs to (default one made for it)")
	flags.StringVar(&r.Name, "name", "", "its `NAME` (default made up)")
	flags.StringVar(&c.id, "id", "", "its `ID` (default made up)")
	flags.Uint32Var(&c.attempt, "attempt", 0, "`NUMBER` of times that it was made before")
	flags.BoolVarP(&r.TTY, "tty", "t", false, "give it a terminal")
	flags.BoolVarP(&r.Stdin, "interactive", "i", false, "keep its input open")
	flags.StringArrayVarP(&c.env, "env", "e", nil, "`KEY=VALUE` of the environment, or KEY for the value here")
	flags.StringArrayVar(&c.envFile, "env-file", nil, "`FILE` of lines as with --env")
	flags.StringVarP(&r.WorkDir, "workdir", "w", "", "working `DIRECTORY`")
	flags.StringVarP(&r.User, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	flags.StringArrayVar(&c.groups, "group-add", nil, "`NUMBER` of a further group")
	flags.StringVar(&c.entrypoint, "entrypoint", "", "`PROGRAM` to run, instead of the image's")
	flags.StringVar(&r.StopSignal, "stop-signal", "", "`SIGNAL` that asks it to end")
	flags.StringVar(&r.Platform, "platform", "", "`PLATFORM` of the image, as linux/arm64")
	flags.StringArrayVarP(&c.volumes, "volume", "v", nil, "`SOURCE:TARGET[:ro]` makes a directory of the host visible")
	flags.StringArrayVar(&c.mounts, "mount", nil, "the same in `FIELDS`: type=bind|tmpfs|image,src=...,dst=...,ro")
	flags.StringArrayVar(&c.tmpfs, "tmpfs", nil, "`TARGET[:OPTIONS]` mounts a tmpfs")
	flags.StringVar(&c.shmSize, "shm-size", "", "`SIZE` of a /dev/shm of its own, as 64m (default the pod's)")
	flags.StringArrayVar(&c.devices, "device", nil, "`SOURCE[:TARGET][:rwm]` gives it a device")
	flags.StringArrayVarP(&c.labels, "label", "l", nil, "`KEY=VALUE` to find it by")
	flags.StringArrayVar(&c.annotations, "annotation", nil, "`KEY=VALUE` for the runtime and others")
	c.bindSecurity(flags)
	flags.StringArrayVar(&c.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]` of setrlimit(2), as nofile=1024:4096")
	flags.IntVar(&c.oom, "oom-score-adj", 0, "how soon it is killed for memory, a `NUMBER` from -1000 to 1000")
	flags.BoolVar(&c.init, "init", false, "have its orphans reaped by a first process that is not its own, as with --pid pod")
	flags.StringVar(&r.LogPath, "log-path", "", "`FILE` of the log (default below the pod's log directory)")
	flags.BoolVar(&r.NoLog, "no-log", false, "write no log")
	flags.StringVar(&c.logSize, "log-max-size", "", "begin a new log file at this `SIZE`, as 10m")
	flags.IntVar(&r.LogMaxFiles, "log-max-files", 0, "`NUMBER` of log files to keep")
	c.resources.Bind(flags)
	c.pod.Bind(flags)
}

func (c *Container) bindSecurity(flags *pflag.FlagSet) {
	s := &c.r.Security
	flags.BoolVar(&s.Privileged, "privileged", false, "give it the host's devices and all capabilities")
	flags.BoolVar(&s.ReadonlyRootfs, "read-only", false, "let it not write to its root file system")
	flags.StringArrayVar(&s.AddCapabilities, "cap-add", nil, "add a `CAPABILITY`, or ALL")
	flags.StringArrayVar(&s.DropCapabilities, "cap-drop", nil, "take a `CAPABILITY` away, or ALL")
	flags.StringArrayVar(&c.security, "security-opt", nil, "`OPTION`: no-new-privileges, seccomp=PROFILE, apparmor=PROFILE, label=PART:VALUE, systempaths=unconfined")
}

// Request returns what the flags and arguments say: an image, and the arguments of
// its program.
func (c *Container) Request(image string, args []string) (runtime.ContainerRequest, error) {
	r := c.r
	r.ID, r.Attempt = runtime.ContainerID(c.id), labels.Attempt(c.attempt)
	// The end of the user's input is the program's. A terminal has none: a user who
	// has left it comes back.
	r.Image, r.Args, r.StdinOnce = image, args, r.Stdin && !r.TTY
	if r.Name == "" {
		r.Name = MadeUp(image)
	}
	switch {
	case c.entrypoint != "":
		r.Command = []string{c.entrypoint}
	case c.flags.Changed("entrypoint"): // as docker has it: none, not even the image's
		if len(args) == 0 {
			return r, invalid("--entrypoint \"\": and no command")
		}
		r.Command, r.Args = args, nil
	}
	if _, err := signal.ParseSignal(r.StopSignal); err != nil && r.StopSignal != "" {
		return r, invalid("--stop-signal %q, want a name or number", r.StopSignal)
	}
	for _, step := range []func(*runtime.ContainerRequest) error{
		c.environment, c.files, c.texts, c.securityOptions, c.limits, c.ownPod,
	} {
		if err := step(&r); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (c *Container) ownPod(r *runtime.ContainerRequest) error {
	if given := c.pod.Given(); r.Pod != "" && len(given) > 0 {
		return invalid("%s: that is for `berth pod create` to say, the container is in the pod %s", strings.Join(given, ", "), r.Pod)
	}
	if err := c.pod.Request(&r.NewPod); err != nil || !c.init {
		return err
	}
	if r.Pod != "" {
		return invalid("--init: that is for `berth pod create --pid pod` to say, the container is in the pod %s", r.Pod)
	}
	if r.NewPod.HostPID {
		return invalid("--init: the host has one")
	}
	r.NewPod.SharePID = true
	return nil
}

func (c *Container) limits(r *runtime.ContainerRequest) (err error) {
	if c.logSize != "" {
		if r.LogMaxSize, err = Size(c.logSize); err != nil {
			return err
		}
	}
	for _, text := range c.ulimits {
		l, err := Ulimit(text)
		if err != nil {
			return err
		}
		r.Ulimits = append(r.Ulimits, l)
	}
	r.Resources, err = c.resources.Request()
	if c.flags.Changed("oom-score-adj") {
		r.Resources.OOMScoreAdj = &c.oom
	}
	return err
}

func (c *Container) environment(r *runtime.ContainerRequest) error {
	var all []string
	for _, file := range c.envFile {
		lines, err := envFile(file)
		if err != nil {
			return err
		}
		all = append(all, lines...)
	}
	r.Env = Environment(append(all, c.env...))
	return nil
}

// Environment completes what has no value by that of this program's environment; what
// is not there either is left out.
func Environment(list []string) []string {
	var all []string
	for _, e := range list {
		if !strings.Contains(e, "=") && e != "" {
			value, given := os.LookupEnv(e)
			if !given {
				continue
			}
			e += "=" + value
		}
		all = append(all, e)
	}
	return all
}

func envFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer f.Close()
	var lines []string
	for scan := bufio.NewScanner(f); ; {
		if !scan.Scan() {
			if err := scan.Err(); err != nil {
				return nil, fmt.Errorf("--env-file %s: %w", path, err)
			}
			return lines, nil
		}
		line := strings.TrimLeft(scan.Text(), " \t")
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
}

func (c *Container) files(r *runtime.ContainerRequest) error {
	for _, text := range c.volumes {
		m, err := Volume(text)
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, m)
	}
	for _, text := range c.mounts {
		m, err := Mount(text)
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, m)
	}
	for _, text := range c.tmpfs {
		r.Mounts = append(r.Mounts, Tmpfs(text))
	}
	if c.shmSize != "" {
		n, err := Size(c.shmSize)
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, runtime.Mount{
			Type: "tmpfs", Source: "tmpfs", Target: "/dev/shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=" + strconv.FormatInt(n, 10)},
		})
	}
	for _, text := range c.devices {
		d, err := Device(text)
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, d)
	}
	return nil
}

func (c *Container) texts(r *runtime.ContainerRequest) (err error) {
	for _, text := range c.groups {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return invalid("--group-add %q, want a number", text)
		}
		r.Groups = append(r.Groups, uint32(n))
	}
	if r.Labels, err = Map("--label", c.labels); err != nil {
		return err
	}
	r.Annotations, err = Map("--annotation", c.annotations)
	return err
}

func (c *Container) securityOptions(r *runtime.ContainerRequest) error {
	for _, option := range c.security {
		key, value, given := strings.Cut(option, "=")
		if !given {
			key, value, given = strings.Cut(option, ":") // docker's old way
		}
		switch s := &r.Security; {
		case key == "no-new-privileges":
			s.NoNewPrivileges = !given || value == "true"
		case key == "seccomp" && given:
			s.Seccomp = value
		case key == "apparmor" && given:
			s.AppArmor = value
		case key == "label" && given:
			if err := label(s, value); err != nil {
				return err
			}
		case option == "systempaths=unconfined":
			s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
		default:
			return invalid("--security-opt %q", option)
		}
	}
	return nil
}

// label reads a part of an SELinux label: type:svirt_t.
func label(s *runtime.Security, text string) error {
	part, value, _ := strings.Cut(text, ":")
	if s.SELinux == nil {
		s.SELinux = &runtime.SELinux{}
	}
	at := map[string]*string{"user": &s.SELinux.User, "role": &s.SELinux.Role, "type": &s.SELinux.Type, "level": &s.SELinux.Level}[part]
	if at == nil || value == "" {
		return invalid("--security-opt label=%q, want user, role, type or level, a colon, and its value", text)
	}
	*at = value
	return nil
}
