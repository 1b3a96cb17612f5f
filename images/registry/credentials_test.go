// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/integration/programs"
	server "github.com/berthd/berth/integration/registry"
)

var pair = base64.StdEncoding.EncodeToString([]byte(server.Username + ":" + server.Password))

func authFile(t *testing.T, key, entry string) string {
	t.Helper()
	return write(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Sprintf(`{"auths":{%q:{%s}}}`, key, entry))
}

// TestCredentials: from each of the places where they may be, for both ways to log in.
func TestCredentials(t *testing.T) {
	t.Parallel()
	for way, auth := range map[string]server.Auth{"basic": server.Basic, "token": server.Token} {
		s := serve(t, server.Options{Auth: auth})
		login := `"auth": "` + pair + `"`
		dockerDir := filepath.Dir(write(t, filepath.Join(t.TempDir(), "config.json"), fmt.Sprintf(`{"auths":{%q:{%s}}}`, s.Address, login)))
		given := func(c registry.Credentials) registry.Access { return registry.Access{Credentials: &c} }
		tests := map[string]struct {
			config registry.Config
			access registry.Access
			ok     bool
		}{
			"none":               {},
			"given":              {access: given(registry.Credentials{Username: server.Username, Password: server.Password}), ok: true},
			"given as base64":    {access: given(registry.Credentials{Auth: pair}), ok: true},
			"wrong":              {access: given(registry.Credentials{Username: server.Username, Password: "wrong-secret"})},
			"given without name": {access: given(registry.Credentials{Auth: base64.StdEncoding.EncodeToString([]byte("nocolon"))})},
			"given beats file":   {registry.Config{AuthFile: authFile(t, s.Address, login)}, given(registry.Credentials{Username: "x", Password: "wrong-secret"}), false},
			"file":               {config: registry.Config{AuthFile: authFile(t, s.Address, login)}, ok: true},
			"file, repository":   {config: registry.Config{AuthFile: authFile(t, s.Address+"/team", login)}, ok: true},
			"file, other":        {config: registry.Config{AuthFile: authFile(t, s.Address+"/other", login)}},
			"docker":             {config: registry.Config{DockerConfigDir: dockerDir}, ok: true},
			"both files":         {config: registry.Config{AuthFile: authFile(t, "other.io", login), DockerConfigDir: dockerDir}, ok: true},
			"file of the call":   {access: registry.Access{AuthFile: authFile(t, s.Address, login)}, ok: true},
			"identity token":     {access: given(registry.Credentials{IdentityToken: server.IdentityToken}), ok: auth == server.Token},
			"identity token, file": {
				config: registry.Config{AuthFile: authFile(t, s.Address, fmt.Sprintf(`"auth": %q, "identitytoken": %q`, pair, server.IdentityToken))},
				ok:     auth == server.Token,
			},
		}
		for name, test := range tests {
			t.Run(way+"/"+name, func(t *testing.T) {
				r := open(t, test.config)
				desc, err := resolve(t, r, s.ref, test.access)
				_, tagsErr := r.Tags(ctx(t), s.ref, test.access)
				if test.ok && (err != nil || tagsErr != nil || desc.Digest != s.manifest.Digest) {
					t.Errorf("%v, %v", err, tagsErr)
				}
				if !test.ok {
					for _, err := range []error{err, tagsErr} {
						if !errdefs.IsUnauthorized(err) {
							t.Errorf("error %v, want ErrUnauthenticated", err)
						}
						mentions(t, err, s.ref.Repository(), "registry "+s.Address+": access denied")
					}
				}
			})
		}
	}
}

// TestRegistryToken: a token of the registry's is sent as it is.
func TestRegistryToken(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{Auth: server.Token})
	token := s.issue(t, "repository:team/app:pull")
	r := open(t, registry.Config{})
	for text, ok := range map[string]bool{token: true, "forged": false} {
		a := registry.Access{Credentials: &registry.Credentials{RegistryToken: text}}
		if _, err := resolve(t, r, s.ref, a); (err == nil) != ok || !ok && !errdefs.IsUnauthorized(err) {
			t.Errorf("resolve: %v", err)
		}
		if _, err := r.Tags(ctx(t), s.ref, a); (err == nil) != ok {
			t.Errorf("tags: %v", err)
		}
	}
	if n := s.Count("", "/token"); n != 1 {
		t.Errorf("%d requests for a token, want the test's own", n)
	}
}

func TestCredentialHelper(t *testing.T) {
	s := serve(t, server.Options{Auth: server.Basic})
	bin := t.TempDir()
	programs.Write(t, filepath.Join(bin, "docker-credential-berthtest"), fmt.Sprintf(`#!/bin/sh
read server
[ "$server" = %q ] || { echo "credentials not found in native keychain"; exit 1; }
echo '{"ServerURL": "", "Username": %q, "Secret": %q}'
`, s.Address, server.Username, server.Password))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	file := write(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Sprintf(`{"credHelpers": {%q: "berthtest"}}`, s.Address))
	for name, r := range map[string]*registry.Registry{
		"of a file":          open(t, registry.Config{AuthFile: file}),
		"of registries.conf": configured(t, `credential-helpers = ["berthtest"]`, registry.Config{}),
	} {
		if _, err := resolve(t, r, s.ref, registry.Access{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := write(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Sprintf(`{"credHelpers": {%q: "is-not-there"}}`, s.Address))
	_, err := resolve(t, open(t, registry.Config{AuthFile: broken}), s.ref, registry.Access{})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v, want ErrFailedPrecondition", err)
	}
	mentions(t, err, "is-not-there", s.ref.Text())
}

func TestBadAuthFile(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{Auth: server.Basic})
	bad := write(t, filepath.Join(t.TempDir(), "auth.json"), "{")
	_, err := resolve(t, open(t, registry.Config{AuthFile: bad}), s.ref, registry.Access{})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v, want ErrFailedPrecondition", err)
	}
	mentions(t, err, bad)
	_, err = open(t, registry.Config{}).Resolver(ctx(t), s.ref, registry.Access{AuthFile: bad + "x"})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v, want ErrInvalidArgument", err)
	}
	mentions(t, err, bad+"x")
}

