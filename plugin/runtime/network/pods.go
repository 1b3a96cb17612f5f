// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/go-cni"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// Pods are the networks of one containerd namespace's pods. Safe for concurrent
// use, of several processes too, for different pods.
type Pods struct {
	config Config
}

// Open returns the networks of the pods that c names. It reads nothing yet.
func Open(c Config) (*Pods, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	return &Pods{c}, nil
}

// record is what is remembered of a pod, the request before anything is done,
// the attachment when all is.
type record struct {
	Request    Request     `json:"request"`
	Attachment *Attachment `json:"attachment,omitempty"`
}

const (
	recordFile = "network.json"
	tempFile   = "network.json.new"
	// removalTimeout bounds what undoes a failed Add.
	removalTimeout = time.Minute
)

// Add gives a pod its network. A pod that has one is AlreadyExists, a malformed
// request InvalidArgument; CNI without a configuration is ErrNotConfigured. It
// blocks while plugins run. After an error nothing is left.
func (p *Pods) Add(ctx context.Context, r Request) (_ *Attachment, err error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	dir := p.dir(r.PodID)
	if err := os.MkdirAll(p.config.State, 0o755); err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", r.PodID, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("network of pod %s: %w", r.PodID, errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("network of pod %s: %w", r.PodID, err)
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removalTimeout)
		defer cancel()
		err = errors.Join(err, p.Remove(ctx, r.PodID))
	}()
	// The request first: a crash from here on can be undone.
	if err := save(dir, &record{Request: r}); err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", r.PodID, err)
	}
	a, err := p.attach(ctx, dir, &r)
	if err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", r.PodID, err)
	}
	if err := save(dir, &record{r, a}); err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", r.PodID, err)
	}
	return a, nil
}

func (p *Pods) attach(ctx context.Context, dir string, r *Request) (*Attachment, error) {
	if r.Host {
		return &Attachment{PodID: r.PodID, Host: true}, nil
	}
	if r.None {
		path, err := newNamespace(dir, r.UserNamespace)
		if err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		return &Attachment{PodID: r.PodID, Path: path}, nil
	}
	c, err := p.cni()
	if err != nil {
		return nil, err
	}
	if err := mapsPorts(c, r.Ports); err != nil {
		return nil, err
	}
	path, err := newNamespace(dir, r.UserNamespace)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	// One after the other: the order of interfaces is that of the files.
	result, err := c.SetupSerially(ctx, p.cniID(r.PodID), path, p.options(r)...)
	if err != nil {
		return nil, fmt.Errorf("cni: %w", classified(err))
	}
	return p.attachment(r.PodID, path, result), nil
}

// mapsPorts refuses ports that no plugin of the configuration would map: CNI leaves out
// what nobody asks for.
func mapsPorts(c cni.CNI, ports []PortMapping) error {
	if !slices.ContainsFunc(ports, func(m PortMapping) bool { return m.HostPort != 0 }) {
		return nil
	}
	for _, n := range c.GetConfig().Networks {
		for _, plugin := range n.Config.Plugins {
			if plugin.Network.Capabilities["portMappings"] {
				return nil
			}
		}
	}
	return fmt.Errorf("cni: no plugin of the configuration maps ports of the host, as portmap does: %w", errdefs.ErrFailedPrecondition)
}

// Remove takes a pod's network away: CNI's part, also if the namespace is gone
// already, the namespace, and what was remembered. A pod without a network is
// fine. If CNI fails, the pod's directory stays, to remove it again; with no
// configuration or plugin left there is nobody to ask, and that is no failure.
func (p *Pods) Remove(ctx context.Context, podID string) error {
	if !plainID.MatchString(podID) {
		return fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrInvalidArgument)
	}
	dir := p.dir(podID)
	// One at a time: plugins fail over what another call takes away.
	unlock, err := claim.LockDir(ctx, dir, claim.Exclusive)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove network of pod %s: %w", podID, err)
	}
	defer unlock()
	r, err := load(dir)
	if err != nil {
		// A record that was cut off, or has not reached the disk: there is a request
		// with this id at least.
		r = &record{Request: Request{PodID: podID}}
	}
	if !r.Request.Host && !r.Request.None {
		if err := p.detach(ctx, dir, &r.Request); err != nil {
			return fmt.Errorf("remove network of pod %s: %w", podID, err)
		}
	}
	if err := removeNamespaces(dir); err != nil {
		return fmt.Errorf("remove network of pod %s: %w", podID, err)
	}
	var errs []error
	for _, name := range []string{tempFile, recordFile} {
		errs = append(errs, removeEmpty(filepath.Join(dir, name)))
	}
	if err := errors.Join(append(errs, removeEmpty(dir))...); err != nil {
		return fmt.Errorf("remove network of pod %s: %w", podID, err)
	}
	return nil
}

