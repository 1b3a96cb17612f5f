// SPDX-License-Identifier: Apache-2.0

// Package registry runs a real registry on loopback for tests and demonstrations:
// plain or with TLS, open or with one of the ways to log in. In front of it stands
// a proxy that keeps a log of what clients ask for, and misbehaves on demand the
// way that registries and networks do. It refuses to know images, but for pushing
// them, and what its clients are.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthd/berth/integration/host"
)

// Auth is a way to log in.
type Auth int

// The ways to log in. With Basic and Token nothing can be had anonymously.
const (
	None  Auth = iota
	Basic      // a name and a password with every request
	Token      // a token from a server, for a name and a password or an identity token
)

// Who may log in, when logging in is needed.
const (
	Username      = "berth"
	Password      = "correct-horse-battery"
	IdentityToken = "identity-of-berth"
)

// Options say what kind of registry it is.
type Options struct {
	// Dir is where the registry keeps images, keys and its log. It must exist.
	Dir string
	// TLS has the registry speak HTTPS with a certificate that only its own CA
	// vouches for, see Registry.CA.
	TLS  bool
	Auth Auth
	// Listen is the address to listen on. Default: a free port of 127.0.0.1.
	Listen string
	// Names are what the certificate is for, besides the address and localhost.
	Names []string
}

// Registry is a running registry. Safe for concurrent use.
type Registry struct {
	// Address is where clients find it, "host:port".
	Address string
	// CA is the file with the certificate of the registry's CA, or "" without TLS.
	CA string

	auth    Auth
	back    backend
	server  *http.Server
	proxy   http.Handler
	issuer  *issuer
	roots   *tls.Config
	serving sync.WaitGroup
	closed  chan struct{}

	mu       sync.Mutex // guards what follows
	requests []*Request
	faults   []*planned
}

// Start starts a registry and waits until it answers. The caller ends it with
// Close.
func Start(ctx context.Context, o Options) (_ *Registry, err error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{Address: listener.Addr().String(), auth: o.Auth, closed: make(chan struct{}), roots: &tls.Config{}}
	// Until somebody serves, the listener is this function's.
	defer func() {
		if err != nil {
			_ = listener.Close()
			r.back.stop()
		}
	}()
	served := &tls.Config{}
	if o.TLS {
		if served, err = r.certify(o); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	if r.issuer, err = newIssuer(r.realm(), o.Dir); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if err := r.back.start(ctx, o.Dir, r.authConfig(o)); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.serve(listener, served, o.TLS)
	return r, nil
}

// certify makes the registry's CA and a certificate.
func (r *Registry) certify(o Options) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(r.Address)
	if err != nil {
		return nil, err
	}
	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	r.CA = filepath.Join(o.Dir, "ca.crt")
	if err := os.WriteFile(r.CA, authority.pem(), 0o644); err != nil {
		return nil, err
	}
	r.roots.RootCAs = authority.pool()
	certificate, err := authority.issue(append(o.Names, host, "localhost"))
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{certificate}}, nil
}

func (r *Registry) serve(l net.Listener, config *tls.Config, secure bool) {
	target := &url.URL{Scheme: "http", Host: r.back.address}
	r.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.SetXForwarded()
			p.Out.Host = p.In.Host
		},
		// Of its own: that of package http keeps connections for a minute and a half,
		// and tests count what is left of theirs.
		Transport:     &http.Transport{IdleConnTimeout: time.Second},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "proxy: "+err.Error(), http.StatusBadGateway)
		},
		ErrorLog: discard,
	}
	r.server = &http.Server{Handler: http.HandlerFunc(r.handle), ErrorLog: discard, ReadHeaderTimeout: time.Minute, TLSConfig: config}
	r.serving.Go(func() {
		// Both return when the server is closed, and say no more than that.
		if secure {
			_ = r.server.ServeTLS(l, "", "")
		} else {
			_ = r.server.Serve(l)
		}
	})
}

// URL is where clients find the registry, with the scheme.
func (r *Registry) URL() string {
	if r.CA != "" {
		return "https://" + r.Address
	}
	return "http://" + r.Address
}

func (r *Registry) realm() string { return r.URL() + tokenPath }

// Push uploads an image, unseen by the log and spared from faults. What ref says
// about the registry must be Address.
func (r *Registry) Push(ctx context.Context, ref string, top v1.Descriptor, from content.Provider) error {
	unseen := http.Header{unseenHeader: {"1"}}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: r.roots.Clone()}}
	defer client.CloseIdleConnections()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Headers: unseen,
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(client),
			docker.WithPlainHTTP(func(string) (bool, error) { return r.CA == "", nil }),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthHeader(unseen),
				docker.WithAuthCreds(func(string) (string, string, error) { return Username, Password, nil }))),
		),
	})
	pusher, err := resolver.Pusher(ctx, ref)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	// One blob at a time: containerd's authorizer has a data race.
	if err := remotes.PushContent(ctx, pusher, top, from, semaphore.NewWeighted(1), platforms.All, nil); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Close ends the registry and every connection to it. A second call does nothing.
func (r *Registry) Close() {
	r.mu.Lock()
	select {
	case <-r.closed:
		r.mu.Unlock()
		return
	default:
		close(r.closed)
	}
	r.mu.Unlock()
	_ = r.server.Close() // the listener is what it can complain about
	r.serving.Wait()
	r.back.stop()
}

// backend is the registry itself.
type backend struct {
	address string
	process *exec.Cmd
}

const config = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q, relativeurls: true}
%s`

func (b *backend) start(ctx context.Context, dir, auth string) error {
	var err error
	if b.address, err = freeAddress(); err != nil {
		return err
	}
	file := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, filepath.Join(dir, "registry"), b.address, auth), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "registry.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	b.process = exec.Command(host.Deps("bin/registry"), "serve", file)
	b.process.Stdout, b.process.Stderr = log, log
	// Its exporter would otherwise look for a collector.
	b.process.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	b.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.process.Start(); err != nil {
		return err
	}
	if err := b.await(ctx); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// freeAddress is a port of loopback that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// await polls until the registry answers; who asks must log in is an answer, too.
func (b *backend) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := b.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func (b *backend) probe(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.address+"/v2/", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func (b *backend) stop() {
	if b.process == nil || b.process.Process == nil {
		return
	}
	_ = b.process.Process.Kill() // it may have ended by itself
	_ = b.process.Wait()         // its exit code says that it was killed
}