// TestCredentialsStayHome: what a call gives is for the registry, not for a mirror.
func TestCredentialsStayHome(t *testing.T) {
	t.Parallel()
	s, mirror := serve(t, server.Options{Auth: server.Basic}), serve(t, server.Options{Auth: server.Basic})
	dir := t.TempDir()
	write(t, filepath.Join(dir, s.Address, "hosts.toml"), fmt.Sprintf("server = %q\n[host.%q]\n", s.URL(), mirror.URL()))
	for name, r := range map[string]*registry.Registry{
		"registries.conf": configured(t, mirrorConf(s, mirror, ""), registry.Config{}),
		"hosts.toml":      open(t, registry.Config{HostsDir: dir}),
	} {
		for kind, c := range map[string]registry.Credentials{"password": {Auth: pair}, "token": {RegistryToken: "secret"}} {
			mirror.Forget()
			_, err := resolve(t, r, s.ref, registry.Access{Credentials: &c})
			if (kind == "password") != (err == nil) {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			if len(mirror.Log()) == 0 {
				t.Errorf("%s, %s: the mirror was not asked", name, kind)
			}
			for _, q := range mirror.Log() {
				if q.Auth != "" {
					t.Errorf("%s, %s: the mirror got credentials: %+v", name, kind, q)
				}
			}
		}
	}
}

// TestSecretsAreNotShown: neither in logs of any level nor in errors.
func TestSecretsAreNotShown(t *testing.T) {
	var out bytes.Buffer
	// Part of what is linked logs to the logger of the process.
	before, level := logrus.StandardLogger().Out, logrus.GetLevel()
	logrus.SetOutput(&out)
	logrus.SetLevel(logrus.TraceLevel)
	t.Cleanup(func() { logrus.SetOutput(before); logrus.SetLevel(level) })
	shown := func(where string, secrets ...string) {
		t.Helper()
		for _, secret := range secrets {
			if text := out.String(); strings.Contains(text, secret) {
				i := strings.Index(text, secret)
				t.Errorf("%s: %q is in the log: …%s", where, secret, text[max(0, i-200):min(len(text), i+50)])
			}
		}
	}
	logger := logrus.New()
	logger.SetOutput(&out)
	logger.SetLevel(logrus.TraceLevel)
	traced := log.WithLogger(ctx(t), logrus.NewEntry(logger))
	for way, auth := range map[string]server.Auth{"basic": server.Basic, "token": server.Token} {
		s := serve(t, server.Options{Auth: auth})
		r := open(t, registry.Config{})
		for _, password := range []string{server.Password, "wrong-password"} {
			out.Reset()
			resolver, err := r.Resolver(traced, s.ref, registry.Access{Credentials: &registry.Credentials{Username: server.Username, Password: password}})
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = resolver.Resolve(traced, s.ref.Text())
			if err != nil {
				fmt.Fprintln(&out, err)
			}
			if out.Len() == 0 {
				t.Error("nothing was logged")
			}
			encoded := base64.StdEncoding.EncodeToString([]byte(server.Username + ":" + password))
			shown(way, password, encoded, "Bearer ey")
		}
	}

	out.Reset()
	c := registry.Credentials{Username: "u", Password: "s3cret", Auth: "s3cret", IdentityToken: "s3cret", RegistryToken: "s3cret"}
	fmt.Fprintf(&out, "%v %+v %#v %s %q %d %v %+v", c, c, c, c, c, c, registry.Access{Credentials: &c}, &c)
	shown("fmt", "s3cret")
	if !strings.Contains(out.String(), "credentials of u") {
		t.Errorf("formatted: %s", out.String())
	}
	// A call must survive the way to another process.
	text, err := json.Marshal(registry.Access{Credentials: &c})
	if err != nil {
		t.Fatal(err)
	}
	var back registry.Access
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if *back.Credentials != c {
		t.Error("credentials do not survive JSON")
	}
}

// TestSignedURLIsNotShown: a URL that a registry redirects to is as good as a
// password.
func TestSignedURLIsNotShown(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	to := func(status int) server.Action {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Query().Get("signature") != "" {
				server.Answer(status, "DENIED", "Retry-After", "0")(w, r, next)
				return
			}
			w.Header().Set("Location", r.URL.Path+"?signature=s3cret")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	}
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	logged := log.WithLogger(ctx(t), logrus.NewEntry(logger))
	r := open(t, registry.Config{})
	for _, status := range []int{403, 404, 429, 500} {
		remove := s.Inject(server.Fault{Do: to(status)})
		resolver, err := r.Resolver(logged, s.ref, registry.Access{})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = resolver.Resolve(logged, s.ref.Text())
		_, fetchErr := fetchBy(logged, resolver, s.ref, s.layer)
		_, tagsErr := r.Tags(logged, s.ref, registry.Access{})
		for _, err := range []error{err, fetchErr, tagsErr} {
			if err == nil || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%d: error %v", status, err)
			}
		}
		remove()
	}
	if strings.Contains(out.String(), "s3cret") {
		t.Errorf("log: %s", out.String())
	}
	if diff := cmp.Diff("", out.String()); diff != "" {
		t.Errorf("logged besides the errors:\n%s", diff)
	}
}