// Dead tells whether a pod's network was made and its namespace is gone, as after a
// reboot. What it has of CNI, addresses above all, may outlive that: see Remove.
func (p *Pods) Dead(podID string) bool {
	a, err := p.Find(podID)
	return err == nil && !a.Host && errdefs.IsNotFound(isNamespace(a.Path))
}

func (p *Pods) detach(ctx context.Context, dir string, r *Request) error {
	c, err := p.cni()
	if errors.Is(err, ErrNotConfigured) {
		return nil
	}
	if err != nil {
		return err
	}
	paths, err := namespacesIn(dir)
	if err != nil {
		return err
	}
	// Without its namespace CNI is to do what it can: addresses and port mappings
	// are outside of it. "" says so (specification of CNI, section 4, DEL).
	path := ""
	if len(paths) > 0 && isNamespace(paths[0]) == nil {
		path = paths[0]
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	if err := c.Remove(ctx, p.cniID(r.PodID), path, p.options(r)...); err != nil && !errors.Is(classified(err), ErrNotConfigured) {
		return fmt.Errorf("cni: %w", classified(err))
	}
	return nil
}

// Check asks CNI whether a pod's network is as it was made. No network is
// NotFound, a faulty one FailedPrecondition. The host's is always right.
func (p *Pods) Check(ctx context.Context, podID string) error {
	r, err := p.record(podID)
	if err != nil {
		return err
	}
	if r.Attachment.Host {
		return nil
	}
	if err := isNamespace(r.Attachment.Path); err != nil {
		return fmt.Errorf("network of pod %s: %w: %w", podID, errdefs.ErrFailedPrecondition, err)
	}
	if r.Request.None {
		return nil
	}
	c, err := p.cni()
	if err != nil {
		return fmt.Errorf("network of pod %s: %w", podID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	if err := c.Check(ctx, p.cniID(podID), r.Attachment.Path, p.options(&r.Request)...); err != nil {
		return fmt.Errorf("network of pod %s: %w: %w", podID, errdefs.ErrFailedPrecondition, err)
	}
	return nil
}

// Find returns a pod's network as it was made. One that was begun and not
// finished is NotFound, as is none.
func (p *Pods) Find(podID string) (*Attachment, error) {
	r, err := p.record(podID)
	if err != nil {
		return nil, err
	}
	return r.Attachment, nil
}

// List returns the ids of all pods that Remove would find something of, those
// of unfinished calls included.
func (p *Pods) List() ([]string, error) {
	entries, err := os.ReadDir(p.config.State)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("networks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && plainID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Ready tells whether CNI can be used: FailedPrecondition says why not.
func (p *Pods) Ready() error {
	c, err := p.cni()
	if err != nil {
		return err
	}
	if err := c.Status(); err != nil {
		return fmt.Errorf("cni: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return nil
}

func (p *Pods) record(podID string) (*record, error) {
	if !plainID.MatchString(podID) {
		return nil, fmt.Errorf("network of pod %q: %w", podID, errdefs.ErrInvalidArgument)
	}
	r, err := load(p.dir(podID))
	if err == nil && r.Attachment == nil {
		err = fmt.Errorf("not finished: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", podID, err)
	}
	return r, nil
}

func (p *Pods) dir(podID string) string { return filepath.Join(p.config.State, podID) }

func (p *Pods) cniID(podID string) string { return p.config.Namespace + "-" + podID }

// cni reads the configuration anew each time: it may have changed, and a call
// costs processes anyway.
func (p *Pods) cni() (cni.CNI, error) {
	c, err := cni.New(
		cni.WithPluginDir(p.config.BinDirs),
		cni.WithPluginConfDir(p.config.ConfDir),
		cni.WithPluginMaxConfNum(p.config.MaxConfigs),
		cni.WithInterfacePrefix(p.config.Prefix),
		cni.WithDefaultConf,
	)
	switch {
	case errors.Is(err, cni.ErrCNINotInitialized) || errors.Is(err, cni.ErrRead):
		return nil, fmt.Errorf("cni: %w: %w", ErrNotConfigured, err)
	case err != nil:
		return nil, fmt.Errorf("cni: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return c, nil
}

// options are those of CNI's calls for a pod. The arguments are the ones that
// plugins know from Kubernetes.
func (p *Pods) options(r *Request) []cni.NamespaceOpts {
	options := []cni.NamespaceOpts{cni.WithLabels(map[string]string{
		"K8S_POD_NAMESPACE":          r.PodNamespace,
		"K8S_POD_NAME":               r.PodName,
		"K8S_POD_INFRA_CONTAINER_ID": r.PodID,
		"K8S_POD_UID":                r.PodUID,
		"IgnoreUnknown":              "1",
	})}
	var ports []cni.PortMapping
	for _, m := range r.Ports {
		if m.HostPort != 0 {
			ports = append(ports, cni.PortMapping{HostPort: int32(m.HostPort), ContainerPort: int32(m.ContainerPort), Protocol: m.Protocol, HostIP: m.HostIP})
		}
	}
	if len(ports) > 0 {
		options = append(options, cni.WithCapabilityPortMap(ports))
	}
	if b := r.Bandwidth; b != nil {
		options = append(options, cni.WithCapabilityBandWidth(cni.BandWidth(*b)))
	}
	if d := r.DNS; d != nil {
		options = append(options, cni.WithCapabilityDNS(cni.DNS(*d)))
	}
	if len(r.Annotations) > 0 {
		options = append(options, cni.WithCapability(labels.CapabilityPodAnnotations, r.Annotations))
	}
	if r.CgroupPath != "" {
		options = append(options, cni.WithCapabilityCgroupPath(r.CgroupPath))
	}
	return options
}

// attachment keeps of CNI's result what is inside of the pod.
func (p *Pods) attachment(podID, path string, result *cni.Result) *Attachment {
	a := &Attachment{PodID: podID, Path: path}
	first := p.config.Prefix + "0"
	for name, c := range result.Interfaces {
		if name != first && c.Sandbox == "" || name == "lo" {
			continue // the host's end
		}
		i := Interface{Name: name, MAC: c.Mac}
		for _, ip := range c.IPConfigs {
			i.IPs = append(i.IPs, Address{address(ip.IP), address(ip.Gateway)})
		}
		a.Interfaces = append(a.Interfaces, i)
	}
	rank := func(i Interface) string { return strings.TrimPrefix(i.Name, first) } // "" is the least
	slices.SortFunc(a.Interfaces, func(x, y Interface) int { return strings.Compare(rank(x), rank(y)) })
	for _, d := range result.DNS {
		a.DNS.Servers = append(a.DNS.Servers, d.Nameservers...)
		a.DNS.Searches = append(a.DNS.Searches, d.Search...)
		a.DNS.Options = append(a.DNS.Options, d.Options...)
	}
	return a
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // the zero value for none
	return a.Unmap()
}

// classified gives errors of plugins, which have no class, one.
func classified(err error) error {
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case strings.Contains(err.Error(), "failed to find plugin"): // libcni has only words for it
		return fmt.Errorf("%w: %w", ErrNotConfigured, err)
	}
	return fmt.Errorf("%w: %w", errdefs.ErrUnknown, err)
}

func load(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errdefs.ErrNotFound
		}
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", recordFile, errdefs.ErrDataLoss, err)
	}
	return &r, nil
}

// save replaces the record. No fsync: Remove knows what to do without one.
func save(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, tempFile)
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, recordFile))
}
